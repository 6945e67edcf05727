"""Hostile stores and model files against their readers: no crash, no hang, bounded memory.

    python benchmarks/fuzz_stores.py --stores 2000 --models 500

A small store is made once; each input is a copy in which a file or two is damaged, replaced by a pipe, a link, a
folder, a bomb or a sparse file of gigabytes, or holds another value than it did, with checksums to match or not. It is
read as `runs list`, `runs verify`, `evaluate` and (every 50th) `report` do. The models are damaged copies of
a small one, loaded by `load_classifier` and asked to predict. Each must end in a result or in an error of this library,
within two seconds of processor time (a report: 60). Memory is the peak of this process above its start. Exit status 1
if any of that does not hold.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import faulthandler
import functools
import hashlib
import io
import json
import logging
import os
import re
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

import leukemia_dl as ldl
from leukemia_dl import reporting
from leukemia_dl.benchmark import Store
from leukemia_dl.benchmark.run_files import read_run
from leukemia_dl.cli import results
from leukemia_dl.errors import LeukemiaDLError

ROOT = Path(__file__).parents[1]
MODEL = ROOT / "tests" / "models" / "saved_on_tensorflow.keras"
SLOWEST_SECONDS = 2.0
HANGS_SECONDS = 20
MOST_MEMORY_MB = 2_000
ODD: tuple[Any, ...] = (
    None, True, -1, 0, 2**31, 40_000_000, 10**19, 1e308, -0.5, "", "x" * 5_000, "../../etc", "\x1b[31m", "=1+1",
    "\ud800", [], {}, [[[[]]]], [0] * 1_000, [10_000, 10_000], {"a": {"b": []}}, "nan", "Lambda", "Hashing", "Dense",
    "Conv2D", "UpSampling2D", "ZeroPadding2D", "Embedding", "GRU", "Functional",
)  # fmt: skip


class Hangs(BaseException):
    """An input took too long."""


def _alarm(*_: object) -> None:
    raise Hangs


def store(folder: Path) -> Path:
    """Write a small store with two nets and baselines, and return its folder."""
    sys.path.insert(0, str(ROOT / "tests" / "helpers"))
    import stores

    bench = stores.made_up(folder / "store", stores.cells(40, 20), ("cnn",), protocol="holdout")
    for trial in (bench.store.root / "trials").glob("cnn*"):
        shutil.copy(MODEL, trial / "model.keras")
        _sum_up(trial)
    (bench.store.root / "predictions.csv").write_text(bench.predictions().to_csv(index=False))
    return Path(bench.store.root)


def _sum_up(folder: Path) -> None:
    """Write the checksums of a trial's folder anew."""
    there = [path for path in sorted(folder.iterdir()) if path.name != "SHA256SUMS" and _is_small(path)]
    lines = [f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n" for path in there]
    if (sums := folder / "SHA256SUMS").is_file():
        sums.write_text("".join(lines))


def _is_small(path: Path) -> bool:
    return path.is_file() and path.stat().st_size < 100_000_000


@functools.cache
def bomb(megabytes: int) -> bytes:
    """Return `megabytes` of zeros, as an array in an archive."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for name in ("sides", "samples", "labels", "probabilities", "tta"):
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                header = io.BytesIO()
                np.lib.format.write_array_header_1_0(
                    header, {"descr": "|u1", "fortran_order": False, "shape": (megabytes << 18,)}
                )
                member.write(header.getvalue())
                for _ in range(megabytes if name == "probabilities" else 1):
                    member.write(b"\0" * (1 << 18))
    return file.getvalue()


def bent(rng: np.random.Generator, value: Any, depth: int = 0) -> Any:
    """Return a JSON value in which one part is another, is missing, or is there twice."""
    if isinstance(value, dict) and value and rng.random() < 0.97 - 0.05 * depth:
        key = list(value)[int(rng.integers(len(value)))]
        if rng.random() < 0.05:
            return {k: v for k, v in value.items() if k != key}
        return value | {key: bent(rng, value[key], depth + 1)}
    if isinstance(value, list) and value and rng.random() < 0.97 - 0.05 * depth:
        place = int(rng.integers(len(value)))
        if rng.random() < 0.1:
            return value[:place] + value[place + 1 :] if rng.random() < 0.5 else [*value, value[place]]
        return [*value[:place], bent(rng, value[place], depth + 1), *value[place + 1 :]]
    return ODD[int(rng.integers(len(ODD)))]


def damaged(rng: np.random.Generator, data: bytes) -> bytes:
    """Return bytes with flips, cut off, or with noise in them."""
    content = bytearray(data)
    way = int(rng.integers(4)) if content else 3
    if way == 0:
        for place in rng.integers(0, len(content), int(rng.integers(1, 12))):
            content[place] ^= 1 << int(rng.integers(8))
    elif way == 1:
        del content[int(rng.integers(len(content))) :]
    elif way == 2:
        place = int(rng.integers(len(content)))
        content[place : place + int(rng.integers(1, 40))] = rng.bytes(int(rng.integers(40)))
    else:
        content = bytearray(rng.bytes(int(rng.integers(100))))
    return bytes(content)


def in_text(rng: np.random.Generator, path: Path) -> bytes:
    """Return a file of JSON, TOML or CSV with another value in it."""
    text = path.read_text(encoding="utf-8", errors="surrogateescape")
    odd = ODD[int(rng.integers(len(ODD)))]
    if path.suffix == ".json":
        return json.dumps(bent(rng, json.loads(text))).encode()
    if path.suffix == ".toml":
        lines = text.splitlines(keepends=True)
        place = int(rng.integers(len(lines)))
        said = "" if odd is None else re.sub(r"(?s).*", lambda _: json.dumps(odd) + "\n", "x", count=1)
        lines[place] = re.sub(r"=.*\n", lambda _: f"= {said}", lines[place]) if rng.random() < 0.8 else ""
        return "".join(lines).encode("utf-8", "surrogateescape")
    rows = [line.split(",") for line in text.splitlines()]
    row = int(rng.integers(len(rows)))
    if rng.random() < 0.2:
        rows = rows[:row] if rng.random() < 0.5 else [*rows, rows[row]]
    elif rows and rows[row]:
        rows[row][int(rng.integers(len(rows[row])))] = str(odd).replace("\ud800", "\udc80")
    return "\n".join(",".join(parts) for parts in rows).encode("utf-8", "surrogateescape")


def spoil(rng: np.random.Generator, folder: Path, megabytes: int) -> str:
    """Damage one file of a store, and return what was done to which."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and not path.is_symlink() and _is_small(path)]
    path = files[int(rng.integers(len(files)))]
    kinds = ["bytes", "value", "gone", "fifo", "folder", "loop", "device", "sparse", "bomb", "copy"]
    kind = str(rng.choice(kinds, p=[0.3, 0.4, 0.04, 0.04, 0.03, 0.03, 0.03, 0.04, 0.04, 0.05]))
    if kind == "value" and path.suffix not in (".json", ".toml", ".csv"):
        kind = "bytes"
    if kind in ("bytes", "value"):
        with contextlib.suppress(ValueError):  # damaged before
            path.write_bytes(damaged(rng, path.read_bytes()) if kind == "bytes" else in_text(rng, path))
    elif kind == "bomb":
        path = next((file for file in files if file.name == "probabilities.npz"), path)
        path.write_bytes(bomb(megabytes))
    elif kind == "sparse":
        os.truncate(path, 5_000_000_000)
    elif kind == "copy" and path.parent != folder:
        target = path.parent.parent / f"{path.parent.name}-copy"
        with contextlib.suppress(OSError):  # there is a pipe in it
            shutil.copytree(path.parent, target, symlinks=True, dirs_exist_ok=True, copy_function=shutil.copyfile)
    elif kind != "copy":
        path.unlink()
        if kind == "fifo":
            os.mkfifo(path)
        elif kind == "folder":
            path.mkdir()
        elif kind == "loop":
            path.symlink_to(path.name)
        elif kind == "device":
            path.symlink_to("/dev/zero")
    return f"{kind} {path.relative_to(folder)}"


def read(folder: Path, report: bool = False) -> list[Callable[[], object]]:
    """Return what the commands do with a store, one after the other."""

    def frames() -> None:
        run = read_run(folder)
        parts = (run.results, run.timings, run.histories, run.predictions)
        assert run.others + sum(map(len, parts)) >= 0

    def listed() -> None:
        with contextlib.redirect_stdout(io.StringIO()):
            results.list_records(folder)

    ways: list[Callable[[], object]] = [
        frames,
        listed,
        lambda: Store.open(folder).verify(),
    ]
    return [*ways, lambda: reporting.write_report(folder, show_progress=False)] if report else ways


def spoiled_model(rng: np.random.Generator, megabytes: int) -> tuple[str, bytes]:
    """Return what was done to a model, and its bytes."""
    content = MODEL.read_bytes()
    kind = str(rng.choice(["bytes", "config", "settings", "member", "bomb"], p=[0.25, 0.45, 0.12, 0.12, 0.06]))
    if kind == "bytes":
        return kind, damaged(rng, content)
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    names = {"config": "config.json", "settings": "leukemia_dl.json"}
    name = names.get(kind, sorted(members)[int(rng.integers(len(members)))])
    if kind == "bomb":
        members[name] = b" " * (megabytes << 20) if rng.random() < 0.5 else members[name] + b" " * (megabytes << 20)
    elif kind == "member":
        members[name] = damaged(rng, members[name])
    else:
        for _ in range(int(rng.integers(1, 4))):
            members[name] = json.dumps(bent(rng, json.loads(members[name]))).encode()
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for member, data in members.items():
            if rng.random() > 0.01:
                way = zipfile.ZIP_STORED if len(data) < 1_000_000 and rng.random() < 0.95 else None  # as Keras does
                archive.writestr(member, data, way)
    return f"{kind} {name}", file.getvalue()


@contextlib.contextmanager
def _in_time(seconds: int) -> Iterator[None]:
    before = signal.signal(signal.SIGALRM, _alarm)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def _try(found: dict[str, Any], what: str, ways: list[Callable[[], object]], limit: float = SLOWEST_SECONDS) -> None:
    """Do what readers do with one input, and note how each ends."""
    for way in ways:
        started, outcome = time.process_time(), "read"
        try:
            with _in_time(HANGS_SECONDS * (1 if limit == SLOWEST_SECONDS else 20)), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                way()
        except LeukemiaDLError:
            outcome = "our error"
        except Hangs:
            outcome = "hang"
            found["crashes"].append(f"{what}: hangs: {traceback.format_exc(limit=-3)}")
        except Exception as error:
            outcome = "crash"
            found["crashes"].append(f"{what}: {type(error).__name__}: {error} {traceback.format_exc(limit=-3)}")
        seconds = time.process_time() - started
        if seconds > limit:
            found["crashes"].append(f"{what}: {seconds:.1f} s of processor time, {outcome}")
        if seconds > found["slowest"] and limit == SLOWEST_SECONDS:
            found["slowest"], found["slow"] = seconds, f"{what}, {outcome}"
        found["counts"][f"{what.split()[1]}: {outcome}"] += 1


def fuzz(
    stores: int, models: int, seed: int = 0, megabytes: int = 64, reports: int = 0, watch: bool = False
) -> dict[str, Any]:
    """Return counts per outcome, what crashed, hung or was slow, the slowest input in seconds, and memory in MB.

    A report is written of every `reports`-th store. `watch` ends the process if an input cannot be interrupted.
    """
    found: dict[str, Any] = {"counts": collections.Counter(), "crashes": [], "slowest": 0.0, "slow": ""}
    with tempfile.TemporaryDirectory() as folder:
        whole, copy = store(Path(folder)), Path(folder) / "copy"
        for way in (*read(whole, bool(reports)), *([lambda: _ask(MODEL)] if models else ())):
            way()  # what is whole is read; it also imports everything, which takes long
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        for number in range(stores):
            rng = np.random.default_rng([seed, 0, number])
            if watch:
                faulthandler.dump_traceback_later(25 * HANGS_SECONDS, exit=True)
            shutil.copytree(whole, copy)
            done = [spoil(rng, copy, megabytes) for _ in range(int(rng.integers(1, 3)))]
            for trial in copy.glob("trials/*") if rng.random() < 0.7 else ():
                if trial.is_dir():
                    with contextlib.suppress(OSError):
                        _sum_up(trial)
            what = f"store {' and '.join(done)} ({number})"
            _try(found, what, read(copy))
            if reports and number % reports == 0:
                _try(found, what, read(copy, True)[-1:], 60.0)
            shutil.rmtree(copy)
        for number in range(models):
            rng = np.random.default_rng([seed, 1, number])
            if watch:
                faulthandler.dump_traceback_later(25 * HANGS_SECONDS, exit=True)
            kind, content = spoiled_model(rng, megabytes)
            file = Path(folder) / "hostile.keras"
            file.write_bytes(content)
            del content
            before = (
                max(before, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss) if kind.startswith("bomb") else before
            )
            _try(found, f"model {kind} ({number})", [functools.partial(_ask, file)])
        faulthandler.cancel_dump_traceback_later()
    found["memory_mb"] = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    found["counts"] = dict(sorted(found["counts"].items()))
    return found


def _ask(file: Path) -> None:
    ldl.load_classifier(file).predict(np.zeros((1, 20, 20, 3), np.uint8))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stores", type=int, default=2_000)
    parser.add_argument("--models", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--megabytes", type=int, default=3_000, help="what a bomb unpacks to")
    options = parser.parse_args()
    logging.getLogger("leukemia_dl").setLevel(logging.ERROR)
    resource.setrlimit(resource.RLIMIT_AS, (12_000_000_000, resource.getrlimit(resource.RLIMIT_AS)[1]))
    started = time.monotonic()
    found = fuzz(options.stores, options.models, options.seed, options.megabytes, reports=50, watch=True)
    seconds = time.monotonic() - started
    print(f"{options.stores:,} stores and {options.models:,} models, seed {options.seed}, in {seconds:.0f} s")
    for name, count in found["counts"].items():
        print(f"  {name:<22}{count:>9,}")
    print(f"crashes, hangs, slow ones  {len(found['crashes'])}")
    print(f"slowest  {found['slowest']:.3f} s of processor time (at most {SLOWEST_SECONDS:g}): {found['slow']}")
    print(f"peak memory above the start {found['memory_mb']:.0f} MB (at most {MOST_MEMORY_MB:,})")
    for crash in found["crashes"][:40]:
        print(f"  {ascii(crash) if not crash.isascii() else crash}")
    return 0 if not found["crashes"] and found["memory_mb"] <= MOST_MEMORY_MB else 1


if __name__ == "__main__":
    sys.exit(main())
