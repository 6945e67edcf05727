"""The walk of a run through the code: one net and one baseline in this process, traced by `sys.setprofile`.

    python benchmarks/walk.py            (the small `cnn`, 36 synthetic images, one epoch; the baseline `majority`)
    python benchmarks/walk.py --trace    (also every call that changes file, in order)

It prints how many files of `src` the run enters, how often the file changes from one call to the next, the files in
the order of their first call, and the pairs of files between which most changes are. Every module is imported before,
so that imports do not count. Files are those of all threads, changes those of the main thread. Comprehensions, lambdas
and the second and later steps of a generator are no calls.
"""

from __future__ import annotations

import argparse
import importlib
import pkgutil
import sys
import tempfile
import threading
from collections import Counter
from pathlib import Path
from types import FrameType
from typing import Any

import leukemia_dl as ldl

SRC = str(Path(ldl.__file__).parent)
MOST_FILES, MOST_CHANGES = 35, 250


class Walk:
    """The calls of functions of `src`."""

    def __init__(self) -> None:
        """Begin with no call."""
        self.files: dict[str, None] = {}  # in the order of their first call
        self.functions: dict[tuple[str, str], None] = {}
        self.changes: Counter[tuple[str, str]] = Counter()
        self.trace: list[str] = []
        self._last: str | None = None
        self._main = threading.main_thread()

    def __call__(self, frame: FrameType, event: str, _: Any) -> None:
        """Count a call, as `sys.setprofile` asks for it."""
        code = frame.f_code
        if event != "call" or not code.co_filename.startswith(SRC) or code.co_name.startswith("<"):
            return
        if code.co_code[frame.f_lasti + 1] & 3:  # the argument of RESUME: not 0 where a generator goes on
            return
        file = code.co_filename[len(SRC) + 1 :]
        self.files.setdefault(file)
        self.functions.setdefault((file, code.co_qualname))
        if threading.current_thread() is not self._main:
            return
        if self._last not in (None, file):
            self.changes[self._last, file] += 1
            self.trace.append(f"{file}: {code.co_qualname}")
        self._last = file


def traced_run(store: Path) -> Walk:
    """Return the walk of one run, its benchmark made in it."""
    packages = list(pkgutil.walk_packages([SRC], "leukemia_dl."))
    for module in packages:
        if not module.name.endswith("__main__") and ".testing" not in module.name:
            importlib.import_module(module.name)
    importlib.import_module("keras")
    dataset = ldl.Dataset.load("synthetic", subjects=12, images=36, preliminary_images=12, final_images=2)
    recipe = ldl.Recipe.preset("quick", image_size=32, epochs=1)
    benchmark_class, walk = ldl.Benchmark, Walk()  # the name imports its module
    threading.setprofile(walk)
    sys.setprofile(walk)
    try:
        bench = benchmark_class(dataset, ["cnn"], recipe=recipe, baselines=["majority"], store=store)
        bench.run(executor="in-process", show_progress=False)
    finally:
        sys.setprofile(None)
        threading.setprofile(None)
    return walk


def main() -> int:
    """Trace a run, print it, and return 1 if it is longer than it may be."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trace", action="store_true", help="print every call that changes file, in order")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        walk = traced_run(Path(folder))
    files, changes = len(walk.files), sum(walk.changes.values())
    print(f"files: {files} (at most {MOST_FILES})")
    print(f"functions: {len(walk.functions)}")
    print(f"changes of file: {changes} (at most {MOST_CHANGES})")
    print("\nFiles in the order of their first call:")
    for number, file in enumerate(walk.files, 1):
        print(f"{number:4} {file:<34} {sum(n for (_, to), n in walk.changes.items() if to == file):4} times entered")
    print("\nMost changes:")
    for (source, to), count in walk.changes.most_common(25):
        print(f"{count:4} {source} -> {to}")
    if options.trace:
        print("\nCalls that change file:")
        print("\n".join(f"     {call}" for call in walk.trace))
    return int(files > MOST_FILES or changes > MOST_CHANGES)


if __name__ == "__main__":
    sys.exit(main())
