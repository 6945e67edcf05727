# %% [markdown]
# # Your own images
#
# From images on your disk to a table of results with intervals. Read them from folders, a CSV file, a DataFrame or
# arrays; look for damaged and doubled files; preview the input of a net; train a small net and evaluate it. It takes
# about a minute, and nothing is downloaded.
#
# To have something to read, the first cell draws **synthetic cells** and saves 150 of them as PNG files, cropped to the
# cell, in a folder per class, `cells/hem` (normal precursors) and `cells/all` (leukemic blasts). With images of your
# own you need only its imports. No number on this page says anything about real cells.

# %%
import shutil
from pathlib import Path

import pandas as pd
from PIL import Image

import leukemia_dl as ldl
from leukemia_dl.preprocess import CropToCell

drawn = ldl.Dataset.load("synthetic", subjects=36, images=150)
rows = []
for row, cell in drawn.table[drawn.table["split"] == "train"].iterrows():
    file = Path("cells") / cell["label"] / f"{row:03}.png"
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(CropToCell()(drawn.decode(row))).save(file)
    rows.append({"path": str(file), "label": cell["label"], "subject": cell["subject"]})

# %% [markdown]
# ## A folder per class
#
# Classes are the names of the folders, in alphabetical order unless you give another. Of two classes the **second** is
# the positive one: sensitivity is about that class. A folder does not say whose cells these are, so protocols that
# keep patients apart are refused.

# %%
folder = ldl.Dataset.from_folder("cells", class_names=["hem", "all"])
print(folder)
try:
    ldl.make_splits(folder, "kfold")
except ldl.errors.SplitError as error:
    print(error)

# %% [markdown]
# The protocol `random`, which the message names last, splits image by image. Cells of one patient may then be on
# several sides: a net can recognise a patient, and look better than it would be on new patients. You have to say that
# you accept it, and each row of the results says so too (`flags`).

# %%
recipe = ldl.Recipe.preset("quick", image_size=32)
leaky = ldl.Benchmark(
    folder, ["cnn"], recipe=recipe, protocol="random", allow_leakage=True, store="runs/own-images-leaky"
)
frame = leaky.run()
frame[["backbone", "accuracy", "protocol", "guarantees", "flags"]].round(3)

# %% [markdown]
# ## A table with patients
#
# You need a CSV file with a column `subject` (the patient) beside `path` and `label`, such as the one that is written
# here. The guide has [a table of all columns](../guides/datasets.md#the-columns-of-a-table). Relative paths start from
# the folder of the file. `group-disjoint` says that no patient is on two sides: it was checked on each split.

# %%
pd.DataFrame(rows).to_csv("cells.csv", index=False)
dataset = ldl.Dataset.from_csv("cells.csv", class_names=["hem", "all"])
print(*Path("cells.csv").read_text().splitlines()[:3], dataset, sep="\n")
print(*ldl.make_splits(dataset, "kfold"), sep="\n")

# %% [markdown]
# The same from a DataFrame, and from arrays in memory: pixels as uint8 RGB of one size, labels as class numbers.

# %%
print(ldl.Dataset.from_dataframe(pd.DataFrame(rows), class_names=["hem", "all"]))
pixels = dataset.to_numpy(dataset.default_pipeline(96), show_progress=False)
print(ldl.Dataset.from_arrays(pixels, dataset.labels, ["hem", "all"], subjects=dataset.table["subject"]))

# %% [markdown]
# ## Look for errors in the data
#
# To have something to find, a copy of the folder gets two faults: a file that is cut off, and one that is there again
# under another class.

# %%
shutil.copytree("cells", "faulty", dirs_exist_ok=True)
first, second = sorted(Path("faulty/hem").iterdir())[:2]
first.write_bytes(first.read_bytes()[:500])
shutil.copy(second, "faulty/all/copy.png")
faulty = ldl.Dataset.from_folder("faulty", class_names=["hem", "all"])
report = faulty.audit(show_progress=False)
report.findings[["severity", "kind", "sample", "other"]]

# %% [markdown]
# [A guide says what each kind means](../guides/audit.md). A copy under another label is an error: one of the labels is
# wrong, and only you can find out which. `subset` leaves images out and touches no file; here both of the pair go.

# %%
errors = report.findings[report.findings["severity"] == "error"]
wrong = faulty.table["sample"].isin([*errors["sample"], *errors["other"]]).to_numpy(bool)
clean = faulty.subset(~wrong)
again = clean.audit(show_progress=False)
print(len(faulty), report.ok, "->", len(clean), again.ok)

