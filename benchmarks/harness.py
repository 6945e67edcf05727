"""What all benchmarks share: ways timed in turn, rows of ratios, the environment, a JSON file and a table per run."""

from __future__ import annotations

import gc
import json
import os
import platform
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
_PACKAGES = ("leukemia-dl", "keras", "tensorflow", "jax", "torch", "torchvision", "numpy", "pandas", "pillow")


@dataclass(frozen=True)
class Row:
    """One comparison: `ratio` says how many times as good ours is, its median over interleaved rounds."""

    what: str
    ours: float
    theirs: float
    unit: str
    ratio: float
    low: float
    high: float
    at_least: float | None = None
    note: str = ""

    @property
    def holds(self) -> bool:
        return self.at_least is None or self.ratio >= self.at_least


def compared(
    what: str, ours: Sequence[float], theirs: Sequence[float], count: float, unit: str, at_least: float | None = None,
    note: str = "",
) -> Row:  # fmt: skip
    """Return the row of seconds that two ways took in the same rounds; a rate is `count` over seconds."""
    ratios = [other / mine for mine, other in zip(ours, theirs, strict=True)]
    middle, low, high = statistics.median(ratios), min(ratios), max(ratios)
    rates = (count / statistics.median(ours), count / statistics.median(theirs))
    return Row(what, *rates, unit, middle, low, high, at_least, note)


def in_turn(ways: dict[str, Callable[[], object]], rounds: int, warm: int = 1) -> dict[str, list[float]]:
    """Time each way once per round; the first rounds are not counted. A way may return the seconds that count."""
    found: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(rounds + warm):
        for name, way in ways.items():
            gc.collect()
            started = time.perf_counter()
            said = way()
            taken = said if isinstance(said, float) else time.perf_counter() - started
            if turn >= warm:
                found[name].append(taken)
    return found


class Stepwise:
    """A long call, such as a `fit` of many epochs, that goes on by one epoch whenever it is called.

    So that epochs of two fits are timed in turn, each inside one call as its users make it.
    """

    def __init__(self, call: Callable[[Callable[[float], None]], object]) -> None:
        """Take the call; it calls its argument with the seconds of each epoch, after the epoch."""
        self._go, self._done = threading.Semaphore(0), threading.Semaphore(0)
        self._seconds, self._error, self._ended = 0.0, None, False
        self._thread = threading.Thread(target=self._run, args=(call,), daemon=True)

    def _run(self, call: Callable[[Callable[[float], None]], object]) -> None:
        self._go.acquire()
        try:
            call(self._pause)
        except BaseException as error:  # told to whoever waits
            self._error = error
        self._ended = True
        self._done.release()

    def _pause(self, seconds: float) -> None:
        self._seconds = seconds
        self._done.release()
        self._go.acquire()

    def __call__(self) -> float:
        """Let it do one epoch; return its seconds."""
        if not self._thread.is_alive() and not self._ended:
            self._thread.start()
        self._go.release()
        self._done.acquire()
        if self._error is not None:
            raise self._error
        return self._seconds

    def finish(self) -> None:
        """Let it come to its end."""
        while not self._ended:
            self()


class Child:
    """A script in a process of its own that waits for a line, works, and prints the seconds that count."""

    def __init__(self, script: str, *arguments: object) -> None:
        command = [sys.executable, str(Path(__file__).parent / script), *map(str, arguments)]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )

    def __call__(self) -> float:
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self._process.args} ended with exit code {self._process.wait()}")
        return float(line)

    def end(self) -> None:
        self._process.stdin.close()
        self._process.wait()


def environment() -> dict[str, Any]:
    versions = {}
    for name in _PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    processor = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").is_file():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        processor = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), processor)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "date": time.strftime("%Y-%m-%d"),
        "processor": processor,
        "cores": cores,
        "python": platform.python_version(),
        "system": platform.system(),
        "versions": versions,
    }


def report(name: str, rows: Sequence[Row], short: bool, folder: Path | None) -> int:
    """Print the table of a run, write its JSON file, and return how many rows fall short of what they must show."""
    width = max([len(row.what) for row in rows], default=0)
    print(f"\n{name}{' (short form: says nothing of speed)' if short else ''}")
    print(f"{'':<{width}}  {'ours':>10}  {'theirs':>10}  {'unit':<10}  ratio (lowest to highest)  at least")
    for row in rows:
        limit = "" if row.at_least is None else f"{row.at_least:g}{'' if row.holds or short else '  FALLS SHORT'}"
        spread = f"{row.ratio:.3g} ({row.low:.3g} to {row.high:.3g})"
        print(f"{row.what:<{width}}  {row.ours:>10.4g}  {row.theirs:>10.4g}  {row.unit:<10}  {spread:<25}  {limit}")
        if row.note:
            print(f"{'':<{width}}    {row.note}")
    sys.stdout.flush()
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        said = {"benchmark": name, "short": short, "environment": environment()}
        said["rows"] = [asdict(row) | {"holds": row.holds} for row in rows]
        (folder / f"{name}.json").write_text(json.dumps(_rounded(said), indent=1) + "\n")
    return 0 if short else sum(not row.holds for row in rows)


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.4g}")
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    return [_rounded(item) for item in value] if isinstance(value, list) else value
