"""What all tests share: real data where it is, small made-up images and tables, a cache folder of their own."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import settings
from PIL import Image

# Two busy cores make single examples slow; that is no failure.
settings.register_profile("quick", deadline=None, max_examples=25)
settings.register_profile("thorough", deadline=None, max_examples=100)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "quick"))

_REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep tests away from the user's cache folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LEUKEMIA_DL_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(autouse=True)
def _own_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a test begin without the backbones that others have registered, on whose names it could stumble."""
    monkeypatch.setattr("leukemia_dl.models.backbones._registered", {})


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data for development; absent on most machines."""
    folder = Path(os.environ.get("LEUKEMIA_DL_TEST_DATA") or _REPOSITORY.parent / "shared" / "data")
    if not folder.is_dir():
        pytest.skip(f"no real data at {folder}: set LEUKEMIA_DL_TEST_DATA")
    return folder


@pytest.fixture(scope="session")
def c_nmc_sample(shared_data: Path) -> Path:
    """60 real files of C-NMC 2019 in Kaggle's layout."""
    return _part(shared_data, "c_nmc_2019_sample/C-NMC_Leukemia")


@pytest.fixture(scope="session")
def c_nmc_manifest(shared_data: Path) -> Path:
    """Hashes and boxes of all files of C-NMC 2019."""
    return _part(shared_data, "c_nmc_2019_manifest")


@pytest.fixture(scope="session")
def c_nmc_tree(c_nmc_sample: Path, c_nmc_manifest: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All 15,114 names of C-NMC 2019, with files that are equal where the real ones are."""
    root = tmp_path_factory.mktemp("c_nmc_tree")
    lines = (c_nmc_manifest / "sha256.tsv").read_text().splitlines()[1:]
    files = [(root / path, content) for content, _, path in (line.split("\t") for line in lines)]
    for folder in {path.parent for path, _ in files}:
        folder.mkdir(parents=True, exist_ok=True)
    for path, content in files:
        if path.suffix == ".csv":
            path.write_bytes(next(c_nmc_sample.rglob("*.csv")).read_bytes())
        else:
            path.write_text(content)
    return root / "C-NMC_Leukemia"


@pytest.fixture(scope="session")
def aria_sample(shared_data: Path) -> Path:
    """1,200 JPEG files in four classes, without subjects."""
    return _part(shared_data, "aria_all_sample")


@pytest.fixture(scope="session")
def wbc_sample(shared_data: Path) -> Path:
    """300 BMP files of odd sizes."""
    return _part(shared_data, "segmentation_wbc_1")


@pytest.fixture(scope="session")
def synthetic_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small synthetic data set in Kaggle's layout: 12 subjects, 72 training images."""
    from leukemia_dl.datasets.synthetic import SyntheticCohort, write_dataset

    settings = SyntheticCohort(subjects=12, images=72, preliminary_images=12, final_images=2)
    return write_dataset(tmp_path_factory.mktemp("synthetic") / "cells", settings, show_progress=False)


@pytest.fixture
def hostile_folder(tmp_path: Path) -> tuple[Path, Callable[[], list[str]]]:
    """A folder of modules with the names of real ones, and a function that returns which of them were imported."""
    folder, marks = tmp_path / "hostile", tmp_path / "imported"
    folder.mkdir()
    for name in ("json", "numpy", "keras", "pickle", "joblib", "sitecustomize", "leukemia_dl"):
        (folder / f"{name}.py").write_text(f"open({str(marks)!r}, 'a').write('{name} ')\nraise SystemExit(5)\n")
    return folder, lambda: marks.read_text().split() if marks.exists() else []


@pytest.fixture
def write_image() -> Callable[..., Path]:
    """Return `write_image(path, number=0, size=8)`: a small image whose pixels follow from its number."""

    def write(path: Path, number: int = 0, size: int = 8) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(number).integers(0, 256, (size, size, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path)
        return path

    return write


def _part(data: Path, name: str) -> Path:
    folder = data / name
    if not folder.is_dir():
        pytest.skip(f"no real data at {folder}: set LEUKEMIA_DL_TEST_DATA")
    return folder
