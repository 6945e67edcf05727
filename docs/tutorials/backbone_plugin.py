# %% [markdown]
# # Write and publish a backbone
#
# A net of your own in the table beside `cnn`: first in a script, then as a package that others install with pip. It
# takes about a minute on a laptop, and no data are downloaded. All numbers are of **synthetic cells**, drawn on the
# spot, and say nothing about real ones.
#
# ## A backbone is a function and a record
#
# The function gets a symbolic Keras tensor, a batch of images that are scaled already, and returns a feature map
# (batch, height, width, channels), or [tokens or a vector](../guides/plugins.md#the-results-of-a-builder). Pooling,
# head and loss are the library's, the same for all. Keras is imported inside, so that listing backbones does not start
# TensorFlow. This net has no weights to fetch; `weights` is None.

# %%
import dataclasses
import functools
import inspect
from pathlib import Path

import leukemia_dl as ldl
from leukemia_dl.testing import check_backbone


def build(inputs, weights, widths=(16, 32, 64)):
    from keras import layers

    x = inputs
    for width in widths:
        x = layers.Conv2D(width, 3, strides=2, padding="same", use_bias=False)(x)
        x = layers.BatchNormalization()(x)
        x = layers.ReLU()(x)
    return x


# %% [markdown]
# The record holds its name and the inputs that it takes. With `scaling="unit"` pixels are scaled to 0 to 1, as a part
# of the model that cannot be forgotten. `min_size` is the smallest side in pixels that it accepts.

# %%
spec = ldl.BackboneSpec(name="mine", build=build, scaling="unit", native_size=64, min_size=16, parameters=20_000)

# %% [markdown]
# ## In the table
#
# `register_backbone` makes it known to this process; `replace=True` lets the cell be run twice. Trials as short as
# these are done sooner in this process than in processes of their own, hence `executor`.

# %%
ldl.register_backbone(spec, replace=True)
dataset = ldl.Dataset.load("synthetic", subjects=12, images=60)
settings = {"recipe": ldl.Recipe.preset("quick", image_size=32), "folds": [2], "store": "runs/backbone"}
frame = ldl.Benchmark(dataset, ["mine", "cnn"], **settings).run(executor="in-process")
frame[["backbone", "accuracy", "loss", "plugin", "plugin_version", "status"]].round(3)

# %% [markdown]
# ## Check it
#
# `check_backbone` builds small nets on random pixels and looks at sizes, seeds, gradients that reach every weight,
# freezing, mixed precision, saving, and what the record declares.

# %%
try:
    check_backbone(spec)
except AssertionError as error:
    print(error)

# %% [markdown]
# The record is corrected. If all is well, the check says nothing:

# %%
spec = ldl.register_backbone(dataclasses.replace(spec, parameters=23_920), replace=True)
check_backbone(spec)

# %% [markdown]
# ## A changed builder is a new trial
#
# A backbone without a version is named by a digest of the file (in a notebook, of the function) that defines its
# builder, and of the arguments of a `functools.partial`. Here other widths make another net; the other rows stay.

# %%
other = dataclasses.replace(spec, build=functools.partial(build, widths=(8, 16)), parameters=1_464)
ldl.register_backbone(other, replace=True)
ldl.Benchmark(dataset, ["mine", "cnn"], **settings).plan()[["backbone", "status"]]

# %% [markdown]
# The digest does not cover other files or values that `build` reads. After a change there, pass another `version` to
# `register_backbone`, or train all nets again with `run(existing="rerun")`.
#
# ## The same as a package
#
# Three files. The library looks for the entry point in `pyproject.toml`: the group is always `leukemia_dl`, the name
# before the `=` is free, and the module follows. This module has the function from above, and a hook that yields
# records, one or several. The tests are the checks from above, a case for each.

