# %% [markdown]
# # A GPU, with TensorFlow, JAX or torch
#
# Which packages to install, how to see that a GPU is used, and what changes in the results. The cells run anywhere
# and are done in about half a minute; those of this page ran on a CPU. All data are **synthetic cells**.
#
# **Not run yet:** the GPU paths were written from the documentation of TensorFlow, JAX and Keras, and the
# project has not run them yet. This page says what they were written to do. On CPUs the tests run on
# TensorFlow and on JAX.
#
# ## One backend, and its GPU packages
#
# TensorFlow is the default. Its CUDA packages come by an extra:
#
# ```console needs="a package index and an NVIDIA GPU"
# pip install "leukemia-dl[gpu]"
# ```
#
# For JAX or torch instead, install it, and set `KERAS_BACKEND` before Python starts. TensorFlow is installed all the
# same, and computes nothing then. (The extra `leukemia-dl[jax]` is JAX for CPUs.)
#
# ```console needs="a package index and an NVIDIA GPU"
# pip install leukemia-dl "jax[cuda12]"
# export KERAS_BACKEND=jax
# ```
#
# ```console needs="a package index and an NVIDIA GPU"
# pip install "leukemia-dl[torch]"
# export KERAS_BACKEND=torch
# ```
#
# ## Is it seen?
#
# `leukemia-dl doctor` says which backend there is, which devices it sees and in which precision nets would run, and
# what to do where there is a driver but no GPU. On the machine that made this page, without its folders:

# %%
import subprocess
import sys

import leukemia_dl as ldl

doctor = subprocess.run([sys.executable, "-m", "leukemia_dl", "doctor"], capture_output=True, text=True)
print(*(line for line in doctor.stdout.splitlines() if not line.startswith(("Cache", "Here"))), sep="\n")

# %% [markdown]
# ## Where a net runs
#
# `device="auto"` takes the first GPU, and the CPU where there is none. To be sure, ask for a device by name, `"gpu"`,
# `"gpu:1"` or `"cpu"`: a missing device is an error before the first trial. With a GPU this cell trains on it.

# %%
dataset = ldl.Dataset.load("synthetic", subjects=12, images=60)
recipe = ldl.Recipe.preset("quick", image_size=32)
settings = {"folds": [2], "baselines": [], "store": "runs/gpu"}
try:
    ldl.Benchmark(dataset, ["cnn"], recipe=recipe, device="gpu", **settings).run()
except ldl.errors.BackendError as error:
    print(error)

# %% [markdown]
# Every row says what it was:

# %%
frame = ldl.Benchmark(dataset, ["cnn"], recipe=recipe, **settings).run()
frame[["backbone", "backend", "device", "precision", "batch_size", "deterministic"]].transpose()

# %% [markdown]
# The backend is part of what names a trial, the device is not: a trial that the store holds from a CPU is not run again
# on a GPU. To compare two devices, give each a store. A trained net is bound to neither: saved with one backend, it can
# be loaded with another.
#
# On the command line it is `--device gpu`, beside the same settings.
#
# ## Precision
#
# With `precision="auto"` nets compute in bfloat16 where the GPU has it (NVIDIA Ampere or later) and in float32
# elsewhere; weights, head and loss are float32 always. `precision="float32"` in a recipe forbids it. Emulated
# precisions are refused:

# %%
try:
    mixed = ldl.Recipe.preset("quick", image_size=32, precision="mixed_bfloat16")
    ldl.Benchmark(dataset, ["cnn"], recipe=mixed, **settings).run()
except ldl.errors.SettingsError as error:
    print(error)

# %% [markdown]
# ## Repeatable results
#
# On one CPU equal settings give equal bits ([with one exception](../guides/training.md#the-same-bits)). On a GPU that
# is not promised: sums may be added up in another order each time, and training makes more of the last digits. The
# column `deterministic` says which it was. Splits, the order of the images and how they are turned come from the seed,
# by numpy, on any device. So do not compare two GPU runs by one number each: take several seeds, and look at the
# intervals.
#
# ```console needs="a GPU"
# leukemia-dl benchmark --backbones cnn,resnet50 --device gpu --seeds 0,1,2 --store runs/gpu-seeds
# leukemia-dl evaluate runs/gpu-seeds --metric balanced_accuracy
# ```
#
# ## When memory runs out
#
# The trial is a failed row, and its message names the batch size and half of it to try. TensorFlow takes memory as it
# is needed, so that others can use the same GPU.
#
# ```python needs="a GPU"
# recipe = ldl.Recipe.preset("from_scratch", image_size=224, batch_size=256)
# bench = ldl.Benchmark(dataset, ["cnn", "xception"], recipe=recipe, device="gpu", store="runs/gpu-large")
# bench.run()
# ```
#
# ## Several GPUs
#
# Each GPU runs its own trial: `run()` does this from two trials on. A single trial uses one GPU; where a batch
# does not fit into its memory, use a smaller batch.
#
# ## How fast is it?
#
# To measure your GPU, beside Keras's `fit` and a PyTorch loop, in a clone of the repository:
#
# ```console needs="a GPU"
# python benchmarks/gpu.py
# python -m pytest -m gpu
# ```
#
# The second line runs the tests that only a GPU can answer.
#
# ## Where to go from here
#
# - [Speed](../guides/speed.md): work that is done once, and rates measured on a CPU.
# - [A cluster](cluster.md), for many GPUs on many machines.
# - [Fine-tune and calibrate](finetune_and_calibrate.md), which is where a GPU pays.