# %% [markdown]
# ## The input of a net
#
# The audit found `mixed_sizes`: these files are as large as their cells. Unless you say otherwise, each image of your
# own is padded with black to a square and resized. Then each of these cells fills the picture, and its size is lost. A
# canvas keeps the size: it is one black square for all images. Take one as large as the largest image, since **a canvas
# that is smaller than an image cuts off what sticks out**. Printed is how wide one pixel of a file becomes: padded, it
# differs from cell to cell; on the canvas it does not. (`Pipeline.keeps_scale` does not warn of this: it is about
# images of one size, and true for padding.)

# %% alt="A synthetic cell that fills its file, then the same in the middle of a black canvas, then that at 96 pixels"
canvas = int(again.images[["height", "width"]].max().max())
small, large = again.images["height"].agg(["idxmin", "idxmax"])
on_canvas = ldl.Pipeline.default(96, canvas=canvas)
for cell in (clean.decode(small), clean.decode(large)):
    print(cell.shape, f"padded {96 / max(cell.shape):.3f}, on the canvas {96 / canvas:.3f}")
print("canvas:", canvas)
stages = [clean.decode(small)]
for step in on_canvas.steps:
    stages.append(step(stages[-1]))
ldl.reporting.plot_samples(stages, ["file", "on the canvas", "resized"], columns=3)

# %% [markdown]
# ## Images with a light background
#
# **Canvas, padding and baselines presume a cell that is cut out on black.** For crops of a bright-field smear, whose
# background is light, two things differ:
#
# - Padding and canvas still fill with black. Each image gets a black frame, and how wide the frame is depends on how
#   large the crop was. If crops of one class are larger, a net can read the class off the frame, and no baseline shows
#   it.
#   So cut all crops to one size in pixels, around the cell, before you load them. Then nothing is padded.
# - `cell_size` and `cell_colour` have no value where fewer than 98 % of the images of a split show a single cell on
#   black. An image counts as one if at least three quarters of its outermost pixels are exactly black. The status of
#   the row is then `not_applicable`, its message says why, and `majority` is the only baseline left.
#
# To have these baselines, cut the cells out and make all that is not cell exactly black: red, green and blue 0.
#
# ## A benchmark, and what it is worth
#
# Three folds, so that each image is tested once. The protocol is `kfold` because patients are known. Give the canvas
# when you load the data, and a benchmark uses it. Beside the net stand the baselines, such as [a rule on the size of
# the cell alone](../explanation/size.md). By default several trials run in processes of their own; three nets as
# small as these need none.

# %%
dataset = ldl.Dataset.from_csv("cells.csv", class_names=["hem", "all"], canvas=canvas)
bench = ldl.Benchmark(dataset, ["cnn"], recipe=recipe, store="runs/own-images")
frame = bench.run(executor="in-process")
frame[["backbone", "fold", "balanced_accuracy", "auroc", "n_test", "groups_test", "status"]].round(3)

# %% [markdown]
# `predictions` has a row per image, model and side; `evaluate` makes metrics of it, with intervals over patients. Where
# patients are not known it counts images, and says so in the column `unit`.

# %%
for run in (bench, leaky):
    print(ldl.evaluate(run.predictions(), metrics="balanced_accuracy").iloc[:, :5].round(3).to_string())

# %% [markdown]
# Look whether the interval of `cnn` lies above the value of `cell_size`; three epochs from random weights are not meant
# to get there. The tables differ by more than the leak: the canvas and the number of test images are others, too.
# [How a leak is measured](../guides/evaluation.md#the-effect-of-leakage).
#
# ## The same on the command line
#
# Everything that is set above is an option here, with the canvas that was printed. In this folder the two benchmarks
# find all their trials in the stores, and run nothing again. `audit` ends with exit status 1 if there is an error.
#
# ```console
# leukemia-dl audit cells.csv --dataset csv
# leukemia-dl preview --dataset csv --root cells.csv -o class_names=hem,all -o canvas=395 --image-size 96
# leukemia-dl benchmark --dataset csv --root cells.csv -o class_names=hem,all -o canvas=395 --image-size 32 \
#     --protocol kfold --backbones cnn --store runs/own-images
# leukemia-dl evaluate runs/own-images --metric balanced_accuracy
# leukemia-dl benchmark --dataset folder --root cells -o class_names=hem,all --image-size 32 \
#     --protocol random --allow-leakage --backbones cnn --store runs/own-images-leaky
# ```
#
# ## Where to go from here
#
# - [Reading a report](reading_a_report.md): the page that the command line leaves in the store.
# - [Fine-tune and calibrate](finetune_and_calibrate.md): more than three epochs from random weights.
# - [Why patients, not images](../explanation/subjects.md).
# - [Add a data set](data_set_plugin.md), so that others load yours by its name.
