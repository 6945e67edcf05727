"""A grid of 48 trials whose driver and workers are killed at 100 random moments; about 12 to 16 minutes.

python benchmarks/soak.py [--kills 100] [--seeds 16] [--longest 10]
"""

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "helpers"))

import grids
import soak
from leukemia_dl.benchmark import Store

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--kills", type=int, default=100)
parser.add_argument("--seeds", type=int, default=16, help="three trials for each")
parser.add_argument("--longest", type=float, default=10.0, help="seconds between two kills, at most")
options = parser.parse_args()

with tempfile.TemporaryDirectory() as folder:
    root, started = Path(folder) / "cells", time.monotonic()
    grids.dataset(root)
    tell = lambda text: print(text, file=sys.stderr, flush=True)  # noqa: E731
    counts, runs, statuses = soak.soak(
        root, Path(folder) / "killed", options.seeds, options.kills, options.longest, tell=tell
    )
    soak.undisturbed(root, Path(folder) / "whole", options.seeds)
    tables = [(Path(folder) / name / "results.csv").read_bytes() for name in ("killed", "whole")]
    trials = len(list((Path(folder) / "killed" / "trials").glob("[!.]*")))
    found = {
        "trials": trials,
        "kills": counts,
        "runs": runs,
        "all ok": set(statuses) == {"ok"} and len(statuses) == trials == 3 * options.seeds + 3,
        "results.csv equals that of an undisturbed run": tables[0] == tables[1],
        "finished trials that ran again": 0,  # `soak` fails on the first
        "damaged": len(Store(Path(folder) / "killed").verify()),
        "seconds": round(time.monotonic() - started),
    }
print(json.dumps(found, indent=1))
sys.exit(not (found["all ok"] and tables[0] == tables[1]))
