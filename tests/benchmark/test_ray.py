"""Ray: a real cluster of several nodes on this machine, one of which is lost while trials run on it."""

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import grids
import leukemia_dl as ldl
from leukemia_dl.benchmark.executors import choose_executor
from leukemia_dl.models import backbones as registry

pytest.importorskip("ray")
HELPERS = Path(__file__).parents[1] / "helpers"
PROGRAM = f"""
import sys
sys.path.insert(0, {str(HELPERS)!r})
import threading, time
from pathlib import Path
import ray
from ray.cluster_utils import Cluster
import grids
import leukemia_dl as ldl
from leukemia_dl.benchmark import RayExecutor

root, store, kind = sys.argv[1:]
here = {{"node_ip_address": "127.0.0.1"}}
cluster = Cluster(initialize_head=True, head_node_args={{"num_cpus": 0, "include_dashboard": False, **here}})
nodes = [cluster.add_node(num_cpus=1, object_store_memory=100_000_000, **here) for _ in range(2)]
ray.init(address=cluster.address, log_to_driver=False)

def lose_a_node():
    end = time.monotonic() + 60
    while time.monotonic() < end and sum(1 for _ in Path(store).glob("logs/*/log.txt")) < 2:
        time.sleep(0.01)
    cluster.remove_node(nodes[1], allow_graceful=False)
    print("lost a node", flush=True)

builders, grid = [grids.tiny], {{"folds": [0, 2], "seeds": [0, 1]}}
if kind == "broken":
    builders, grid = [grids.tiny, grids.raises, grids.exits], {{"folds": [2]}}
bench = ldl.Benchmark(grids.dataset(root), grids.register(*builders), recipe=grids.RECIPE, store=store, **grid)
if kind == "lost":
    threading.Thread(target=lose_a_node).start()
executor = RayExecutor(num_cpus=1, max_retries=1 if kind == "broken" else 3)
frame = bench.run(executor=executor, show_progress=False)
print("nodes", sum(node["Alive"] for node in ray.nodes()), flush=True)
for row in frame.itertuples():
    print("row", row.backbone, row.status, row.exception, flush=True)
ray.shutdown()
cluster.shutdown()
"""


@pytest.fixture(scope="module")
def expected(synthetic_root, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(registry, "_registered", {})
        names = grids.register(grids.tiny)
        store = tmp_path_factory.mktemp("serial")
        bench = ldl.Benchmark(
            grids.dataset(synthetic_root), names, recipe=grids.RECIPE, store=store, folds=[0, 2], seeds=[0, 1]
        )
        bench.run(executor="in-process", show_progress=False)
    return (store / "results.csv").read_bytes()


def run(root, store, kind):
    # Without this Ray gives nodes the address of the machine instead of that of the loopback.
    environment = os.environ | {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "RAY_USAGE_STATS_ENABLED": "0"}
    command = [sys.executable, "-c", PROGRAM, str(root), str(store), kind]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, start_new_session=True
    )
    try:
        output, errors = process.communicate(timeout=180)
    finally:
        # Ray's own processes too, whatever happened.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 0, errors[-3000:]
    return output.splitlines()


@pytest.mark.slow
def test_a_lost_node_costs_no_trial_and_the_table_is_that_of_the_serial_run(synthetic_root, tmp_path, expected):
    lines = run(synthetic_root, tmp_path, "lost")
    assert "lost a node" in lines
    assert "nodes 2" in lines
    assert (tmp_path / "results.csv").read_bytes() == expected
    begun = [log.read_text().count("begins in process") for log in tmp_path.glob("logs/*/log.txt")]
    assert len(begun) == 4
    assert max(begun) >= 2, "no trial ran on the node that was lost"


@pytest.mark.slow
def test_failures_are_rows(synthetic_root, tmp_path):
    lines = run(synthetic_root, tmp_path, "broken")
    assert [line for line in lines if line.startswith("row")][:3] == [
        "row tiny ok ", "row raises failed PluginError", "row exits failed WorkerError",
    ]  # fmt: skip
    assert not (tmp_path / "unfinished").exists()


@pytest.mark.slow
def test_it_starts_on_this_machine_and_imports_nothing_from_the_current_folder(
    synthetic_root, tmp_path, hostile_folder
):
    """20.43 and 20.36: without an address no cluster is joined that the machine names."""
    folder, seen = hostile_folder
    script = tmp_path / "script.py"
    script.write_text(f"""
import sys
sys.path.insert(0, {str(HELPERS)!r})
import grids
import leukemia_dl as ldl
bench = ldl.Benchmark(grids.dataset({str(synthetic_root)!r}), grids.register(grids.tiny), recipe=grids.RECIPE,
    baselines=[], store={str(tmp_path / "store")!r}, folds=[2])
print(*bench.run(executor="ray", show_progress=False)["status"])
""")
    environment = os.environ | {"RAY_ADDRESS": "127.0.0.1:1", "RAY_USAGE_STATS_ENABLED": "0"}
    ran = subprocess.run([sys.executable, script], capture_output=True, text=True, cwd=folder, env=environment)
    assert ran.stdout.split() == ["ok"], ran.stderr
    assert seen() == []


def test_a_cluster_needs_its_address():
    """20.43: the address of a cluster is part of the executor's name."""
    assert choose_executor("ray", None, 1).executor.address is None
    assert choose_executor("ray:10.0.0.1:6379", None, 1).executor.address == "10.0.0.1:6379"
