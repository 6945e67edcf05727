"""A grid that is killed at random moments, driver and workers, and started again each time, until it is done."""

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

HELPERS = Path(__file__).parent
PROGRAM = f"""
import sys
sys.path.insert(0, {str(HELPERS)!r})
import grids
import leukemia_dl as ldl
root, store, seeds, executor = sys.argv[1:]
bench = ldl.Benchmark(grids.dataset(root), grids.register(grids.tiny), recipe=grids.RECIPE, store=store,
    folds=[0, 1, 2], seeds=range(int(seeds)), baselines=["majority"])
workers = {{"workers": 2}} if executor == "processes" else {{}}
print(*bench.run(executor=executor, show_progress=False, **workers)["status"], flush=True)
"""


def start(root, store, seeds, executor="processes"):
    command = [sys.executable, "-c", PROGRAM, str(root), str(store), str(seeds), executor]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finished(store):
    """Folder of each trial whose record says ok, and what tells whether it was written again."""
    found = {}
    for path in Path(store).glob("trials/[!.]*/record.json"):
        with contextlib.suppress(OSError, ValueError):  # moved or written at this moment
            if json.loads(path.read_text())["status"] == "ok":
                status = path.stat()
                found[path.parent.name] = (status.st_ino, status.st_mtime_ns)
    return found


def workers_of(process):
    """Numbers of the child processes of a driver."""
    with contextlib.suppress(OSError):
        return [int(n) for n in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]
    return []


def soak(root, store, seeds, kills, longest, seed=0, tell=lambda text: None):
    """Kill `kills` times, at moments drawn from [0, longest) seconds, and then let it end.

    Returns what a test asserts on: how many of each kind of kill, how many runs were needed, and the status line of
    the last one.
    """
    draw, counts, runs = random.Random(seed), {"driver": 0, "worker": 0, "all": 0, "idle": 0}, 1
    process, known = start(root, store, seeds), {}

    def look():
        now = finished(store)
        again = [name for name, stamp in known.items() if now.get(name) != stamp]
        assert not again, f"finished trials ran again or were lost: {again}"
        known.update(now)

    for number in range(kills):
        time.sleep(draw.uniform(0, longest))
        look()
        if process.poll() is not None:
            process.communicate()
            process, runs = start(root, store, seeds), runs + 1
            time.sleep(draw.uniform(0, longest))
        children = workers_of(process)
        kind = draw.choice(["driver", "worker", "all"]) if children else "driver"
        kind = kind if process.poll() is None else "idle"
        for victim in {"driver": [process.pid], "worker": [draw.choice(children)] if children else []}.get(
            kind, [process.pid, *children]
        ):
            with contextlib.suppress(ProcessLookupError):
                os.kill(victim, signal.SIGKILL)
        counts[kind] += 1
        if kind in ("driver", "all"):
            process.communicate()
            process, runs = start(root, store, seeds), runs + 1
        tell(f"{number + 1}: {kind} killed; {len(known)} trials finished, {runs} runs begun")
    for _ in range(4):  # one to end what is open, one for trials that a killed worker has left as failed
        output, errors = process.communicate(timeout=1800)
        look()
        assert process.returncode == 0, errors
        if set(output.split()) == {"ok"}:
            break
        process, runs = start(root, store, seeds), runs + 1
    process.kill()
    process.communicate()
    return counts, runs, output.split()


def undisturbed(root, store, seeds):
    output, errors = start(root, store, seeds, "in-process").communicate(timeout=1800)
    assert set(output.split()) == {"ok"}, errors
