# %% [markdown]
# # Your own images
#
# From images on your disk to a table of results with intervals: read them in three ways, look for damaged and doubled
# files, see what a net will see, train a small net and evaluate it. It takes about a minute; nothing is downloaded.
#
# To have something to read, the first cell draws **synthetic cells** and saves 150 of them as PNG files, cropped to the
# cell, in a folder per class, `cells/hem` and `cells/all`. With images of your own you need its imports only. No number
# on this page says anything about real cells.

# %%
import shutil
from pathlib import Path

import pandas as pd
from PIL import Image

import leukemia_dl as ldl
from leukemia_dl.preprocess import CropToCell

drawn = ldl.Dataset.load("synthetic", root="data/synthetic", subjects=36, images=150)
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
# the positive one, of which sensitivity speaks. A folder does not tell whose cells these are. So what has to keep
# patients apart is refused.

# %%
folder = ldl.Dataset.from_folder("cells", class_names=["hem", "all"])
print(folder)
try:
    ldl.make_splits(folder, "kfold")
except ldl.errors.SplitError as error:
    print(error)

# %% [markdown]
# The last way out splits image by image. Cells of one patient may then be on several sides: a net can know a patient
# again, and look better than it would be on new patients. You have to say that you accept it, and each row of the
# results says so too (`flags`).

# %%
recipe = ldl.Recipe.preset("quick", image_size=32)
leaky = ldl.Benchmark(folder, ["cnn"], recipe=recipe, protocol="random", allow_leakage=True, store="runs/leaky")
frame = leaky.run()
frame[["backbone", "accuracy", "protocol", "guarantees", "flags"]].round(3)

# %% [markdown]
# ## A table with patients
#
# A CSV file with a column `subject` beside `path` and `label` is all it takes, such as the one that is written here;
# further columns are in [the guide](../guides/datasets.md). Relative paths start from the folder of the file.
# `group-disjoint` says that no patient is on two sides: it was checked on each split.

# %%
pd.DataFrame(rows).to_csv("cells.csv", index=False)
dataset = ldl.Dataset.from_csv("cells.csv", class_names=["hem", "all"])
print(*Path("cells.csv").read_text().splitlines()[:3], dataset, sep="\n")
print(*ldl.make_splits(dataset, "kfold"), sep="\n")

# %% [markdown]
# The same from a DataFrame, and from arrays in memory: pixels as uint8 RGB of one size, labels as class numbers.

# %%
print(ldl.Dataset.from_dataframe(pd.DataFrame(rows), class_names=["hem", "all"]))
pixels = dataset.to_numpy(ldl.Pipeline.default(96), show_progress=False)
print(ldl.Dataset.from_arrays(pixels, dataset.labels, ["hem", "all"], subjects=dataset.table["subject"]))

# %% [markdown]
# ## Look for what is wrong
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
# What each kind means, [a guide tells](../guides/audit.md). A copy under another label is an error: one of the labels
# is wrong, and only you can find out which. `subset` leaves images out and touches no file; here both of the pair go.

# %%
errors = report.findings[report.findings["severity"] == "error"]
wrong = faulty.table["sample"].isin([*errors["sample"], *errors["other"]]).to_numpy(bool)
clean = faulty.subset(~wrong)
again = clean.audit(show_progress=False)
print(len(faulty), report.ok, "->", len(clean), again.ok)

# %% [markdown]
# ## What a net will see
#
# `mixed_sizes` above: these files are as large as their cells. Unless you say otherwise, images of your own are padded
# to a square and resized. Then each of these cells fills the picture, and its size is lost. A canvas keeps it: black,
# and as large as the largest image, since what sticks out is cut off. `scale` is how wide one pixel of a file becomes:
# padded, it differs from cell to cell; on the canvas it does not.

# %% alt="A synthetic cell that fills its file, then the same in the middle of a black canvas, then that at 96 pixels"
canvas = int(again.images[["height", "width"]].max().max())
small, large = again.images["height"].agg(["idxmin", "idxmax"])
on_canvas, padded = ldl.Pipeline.default(96, canvas=canvas), ldl.Pipeline.default(96, canvas=None)
for cell in (clean.decode(small), clean.decode(large)):
    print(cell.shape, f"padded {padded.scale(cell):.3f}, on the canvas {on_canvas.scale(cell):.3f}")
on_canvas.show(clean.paths[small])

# %% [markdown]
# ## A benchmark, and what it is worth
#
# Three folds, so that each image is tested once. Beside the net stand the floors, such as
# [what the size of a cell alone tells](../explanation/size.md). By default several trials run in processes of their
# own; three nets as small as these need none.

# %%
steps = ldl.Pipeline.default(32, canvas=canvas)
bench = ldl.Benchmark(dataset, ["cnn"], recipe=recipe, protocol="kfold", pipeline=steps, store="runs/mine")
frame = bench.run(executor="in-process")
frame[["backbone", "fold", "balanced_accuracy", "auroc", "n_test", "groups_test", "status"]].round(3)

# %% [markdown]
# `predictions` has a row per image, model and side; `evaluate` makes metrics of it, with intervals over patients. Where
# patients are not known it counts images, and calls the columns `low_image_level` and `high_image_level`.

# %%
for run in (bench, leaky):
    print(ldl.evaluate(run.predictions(), metrics="balanced_accuracy").iloc[:, :5].round(3).to_string())

# %% [markdown]
# Look whether the interval of `cnn` lies above the value of `cell_size`; three epochs from random weights are not meant
# to get there. The tables differ by more than the leak; [how it is measured](../guides/evaluation.md#what-a-leak-adds).
#
# ## The same on the command line
#
# `audit` ends with exit status 1 if there is an error. The canvas is an option, such as `-o canvas=450`; without it
# files like these are padded.
#
# ```console
# leukemia-dl audit cells.csv --dataset csv
# leukemia-dl preview --dataset csv --root cells.csv --image-size 96 --output preview.png
# leukemia-dl benchmark --dataset csv --root cells.csv -o class_names=hem,all --protocol kfold --backbones cnn
# leukemia-dl evaluate runs/csv-quick --metric balanced_accuracy
# leukemia-dl benchmark --dataset folder --root cells --protocol random --allow-leakage --backbones cnn
# ```
#
# ## Where to go from here
#
# - [Reading a report](reading_a_report.md): the page that the command line leaves in the store.
# - [Fine-tune and calibrate](finetune_and_calibrate.md): more than three epochs from random weights.
# - [Why patients, not images](../explanation/subjects.md).
# - [Add a data set](data_set_plugin.md), so that others load yours by its name.
