"""The short form of benchmarks/fuzz_stores.py."""

import importlib.util
import os
from pathlib import Path

import pytest

PATH = Path(__file__).parents[2] / "benchmarks" / "fuzz_stores.py"


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="the system has no named pipes")
def test_hostile_stores_and_models_end_in_a_result_or_our_error():
    """20: the short form of the fuzz figure: 40 hostile stores and 12 hostile model files."""
    spec = importlib.util.spec_from_file_location("fuzz_stores", PATH)
    fuzz = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(fuzz)
    found = fuzz.fuzz(40, 12, seed=1, megabytes=16)
    assert found["crashes"] == []
    assert found["memory_mb"] < 500
    assert sum(count for name, count in found["counts"].items() if name.endswith("our error")) > 5
    assert sum(count for name, count in found["counts"].items() if name.endswith("read")) > 20