# %%
project = """\
[build-system]
requires = ["hatchling>=1.27"]
build-backend = "hatchling.build"

[project]
name = "leukemia-dl-small"
version = "0.1.0"
description = "A small backbone for leukemia_dl."
license = "MIT"
requires-python = ">=3.11"
dependencies = ["leukemia-dl>=0.1"]

[project.entry-points.leukemia_dl]
small = "leukemia_dl_small"

[tool.hatch.build.targets.wheel]
include = ["leukemia_dl_small.py"]
"""
module = f'''\
"""A small backbone for leukemia_dl."""

from leukemia_dl import BackboneSpec, hookimpl


{inspect.getsource(build)}

@hookimpl
def leukemia_dl_backbones():
    yield BackboneSpec(
        name="small",
        build=build,
        scaling="unit",
        native_size=64,
        min_size=16,
        parameters=23_920,
        title="Small CNN",
        licence="MIT",
        reference="https://example.org/leukemia-dl-small",
    )
'''
tests = """\
from leukemia_dl import get_backbone
from leukemia_dl.testing import parametrize_with_checks


@parametrize_with_checks([get_backbone("small")])
def test_small(spec, check):
    check(spec)
"""
folder = Path("leukemia-dl-small")
folder.mkdir(exist_ok=True)
for name, text in (("pyproject.toml", project), ("leukemia_dl_small.py", module), ("test_small.py", tests)):
    (folder / name).write_text(text)

# %% [markdown]
# Install it, see that it is listed with its package and version, run it beside `cnn`, and run its tests:
#
# ```console needs="a package index"
# pip install ./leukemia-dl-small
# leukemia-dl backbones
# leukemia-dl benchmark -o subjects=12 -o images=60 --backbones small,cnn --image-size 32 --store runs/small
# pip install pytest
# pytest leukemia-dl-small
# ```
#
# Name and version of the package stand in the row of `small`, `plugin` and `plugin_version`, and are part of what names
# the trial. The source is not: **when the net changes, raise the version**, or the store goes on giving the old result.
# While you still work on it, install it again after a change, and run with `--rerun`.
#
# ## Errors, and where they appear
#
# A record that cannot be used, as one with `scaling="imagenet"`, is refused where it is made. A builder that fails
# costs its own row and no other. This one returns a list, which is no tensor:

# %%
wrong = dataclasses.replace(spec, name="wrong", build=lambda inputs, weights: [inputs], parameters=None)
ldl.register_backbone(wrong, replace=True)
frame = ldl.Benchmark(dataset, ["wrong", "cnn"], baselines=[], **settings).run(executor="in-process")
for row in frame.itertuples():
    print(row.backbone, row.status, row.message)

# %% [markdown]
# A package that cannot be imported, or yields something else than `BackboneSpec`, is a row of `ldl.plugin_problems()`
# and a line of `leukemia-dl backbones` and `leukemia-dl doctor`; every other plugin works. If two packages
# provide backbones of the same name, neither is used, and a warning names both: uninstall one.
# [Other problems of plugins](../guides/plugins.md).
#
# ## Publish it
#
# Say in the record under which `licence` code and weights are, and in `reference` where the net comes from;
# `leukemia-dl backbones --format csv` shows both. Write a `README.md` and name it in `pyproject.toml`,
# `readme = "README.md"`. Then build the package and hand it to PyPI, with an account of your own:
#
# ```console needs="a package index and an account there"
# pip install build twine
# python -m build leukemia-dl-small
# twine check leukemia-dl-small/dist/*
# twine upload leukemia-dl-small/dist/*
# ```
#
# **Weights.** Name those that `build` can fetch in the record, `weights=("imagenet",)`. `build` is given that name
# where a recipe asks for it, and fetches the file with its checksum: what `save_weights` wrote of the net without
# scaling and head.
#
# ```python needs="a server that has the weights"
# def build(inputs, weights):
#     import keras
#
#     features = layers_of(inputs)  # the layers, as above
#     if weights is not None:
#         where = "https://example.org/small-imagenet.weights.h5"
#         file = keras.utils.get_file("small-imagenet.weights.h5", where, file_hash="...")  # its SHA-256
#         keras.Model(inputs, features).load_weights(file)
#     return features
# ```
#
# Of weights with a name a trial knows the name and the version of your package, not their content: new weights, new
# version.
#
# ## Where to go from here
#
# - [A data set of your own](data_set_plugin.md), as a package in the same way.
# - [Property tests](property_tests.md), for what examples do not find.
# - [`BackboneSpec`](../reference/api/models.md) and [the checks](../reference/api/testing.md), in full.
