"""`leukemia-dl backbones | datasets | recipes | doctor | cache`."""

from pathlib import Path

import numpy as np
import pytest

from command import run, run_process
from leukemia_dl.datasets import Dataset
from leukemia_dl.preprocess import Pipeline


def test_the_lists_and_the_doctor(tmp_path):
    assert "inception_v3" in run("backbones").stdout
    assert "arXiv:1512.03385" in run("backbones", "--format", "csv").stdout
    listed = run("datasets").stdout
    assert "c_nmc_2019" in listed
    assert "synthetic" in listed
    doctor = run("doctor", cwd=tmp_path)
    assert doctor.returncode == 0
    for word in ("Backend       tensorflow", "Devices       cpu:0", "Precision     float32", "writable", "Ready."):
        assert word in doctor.stdout
    sick = run("doctor", LEUKEMIA_DL_CACHE="/proc/none", cwd=tmp_path)
    assert sick.returncode == 1
    assert "set LEUKEMIA_DL_CACHE" in sick.stdout
    assert "Not ready" in sick.stdout
    missing = run_process("doctor", KERAS_BACKEND="jax", cwd=tmp_path)
    assert "jax is not installed" in missing.stdout or "Ready." in missing.stdout


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LEUKEMIA_DL_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_the_cache_is_listed_and_cleared(cache: Path) -> None:
    assert "Pixels and features: 0.0 GB of at most 20 GB" in run("cache", "list").stdout
    assert "Deleted: 0" in run("cache", "clear").stdout
    images = np.random.default_rng(0).integers(0, 256, (4, 9, 9, 3), dtype=np.uint8)
    store = Dataset.from_arrays(images, [0, 1, 0, 1], ("hem", "all")).pixel_store(Pipeline.default(8))
    (cache / "pixels" / f".{store.path.name}-left").mkdir()
    for name, size in (("features/resnet50-0a1b.npy", 300), ("features/.left.npy", 30)):
        (cache / name).parent.mkdir(exist_ok=True)
        (cache / name).write_bytes(b"x" * size)
    (cache / "synthetic-0").mkdir()
    (cache / "synthetic-0" / "a.bmp").write_bytes(b"x" * 100)
    shown = run("cache", "list").stdout
    for text in (store.path.name, f".{store.path.name}-left", "synthetic-0", "resnet50-0a1b.npy"):
        assert text in shown
    assert shown.count(".left.npy") == 1
    assert "Pixels and features: 0.0 GB of at most 20 GB (LEUKEMIA_DL_CACHE_LIMIT)" in shown  # 20.42
    assert "Deleted: 4, " in run("cache", "clear").stdout
    assert list((cache / "features").iterdir()) == []
    assert [place.name for place in cache.iterdir() if place.name.startswith("synthetic")] == ["synthetic-0"]
    assert list((cache / "pixels").iterdir()) == []
    assert "Deleted: 1, 0.0 MB" in run("cache", "clear", "--synthetic").stdout
    assert not (cache / "synthetic-0").exists()
