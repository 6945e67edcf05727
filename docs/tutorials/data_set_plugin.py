# %% [markdown]
# # Add a data set
#
# A plugin gives a data set a name for `Dataset.load("tiny_blood", root=...)`. It is one module and a line that names
# it. This page writes one, makes a package of it, uses it and breaks it. It takes under a minute.
#
# The layout is that of BloodMNIST (MedMNIST v2), 17,092 blood cells of eight classes in one npz file: `train_images`,
# uint8 (n, 28, 28, 3), `train_labels` (n, 1), and the same for `val` and `test`. The repository has a whole plugin for
# it, `examples/bloodmnist`. Ours reads a small file in this layout, which the first cell makes. **Its pixels are
# synthetic**: noise, and a square that is brighter in one class. No number here says anything about real cells.

# %%
import sys
from pathlib import Path

import numpy as np

import leukemia_dl as ldl
from leukemia_dl import plugins

random = np.random.default_rng(0)
arrays = {}
for side, count in {"train": 80, "val": 30, "test": 40}.items():
    labels = random.integers(0, 2, (count, 1), dtype=np.uint8)
    images = random.integers(90, 130, (count, 28, 28, 3), dtype=np.uint8)
    images[:, 10:18, 10:18] += 20 * labels[:, :, None, None]
    arrays |= {f"{side}_images": images, f"{side}_labels": labels}
np.savez("tiny_blood.npz", **arrays)

# %% [markdown]
# ## The module
#
# Three parts. `INFO` is what the authors say of their data: licence, citation, classes in the order of their numbers,
# how many images there should be. A function reads the place that the user names, and returns a `Dataset`. A function
# marked `hookimpl` yields both under a name; it is called at each look-up, so it reads nothing.

# %%
module = """
import zipfile

import numpy as np
from leukemia_dl import Dataset, DatasetInfo, DatasetSource, hookimpl
from leukemia_dl.errors import DataError

SIDES = ("train", "val", "test")
INFO = DatasetInfo(
    name="tiny_blood",
    title="Tiny blood (synthetic pixels)",
    licence="none needed",
    citation="drawn by a program",
    class_names=("lymphocyte", "monocyte"),
    synthetic=True,
    declared=(("images", 150),),
)


def read_tiny_blood(root):
    try:
        with np.load(root, allow_pickle=False) as file:
            parts = {side: file[f"{side}_images"] for side in SIDES}
            labels = np.concatenate([file[f"{side}_labels"] for side in SIDES])
        images = np.concatenate(list(parts.values()))
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        wanted = "train_images, uint8 (n, 28, 28, 3), train_labels (n, 1), and the same for val and test"
        raise DataError(f"{root.name} cannot be read: {error}. Wanted: an npz file with {wanted}.") from error
    samples = [f"{side}/{i:05}" for side, part in parts.items() for i in range(len(part))]
    splits = [side for side, part in parts.items() for _ in part]
    return Dataset.from_arrays(images, labels, INFO.class_names, INFO, samples=samples, splits=splits)


@hookimpl
def leukemia_dl_datasets():
    yield DatasetSource("tiny_blood", read_tiny_blood, INFO)
"""

# %% [markdown]
# - If something is wrong with a file, the error is a `DataError` that names the value and the allowed ones.
#   `from_arrays` checks the rest: types, lengths, labels. `allow_pickle=False`, numpy's default, is a must:
#   unpickling a file can run anything.
# - A sample's id is its side and its number there: the same on every machine, wherever the file lies.
# - `splits` are the authors' sides. `subjects` are left out: nothing is known of patients, and an image is no patient.
#
# `examples/bloodmnist` does more: it looks at what each array claims to be before memory is taken for it, has an option
# for files of other sizes, and logs where fewer images are there than declared.
#
# ## The package
#
# Two files in a folder: the module, and `pyproject.toml`. The entry point in it is what the library looks for: the
# group is always `leukemia_dl`, the name before the `=` is free, and what follows is the module.

