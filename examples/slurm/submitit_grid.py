"""A grid on a SLURM cluster: every trial is a job, submitted by submitit, on a file system that all nodes see.

pip install submitit leukemia-dl
python submitit_grid.py runs/cluster.toml          # on the login node, in tmux or as a small job itself
python submitit_grid.py runs/cluster.toml --local  # the same on this machine, to try it

The file is what `Benchmark.to_toml` writes. If this script is stopped or dies, start it again: finished trials are in
the store, and those that were running go on from their last epoch.
"""

import argparse

import submitit

import leukemia_dl as ldl

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("settings")
parser.add_argument("--local", action="store_true")
parser.add_argument("--partition", default="gpu")
options = parser.parse_args()

bench = ldl.Benchmark.from_toml(options.settings)
executor = submitit.AutoExecutor(bench.store.root / "submitit", cluster="local" if options.local else None)
executor.update_parameters(timeout_min=240, cpus_per_task=4, name="leukemia_dl")
if not options.local:
    executor.update_parameters(slurm_partition=options.partition, gpus_per_node=1)
print(bench.plan().groupby("status").size().to_string())
frame = bench.run(executor=executor)
print(frame[["backbone", "fold", "seed", "accuracy", "loss", "status"]].to_string())
