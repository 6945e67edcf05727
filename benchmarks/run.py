"""Speed of the library beside what a user would do otherwise, both in turn in one run.

    python benchmarks/run.py training            (or another of its names; several run one after the other)
    python benchmarks/run.py training --short    (a minute: shows that it runs, says nothing of speed)

Each benchmark prints a table of ratios and writes `benchmarks/results/NAME.json` with the environment; the exit status
is the number of rows that fall short of what they must show. Nothing else should run on the machine meanwhile.
`benchmarks/gpu.py` is for machines with a GPU.
"""

from __future__ import annotations

import argparse
import importlib
import subprocess
import sys
from pathlib import Path

from harness import RESULTS, report

NAMES = ("data", "preprocess", "training", "probe", "inference", "evaluation", "report", "imports")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="+", choices=NAMES)
    parser.add_argument("--short", action="store_true", help="smallest sizes: whether it runs at all")
    parser.add_argument("--results", type=Path, help=f"folder of the JSON files; {RESULTS} unless --short")
    options = parser.parse_args()
    folder = options.results or (None if options.short else RESULTS)
    if len(options.names) > 1 and not options.short:
        # A process each: the memory of one is not the other's.
        flags = ["--results", str(folder)]
        return sum(
            subprocess.run([sys.executable, __file__, name, *flags], check=False).returncode for name in options.names
        )
    return sum(
        report(name, importlib.import_module(name).rows(options.short), options.short, folder) for name in options.names
    )


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    sys.exit(main())
