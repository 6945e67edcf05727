# %% [markdown]
# # A cluster: array jobs with SLURM, and Ray
#
# A comparison is many trials that do not depend on each other, so many machines can share it. This page runs a grid in
# parts, stops one of them and goes on, on this machine and on **synthetic cells**, in about a minute. Then it shows the
# same with SLURM and Ray.
#
# ## A file that says it all
#
# Every job has to ask for the same grid, so it is written down once. `threads` is the number of threads of one
# operation on a CPU; without it each job takes as many as its machine has cores. With equal threads, results on CPUs of
# the same model are equal to the bit, wherever a trial runs.

# %%
import subprocess
import sys
import tomllib
from pathlib import Path

import leukemia_dl as ldl

dataset = ldl.Dataset.load("synthetic", root="data/cluster", subjects=12, images=60)
recipe = ldl.Recipe.preset("quick", image_size=32)
bench = ldl.Benchmark(dataset, ["cnn"], recipe=recipe, folds=[2], seeds=[0, 1, 2], threads=2, store="runs/cluster")
bench.to_toml("cluster.toml")
asked = tomllib.loads(Path("cluster.toml").read_text())["benchmark"]
{name: asked[name] for name in ("backbones", "folds", "seeds", "threads", "device")}

# %% [markdown]
# It also names data and store by absolute paths, and the data by a fingerprint: a job that finds other data there
# stops. On a machine with other paths, `--root` and `--store` say where they are.
#
# ## A job runs a part
#
# `--shard 1/3` is the first of three parts: every third trial, counted over the nets and then the baselines. One job:

# %%
command = "leukemia_dl benchmark cluster.toml --shard 1/3 --store runs/cluster"
job = subprocess.run([sys.executable, "-m", *command.split()], capture_output=True, text=True, check=True)
print(*job.stdout.splitlines()[-5:], sep="\n")

# %% [markdown]
# Its table, left out here, has the trials that are finished. The same in Python is `run(shard=...)`. The second job
# is given too little time here, so that its trial is stopped after the first epoch:

# %%
frame = bench.run(shard="2/3", time_limit=0.01, executor="in-process")
frame.loc[frame["status"] == "failed", ["backbone", "seed", "status", "exception", "message"]]

# %% [markdown]
# ## The same line goes on after any interruption
#
# A trial may be stopped by its time limit, by `scancel`, or by a node that broke. It has left the state of its last
# epoch in the store (of an earlier one, where writing it takes long), and goes on from there. Finished trials are not
# run again.

# %%
frame = bench.run(shard="2/3", executor="in-process")
(log,) = (bench.store.root / "logs").glob("cnn-*seed1*/log.txt")
for line in log.read_text().splitlines():
    print(line.partition("Z ")[2].partition(",")[0])

# %% [markdown]
# ## Looking while it runs
#
# A trial is one folder in the store, there whole or not at all, so anybody may read at any time:

# %%
bench.plan()[["backbone", "seed", "status", "trial"]]

# %% [markdown]
# ```console
# leukemia-dl benchmark cluster.toml --plan
# leukemia-dl runs list runs/cluster
# leukemia-dl evaluate runs/cluster --metric balanced_accuracy
# leukemia-dl report runs/cluster
# ```
#
# ## Putting it together
#
# Nothing has to be put together. Each job writes the folders of its trials, and at its end `results.csv` and
# `timings.csv` of all that the store holds. There is no lock and no database, and two jobs that run the same trial do
# no harm: a result stays, and no failure takes its place. The command line also draws the pictures, and leaves the
# report to the job that ends last.
#
# ## Array jobs with SLURM
#
# `examples/slurm/array_job.sh` in the repository, but for its first lines:
#
# ```sh needs="SLURM"
# #SBATCH --array=1-8
# #SBATCH --gpus=1
# #SBATCH --cpus-per-task=4
# #SBATCH --time=04:00:00
# leukemia-dl benchmark "$1" --shard "$SLURM_ARRAY_TASK_ID/$SLURM_ARRAY_TASK_COUNT"
# ```
#
# ```console needs="SLURM"
# sbatch array_job.sh cluster.toml
# ```
#
# If jobs have reached their time limit, run the same line again. With more parts than trials, some jobs find nothing to
# do.
# The data, the store and the cache must be on a file system that all nodes see; `LEUKEMIA_DL_CACHE` names the folder of
# the cache, where decoded images are kept. The first job decodes them for all; of those that begin at the same time
# each does, and one copy is kept.
#
# ## A job per trial, with `submit`
#
# `run(executor=...)` takes anything with `submit(function, argument)`: a pool of processes, dask's `Client`,
# submitit's `AutoExecutor`. One driver hands the trials out, and writes their results. Here a pool of two processes
# runs the remaining trials. Its processes begin by importing the script, so what runs stands behind `if __name__`:

# %%
script = """\
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import leukemia_dl as ldl

if __name__ == "__main__":
    bench = ldl.Benchmark.from_toml("cluster.toml")
    with ProcessPoolExecutor(max_workers=2, mp_context=get_context("spawn")) as pool:
        bench.run(executor=pool)
"""
Path("pool.py").write_text(script)
subprocess.run([sys.executable, "pool.py"], check=True, capture_output=True)
bench.results()[["backbone", "seed", "accuracy", "loss", "balanced_accuracy", "status"]].round(3)

# %% [markdown]
# With submitit, `examples/slurm/submitit_grid.py` does the same on SLURM, a job per trial; `--local` tries it without:
#
# ```console needs="SLURM and submitit"
# pip install submitit
# python submitit_grid.py cluster.toml
# ```
#
# If the driver is stopped, start it again: finished trials are in the store.
#
# ## Ray
#
# ```console needs="a package index"
# pip install "leukemia-dl[ray]"
# ```
#
# ```python needs="Ray"
# import leukemia_dl as ldl
# from leukemia_dl.benchmark import RayExecutor
#
# bench = ldl.Benchmark.from_toml("cluster.toml")
# frame = bench.run(executor=RayExecutor(num_cpus=2, address="auto"))  # cores per trial; the cluster of this machine
# ```
#
# Without `address` Ray starts on this machine alone. On the command line use `--executor ray`, or
# `--executor ray:ADDRESS` for a cluster. A trial takes a GPU if the cluster has any (`num_gpus`). Trials of a
# node that is lost are run again on another. Every node must see the store and the cache folder under the same paths.
#
# ## Where to go from here
#
# - [Long runs](../guides/runs.md): everything that is kept, and all that can break.
# - [A GPU](gpu.md), for each of these jobs.
# - [Reading a report](reading_a_report.md), when the last job is done.