# %%
project = """\
[build-system]
requires = ["hatchling>=1.27"]
build-backend = "hatchling.build"

[project]
name = "leukemia-dl-tiny-blood"
version = "0.1.0"
description = "Tiny blood, a data set for leukemia_dl."
license = "MIT"
requires-python = ">=3.11"
dependencies = ["leukemia-dl>=0.1", "numpy>=2"]

[project.entry-points.leukemia_dl]
tiny_blood = "leukemia_dl_tiny_blood"

[tool.hatch.build.targets.wheel]
include = ["leukemia_dl_tiny_blood.py"]
"""
package = Path("leukemia-dl-tiny-blood")
package.mkdir(exist_ok=True)
(package / "pyproject.toml").write_text(project)
(package / "leukemia_dl_tiny_blood.py").write_text(module)

# %% [markdown]
# ```console needs="a package index"
# pip install ./leukemia-dl-tiny-blood
# ```
#
# This page does without an index: it writes what `pip` would leave, the module and a folder that names it.


# %%
def install(name, text):
    folder = Path(f"plugins/{name}-0.1.0.dist-info")
    folder.mkdir(parents=True, exist_ok=True)
    Path(f"plugins/{name}.py").write_text(text)
    (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name.replace('_', '-')}\nVersion: 0.1.0\n")
    (folder / "entry_points.txt").write_text(f"[leukemia_dl]\n{name} = {name}\n")


install("leukemia_dl_tiny_blood", module)
sys.path.insert(0, str(Path("plugins").absolute()))
ldl.dataset_table().set_index("name").loc[["folder", "tiny_blood"], ["title", "classes", "images", "plugin"]]

# %% [markdown]
# ## Use it
#
# The protocol `fixed` takes the authors' sides. The split does not guarantee `group-disjoint`, and says why. A
# file in another layout is refused.

# %%
dataset = ldl.Dataset.load("tiny_blood", root="tiny_blood.npz")
(split,) = ldl.make_splits(dataset, "fixed")
print(dataset, split, *split.flags, sep="\n")
np.savez("other.npz", train_images=arrays["train_images"])
try:
    ldl.Dataset.load("tiny_blood", root="other.npz")
except ldl.errors.DataError as error:
    print(error)
recipe = ldl.Recipe.preset("quick", image_size=32)
frame = ldl.Benchmark(dataset, ["cnn"], recipe=recipe, protocol="fixed", store="runs/tiny-blood").run()
frame[["backbone", "accuracy", "loss", "status", "flags"]].round(3)

# %% [markdown]
# The square makes it easy. `cell_size` and `cell_colour` are not applicable: these images do not show one cell cut out
# on black. With BloodMNIST itself:
#
# ```console needs="a package index, and bloodmnist.npz from https://medmnist.com"
# pip install ./examples/bloodmnist
# leukemia-dl benchmark --dataset bloodmnist --root bloodmnist.npz --protocol fixed --backbones cnn
# ```
#
# ## When a plugin is broken
#
# Each problem is a warning and a row of `plugin_problems()`; every other plugin works. Two more: one needs a package
# that is not there, one yields something else. A running Python loads plugins once, so this one has to `forget`; hooks
# are called at a look-up, such as `list_datasets`.

# %%
install("incomplete", "import not_there\n")
install("wrong", "import leukemia_dl\n\n@leukemia_dl.hookimpl\ndef leukemia_dl_datasets():\n    yield {}\n")
plugins.forget()
print(*ldl.list_datasets())
print(*(f"{row.plugin}: {row.problem}" for row in ldl.plugin_problems().itertuples()), sep="\n")

# %% [markdown]
# ## Where to go from here
#
# - [Data sets](../guides/datasets.md#a-source-of-your-own): what a source should keep to.
# - [Add a backbone](backbone_plugin.md): the same kind of package.
# - [Property tests](property_tests.md): checks for code that turns files into pixels.
