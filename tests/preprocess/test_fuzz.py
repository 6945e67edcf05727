"""The short form of benchmarks/fuzz_preprocess.py."""

import importlib.util
from pathlib import Path

import pytest

PATH = Path(__file__).parents[2] / "benchmarks" / "fuzz_preprocess.py"


@pytest.fixture(scope="module")
def fuzz():
    spec = importlib.util.spec_from_file_location("fuzz_preprocess", PATH)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_hostile_files_end_in_pixels_or_our_error(fuzz):
    """20: the short form of the fuzz figure, with progressive scans, 12-bit and multi-page files."""
    found = fuzz.fuzz(2_000, seed=1)
    assert found["crashes"] == []
    assert found["memory_mb"] < fuzz.MOST_MEMORY_MB
    kinds = {name.split(":")[0] for name in found["counts"]}
    assert kinds == {"flips", "cut", "header", "splice", "bomb", "noise", "scans"}
    assert sum(count for name, count in found["counts"].items() if name.endswith("pixels")) > 300


def test_every_seed_is_a_valid_file_and_every_bomb_is_refused(fuzz):
    assert len({fuzz.decode_image(data).tobytes() for data in fuzz.seeds()}) > 5
    for data in fuzz.bombs():
        with pytest.raises(fuzz.ImageError):
            fuzz.decode_image(data)
