"""The short form of benchmarks/soak.py."""

import sys
from pathlib import Path

import pytest

import soak
from leukemia_dl.benchmark import Store

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="needs Linux to find the workers"),
]


def test_a_grid_that_is_killed_again_and_again_ends_in_the_same_table(synthetic_root, tmp_path):
    counts, runs, statuses = soak.soak(synthetic_root, tmp_path / "killed", seeds=2, kills=8, longest=6, seed=1)
    soak.undisturbed(synthetic_root, tmp_path / "whole", seeds=2)
    assert statuses == ["ok"] * 9
    assert sum(counts.values()) == 8
    assert runs > 4
    assert len(list((tmp_path / "killed" / "trials").glob("[!.]*"))) == 9
    tables = [(tmp_path / name / "results.csv").read_bytes() for name in ("killed", "whole")]
    assert tables[0] == tables[1]
    assert Store(tmp_path / "killed").verify() == {}
    print(counts, runs, file=sys.stderr)
