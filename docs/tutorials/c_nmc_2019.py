# %% [markdown]
# # C-NMC 2019 done right
#
# C-NMC 2019 has 15,114 images of single cells: leukemic blasts (`all`) and normal precursors (`hem`). Published
# accuracies on it can be too good, because patients and even identical files are on both sides of its folds. This page
# shows what to do about it, from the splits to what to report. It takes about half a minute.
#
# The data are 10.4 GB, so **the cells below are synthetic**, drawn in the same layout, and no number that a cell of
# this page prints says anything about real ones. Numbers of the real data stand in the text; they are from
# [how the folds leak](../explanation/c_nmc_2019.md). With [the data on your disk](../guides/data.md), load them
# instead, and take `dataset` where `leaky` stands below.
#
# ```console needs="C-NMC 2019, a download of 10.4 GB"
# leukemia-dl download c_nmc_2019 --to data
# leukemia-dl audit data/C-NMC_Leukemia --dataset c_nmc_2019
# ```
#
# ```python needs="C-NMC 2019, a download of 10.4 GB"
# dataset = ldl.Dataset.load("c_nmc_2019", root="data/C-NMC_Leukemia")
# ```

# %%
import leukemia_dl as ldl
from leukemia_dl import reporting

dataset = ldl.Dataset.load("synthetic", subjects=40, images=300)
dataset.summary()

# %% [markdown]
# Three official folds, a preliminary test set, and a final one without labels: as in C-NMC 2019. There the folds have
# 3,527, 3,581 and 3,553 images, the preliminary set 1,867 and the final one 2,586. Here there are fewer images, and
# no two subjects are the same person.
#
# ## Patients under several names
#
# In C-NMC 2019 not every subject is another person. No name is in two folds, but subjects 20 and 21 have 71 files in
# common, byte for byte, and further subjects share cells. The 73 names of the training part are 65 groups. The library
# knows them: its table has them in the column `group`. The next cell plants such a leak into the synthetic data: five
# images of the synthetic subject 11 (fold 2) become files of subject 16 (fold 0), and both are one group.

# %%
table = dataset.table
source, copies = (table.index[table["subject"] == name][:5] for name in ("16", "11"))
table.loc[copies, "path"] = table.loc[source, "path"].to_numpy()
table.loc[table["subject"].isin(["16", "11"]), "group"] = "16+11"
leaky = ldl.Dataset(table, dataset.class_names, dataset.info)
training = leaky.table[leaky.table["split"] == "train"]
print(training["subject"].nunique(), "names,", training["group"].nunique(), "groups")
leaky.audit(show_progress=False).findings[["severity", "kind", "sample", "other", "detail"]].head(3)

# %% [markdown]
# ## `official` and `official_clean`
#
# The protocol `official` takes the folds as published. `leaked` counts the images outside the test side that share a
# file, a cell or a group with another side. `official_clean` leaves out those whose group is on the test side
# (`dropped`), and keeps the whole test side.

# %%
for protocol in ("official", "official_clean"):
    (split,) = ldl.make_splits(leaky, protocol, folds=[2])
    print(split, dict(split.leaked), f"dropped: {split.dropped}", sep="\n  ")

# %% [markdown]
# The real folds:
#
# | test fold | training images with an identical file in it | with the same cell | of the same group: dropped |
# |---|---|---|---|
# | 0 | 72 | 90 | 229 |
# | 1 | 22 | 172 | 353 |
# | 2 | 94 | 262 | 1,274 |
#
# ```python needs="C-NMC 2019, a download of 10.4 GB"
# for split in ldl.make_splits(dataset, "official", folds="all"):
#     print(split, dict(split.leaked))
# ```
#
# ## The baseline
#
# `official_clean` on fold 2 is the default of a benchmark. The table has three rows beside each net: `majority`, which
# names the more frequent class, and rules on the size and the colour of the cell alone. On fold 2 of the real data
# `majority` has an accuracy of 0.692 and the size 0.746: a net at 0.75 has not been shown to look at anything but size.

# %%
recipe = ldl.Recipe.preset("quick", image_size=32)
bench = ldl.Benchmark(dataset, ["cnn"], recipe=recipe, folds=[2], store="runs/c-nmc")
frame = bench.run()
frame[["backbone", "protocol", "accuracy", "balanced_accuracy", "loss", "n_test", "groups_test"]].round(3)

# %% [markdown]
# ## Patients, not images
#
# Cells of one patient are alike, so groups are counted: fold 2 has 3,553 images, but of 28 groups. Each dot
# below is one group, and a net can be right on all of one patient and on none of the next.

# %% alt="A row of dots per model: the share of each group's images that it classified right, from none to all"
predictions = bench.predictions()
reporting.plot_subjects(predictions)

# %%
board = ldl.leaderboard(predictions, "balanced_accuracy")
board[["rank", "backbone", "balanced_accuracy", "low", "high", "images", "groups"]].round(3)

# %% [markdown]
# Fold 1 of the real data has three patients without leukemia, and with fewer than five groups in a class no interval is
# given. Take all folds, which test all 65 groups, and a recipe that is more than a demonstration:
#
# ```console needs="C-NMC 2019, a download of 10.4 GB, and ImageNet weights; better a GPU"
# leukemia-dl benchmark --dataset c_nmc_2019 --root data/C-NMC_Leukemia --recipe finetune --folds all --seeds 0,1,2
# leukemia-dl evaluate runs/c_nmc_2019-finetune --metric balanced_accuracy --estimand procedure
# ```
#
# ## Published results
#
# The library keeps published results with their protocol and test side. Results of different protocols answer
# different questions: compare within one only.

# %%
published = ldl.published_results("c_nmc_2019")
print(published.groupby(["protocol", "scored_on", "metric"]).size())
keras = published[published["protocol"] == "published_v1"]
keras.pivot(index="method", columns="metric", values="value")

# %% [markdown]
# The nets of [that table](../explanation/published_table.md) were trained on folds 0 and 1. Fold 2, on which they are
# scored, was also watched during training. `published_v1` is that habit as a protocol (and as a recipe), and its
# split says so.

# %%
(split,) = ldl.make_splits(leaky, "published_v1")
print(split, *split.flags, sep="\n  ")

# %% [markdown]
# ## The sets beside the folds
#
# The protocol `preliminary` trains on the folds and tests on the preliminary set, whose labels are in a CSV file. It is
# not known whether the real ones share cells. The labels of the final set were never released: its images can be
# predicted (their 600 x 600 pixels are brought to the scale of the others), and there is nothing to score.

# %%
print(*ldl.make_splits(dataset, "preliminary"))
final = dataset.subset((dataset.table["split"] == "final").to_numpy(bool))
try:
    ldl.make_splits(final, "holdout")
except ldl.errors.SplitError as error:
    print(error)
ldl.load_classifier("runs/c-nmc").predict(final.paths[:3])[["predicted", "probability_all"]].round(3)

# %% [markdown]
# ## Numbers to report
#
# - The protocol, and which folds: `official_clean` on all, or `kfold`.
# - One metric, chosen before you look, with its interval over groups and their number; several seeds.
# - The baselines, in the same table.
# - The number of leaked images, if the protocol is `official`. Nothing from `random` but the difference that it makes.
# - The page that a run ends in, [which holds all this](reading_a_report.md), and the citation of the data.
#
# ## Where to go from here
#
# - [Fine-tune and calibrate](finetune_and_calibrate.md): what to train on real cells.
# - [Limits](../explanation/limits.md) of these results.
# - [Long runs on a cluster](cluster.md) and [on a GPU](gpu.md).
