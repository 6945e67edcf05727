# %% [markdown]
# # A first benchmark
#
# One net and three baselines (rules without a net) on synthetic cells, from the data to a page that can
# be sent to a colleague. It takes about two minutes on a laptop, and nothing is downloaded. Terms such as *baseline*,
# *fold* or *store* are explained in [Words](../explanation/words.md).
#
# ```console needs="a package index"
# pip install leukemia-dl
# ```
#
# **The cells are synthetic**, drawn on the spot in the layout of C-NMC 2019. No number on this page says anything about
# real cells.
#
# ## The data

# %%
import leukemia_dl as ldl
from leukemia_dl import reporting

dataset = ldl.Dataset.load("synthetic", subjects=40, images=300)
print(dataset)

# %% [markdown]
# A data set is a table with a row per image. `subject` is the patient. `group` joins patients who are known to share
# cells: it is what splits and intervals are made of.

# %%
dataset.table[["sample", "label", "subject", "group", "fold", "split"]].head(3)

# %% [markdown]
# Look at the cells before anything else. The names of the classes are those of C-NMC 2019: `all` are leukemic blasts
# (acute lymphoblastic leukemia), and `hem` is the data set's own abbreviation for cells that are not leukemic (normal
# B-lymphoid precursors).

# %% alt="Eight synthetic cells in two rows, four normal ones and four leukemic ones, which are mostly larger"
classes = [dataset.subset(dataset.labels == label).subset(range(0, 80, 20)) for label in (0, 1)]
pixels = [part.to_numpy(part.default_pipeline(96), show_progress=False) for part in classes]
reporting.plot_samples([*pixels[0], *pixels[1]], ["hem"] * 4 + ["all"] * 4, columns=4)

# %% [markdown]
# ## The split
#
# The default protocol takes one of the three folds as the test side, and drops training images of any patient who is
# also there. `guarantees` lists the guarantees that were checked on this split.

# %%
(split,) = ldl.make_splits(dataset, "official_clean", folds=[2])
print(split)
print(split.guarantees)

# %% [markdown]
# ## The run
#
# The recipe `quick` is three epochs from random weights: enough to see how everything works, not enough to learn much.
# `plan` shows the trials to run, before you spend time on them.

# %%
bench = ldl.Benchmark(dataset, ["cnn"], recipe="quick", folds=[2], store="runs/first-benchmark")
bench.plan()[["backbone", "protocol", "fold", "seed", "status"]]

# %%
frame = bench.run()
frame[["backbone", "accuracy", "loss", "balanced_accuracy", "auroc", "status"]].round(3)

# %% [markdown]
# The lower rows are baselines: `majority` always names the more frequent class, `cell_size` knows only how large a cell
# is, `cell_colour` only its mean colour. **A net that does not beat `cell_size` has not been shown to look at anything
# but size.** [An explanation says why they are there](../explanation/size.md).
#
# Nothing is run twice: the same line reads the store the next time, and a run that was killed goes on where it was.

# %%
bench.plan()[["backbone", "status"]]

# %% [markdown]
# ## How sure is it?
#
# The table has one number per row. `leaderboard` adds how sure that number is: an interval over groups of patients,
# and ranks. Two rows share a rank where the data do not show a difference.

# %%
predictions = bench.predictions()
board = ldl.leaderboard(predictions, "balanced_accuracy")
board[["rank", "backbone", "balanced_accuracy", "low", "high", "images", "groups"]].round(3)

# %% alt="Three panels of bars with intervals: balanced accuracy, accuracy and loss of the net and the three baselines"
reporting.plot_comparison(frame, intervals=ldl.evaluate(predictions))

# %% [markdown]
# ## The net, and new images

# %%
classifier = ldl.load_classifier("runs/first-benchmark")
print(classifier)
classifier.predict(dataset.paths[:3])[["predicted", "probability_hem", "probability_all"]].round(3)

# %% [markdown]
# ## A page to send
#
# `write_report` puts all of it into one HTML file that needs nothing else. [Another tutorial](reading_a_report.md)
# explains it.

# %%
print(reporting.write_report("runs/first-benchmark").name)

# %% [markdown]
# ## The same on the command line
#
# ```console
# leukemia-dl benchmark --dataset synthetic -o subjects=40 -o images=300 --backbones cnn --store runs/first-line
# leukemia-dl evaluate runs/first-line --metric balanced_accuracy
# leukemia-dl runs list runs/first-line
# ```
#
# ## Where to go from here
#
# - [Your own images](own_images.md), with patients or without.
# - [C-NMC 2019 done right](c_nmc_2019.md): real cells.
# - [A backbone of your own](backbone_plugin.md).
