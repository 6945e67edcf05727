"""What `import leukemia_dl` costs beyond numpy and pandas, which any user of it has: fresh processes, files in memory.

Names are loaded when they are first used, so that the import itself is next to nothing; what the first use of the data
and the benchmark costs stands below it, and how long the command takes to answer, beside Python with pandas.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterable

from harness import Row, compared

LIMIT = 0.15
_TIMED = "import numpy, pandas, time; started = time.perf_counter(); {}; print(time.perf_counter() - started)"
_BEYOND = {
    "import leukemia_dl": ("import leukemia_dl", LIMIT),
    "import leukemia_dl, and Dataset": ("import leukemia_dl as l; l.Dataset", LIMIT),
    "import leukemia_dl, and Benchmark": ("import leukemia_dl as l; l.Benchmark", None),
}
_COMMANDS = {
    "leukemia-dl --help": ["-m", "leukemia_dl", "--help"],
    "leukemia-dl benchmark --plan": ["-m", "leukemia_dl", "benchmark", "--backbones", "cnn", "--plan", "-osubjects=12"],
}


def _wall(arguments: list[str]) -> float:
    started = time.perf_counter()
    subprocess.run([sys.executable, *arguments], check=True, capture_output=True)
    return time.perf_counter() - started


def rows(short: bool) -> Iterable[Row]:
    rounds = 1 if short else 15
    found = []
    for what, (code, limit) in _BEYOND.items():
        timed = []
        for turn in range(rounds + 1):
            program = [sys.executable, "-c", _TIMED.format(code)]
            said = subprocess.run(program, check=True, capture_output=True, text=True).stdout
            if turn:  # the first reads files from the disk
                timed.append(float(said))
        note = f"theirs is the limit of {LIMIT} s" if limit else f"theirs is {LIMIT} s, which is no limit here"
        found.append(compared(what, timed, [LIMIT] * rounds, 1, "a second", 1.0 if limit else None, note))
    for what, arguments in _COMMANDS.items():
        _wall(arguments)
        ours, theirs = [], []
        for _ in range(rounds):
            ours.append(_wall(arguments))
            theirs.append(_wall(["-c", "import numpy, pandas"]))
        found.append(compared(what, ours, theirs, 1, "a second", note="theirs is Python that imports numpy and pandas"))
    return found
