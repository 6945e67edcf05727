from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from leukemia_dl.cli import app
from leukemia_dl.datasets import Dataset
from leukemia_dl.preprocess import Pipeline


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LEUKEMIA_DL_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def run(*arguments: str) -> str:
    result = CliRunner().invoke(app, ["cache", *arguments])
    assert result.exit_code == 0, result.output
    return result.output


def test_list_and_clear(cache: Path) -> None:
    assert "is empty" in run("list")
    assert "Deleted: 0" in run("clear")
    images = np.random.default_rng(0).integers(0, 256, (4, 9, 9, 3), dtype=np.uint8)
    store = Dataset.from_arrays(images, [0, 1, 0, 1], ("hem", "all")).pixel_store(Pipeline.default(8))
    (cache / "pixels" / f".{store.folder.name}-left").mkdir()
    for name, size in (("features/resnet50-0a1b.npy", 300), ("features/.left.npy", 30)):
        (cache / name).parent.mkdir(exist_ok=True)
        (cache / name).write_bytes(b"x" * size)
    (cache / "synthetic-0").mkdir()
    (cache / "synthetic-0" / "a.bmp").write_bytes(b"x" * 100)
    shown = run("list")
    for text in (store.folder.name, f".{store.folder.name}-left", "synthetic-0", "resnet50-0a1b.npy"):
        assert text in shown
    assert shown.count(".left.npy") == 1
    assert "Pixels and features: 0.0 GB of at most 20 GB (LEUKEMIA_DL_CACHE_LIMIT)" in shown  # 20.42
    assert "Deleted: 4, " in run("clear")
    assert list((cache / "features").iterdir()) == []
    assert [place.name for place in cache.iterdir() if place.name.startswith("synthetic")] == ["synthetic-0"]
    assert list((cache / "pixels").iterdir()) == []
    assert "Deleted: 1, 0.0 MB" in run("clear", "--synthetic")
    assert not (cache / "synthetic-0").exists()
