# %% [markdown]
# # Reading a report
#
# A small comparison of two nets, its `report.html` section by section, what a bad sign looks like, and the limits of
# every report. It takes about a minute on a laptop, and nothing is downloaded.
#
# **The cells are synthetic.** The numbers show how a report is read; they say nothing about real cells.
#
# ## A run to report on
#
# `cnn` comes with the library; `tiny`, two layers, [is registered here](backbone_plugin.md). Each is trained for two
# epochs from two seeds: too little to learn much, enough to have something in every section.

# %%
import re

import leukemia_dl as ldl
from leukemia_dl import reporting


def build(inputs, weights):
    from keras import layers

    x = layers.Conv2D(16, 3, strides=2, activation="relu")(inputs)
    return layers.Conv2D(32, 3, strides=2, activation="relu")(x)


ldl.register_backbone(ldl.BackboneSpec(name="tiny", build=build, scaling="tf", native_size=32, min_size=16))
dataset = ldl.Dataset.load("synthetic", subjects=40, images=200, preliminary_images=12)
recipe = ldl.Recipe.preset("quick", image_size=32, epochs=2)
bench = ldl.Benchmark(dataset, ["cnn", "tiny"], recipe=recipe, folds=[2], seeds=[0, 1], store="runs/reading")
frame = bench.run(executor="in-process")

page = reporting.write_report("runs/reading").read_text()
print(re.findall(r"<h2[^>]*>(.*?)</h2>", page))

# %% [markdown]
# Open `runs/reading/report.html` beside this page (the command line writes it by itself, at the end of a benchmark).
# The figures below are drawn once more, by the functions that have drawn them there.
#
# ## Question and answer
#
# The findings in a few sentences.

# %%
answer = re.search(r'id="question".*?</ul>', page, re.DOTALL)[0]
print("\n".join(re.findall(r"<li>(.*?)</li>", answer)))

# %% [markdown]
# Read the baselines first: `majority` always names the more frequent class, `cell_size` knows how large a cell is,
# `cell_colour` its mean colour. **If these data do not show that a net is better than a baseline, no net was needed
# to get that far.** [An explanation](../explanation/size.md) says why size is one of the baselines.

# %% alt="Three panels of bars with intervals: accuracy, balanced accuracy and loss of two nets and three baselines"
predictions = bench.predictions(cell_area=True)
reporting.plot_comparison(frame, intervals=ldl.evaluate(predictions))

# %% [markdown]
# A line is a 95% interval over groups of patients, not over images: cells of one patient are alike. It holds **these
# fitted nets** and asks how they would do on other patients of the same kind. The class shares are held fixed, so that
# a model that names one class only has an accuracy without a line. A dot is one trial; the distance between the dots of
# one net is due to the seed.
#
# ## Data, and how they were split
#
# *Data* has the counts, beside those that the authors declare, and what an [audit](../guides/audit.md) of every image
# has found: look there for damaged and identical files.
#
# *How the data were split* has a row per split. *Leaked* counts images outside the test side that share their file,
# their cell or their group of patients with another side: **it should be 0**.

# %%
columns = ["protocol", "n_train", "n_val", "n_test", "groups_test", "dropped", "leaked_groups", "guarantees"]
frame.drop_duplicates("protocol")[columns]

# %% [markdown]
# This is what a red flag looks like: `random` puts patients on both sides. The row says of how many images,
# *Guaranteed* lacks `group-disjoint`, and the first section of such a report warns.

# %%
leaky = {"protocol": "random", "allow_leakage": True, "baselines": [], "store": "runs/reading-leaky"}
row = ldl.Benchmark(dataset, ["tiny"], recipe=recipe, **leaky).run().iloc[0]
print(row["guarantees"], row["flags"], sep="\n")
print(re.search(r"This protocol lets[^<]*", reporting.write_report("runs/reading-leaky").read_text())[0])

# %% [markdown]
# ## Results
#
# Nets have different ranks only where they differ significantly. **Shared ranks are ties**, even if the third digit
# differs. Baselines have no rank. The best of several was chosen on the side that it is shown on: the last column
# says so.

# %%
board = ldl.leaderboard(predictions, results=frame)
board[["rank", "backbone", "accuracy", "low", "high", "better_than", "groups", "flags"]].round(3)

# %% [markdown]
# Below the table, pairs are compared in words. Look at the last number: a difference smaller than that would have been
# missed more often than one time in five, so that "no significant difference" may only mean "too few patients".

# %%
print(ldl.compare(predictions)["sentence"][0])

# %% [markdown]
# **Patients.** A mean over images hides a patient on whom a net fails altogether. Here each is a dot: look to the left.
# A net whose dots lie as those of `majority` names one class only.

# %% alt="A row per net and baseline, a dot per patient: the share of the patient's images that are classified right"
reporting.plot_subjects(predictions)

# %% [markdown]
# **Errors by size.** Leukemic cells are larger on average. A net whose errors rise and fall with the baseline
# `cell_size` may have learned nothing else.

# %% alt="Share of wrong predictions of two nets and three baselines, in four parts of the images by size"
reporting.plot_errors_by_size(predictions)

# %% [markdown]
# **Reliability.** Of the images that get a probability of 0.80, four of five should be of that class: points belong
# on the dotted line. Grey bars show how many images a bin has; bins with few images vary much. [Another
# tutorial](finetune_and_calibrate.md) shows how to correct it.

# %% alt="A panel per net and baseline: observed share over predicted probability in ten bins, with intervals"
reporting.plot_reliability(predictions)

# %% [markdown]
# ROC curves, precision and recall, confusion and cost follow on the page, each with a caption.
#
# ## Where it fails, and the trials
#
# First come the images that most nets get wrong: they are hard, damaged, or labelled wrong. Then come the trials,
# with what failed or is missing. In the learning curves look for a gap between training and validation
# (over-fitting). Look also for a validation loss that still falls (more epochs may help), and for a net that has not
# moved from where it began.

# %% alt="Accuracy above loss over two epochs, training and validation, for two nets with two seeds each"
reporting.plot_learning_curves(bench.histories())

# %% [markdown]
# ## Repeat it
#
# This section has the machine, the versions and the settings, without folders of the machine. In the store the settings
# are `settings.toml`, which makes the same benchmark wherever its data and backbones are. `tiny` is known in this
# script only, so a colleague [would need it as a package](backbone_plugin.md).

# %%
again = ldl.Benchmark.from_toml("runs/reading/settings.toml")
again.plan()[["backbone", "protocol", "fold", "seed", "status"]]

# %% [markdown]
# ## The model card, and unknown items
#
# Each net has a card in `runs/reading/cards`. Items that the run cannot know stand there as *unknown*: complete them
# before you publish a net.

# %%
card = reporting.write_model_cards("runs/reading")[0].read_text()
print("\n".join(line for line in card.splitlines() if line.startswith("- ") and "*unknown" in line))

# %% [markdown]
# ## Limits of every report
#
# - How the nets do at another hospital, on another stain or scanner. The only test is
#   [data from elsewhere](../guides/evaluation.md#data-from-elsewhere).
# - Whether the labels are right, or who gave them.
# - Whether somebody looked at the test side before, and chose the compared nets by it.
# - Whether a net is of use to a patient. Nothing here is a diagnosis.
#
# ## Where to go from here
#
# - [Pictures and the report](../guides/reporting.md): every section and plot.
# - [How intervals are computed](../explanation/intervals.md), and [the limits of a
#   comparison](../explanation/limits.md).
# - [The effect of a leak](../guides/evaluation.md#the-effect-of-leakage), measured in one run.
# - [Your own images](own_images.md).
