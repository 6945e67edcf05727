# %% [markdown]
# # Fine-tune and calibrate
#
# This page treats recipes as values, probes and fine-tunes your own pretrained net, corrects its probabilities,
# chooses thresholds, and uses the saved net. It takes about a minute on a laptop, and nothing is downloaded.
#
# **The cells are synthetic**; no number on this page says anything about real cells.
#
# ## A recipe is a value
#
# It holds everything about one fit that is not the data or the net. `Recipe.preset("finetune", epochs=10)` makes one;
# it stays as it is, and `recipe.changed(epochs=20)` is another. A wrong name or value is refused at once.

# %%
import keras
import pandas as pd

import leukemia_dl as ldl
from leukemia_dl import evaluation, reporting

settings = ["weights", "head_epochs", "epochs", "input_lr_ratio", "class_balance", "label_smoothing", "ema_momentum"]
pd.DataFrame({name: ldl.Recipe.preset(name).to_dict() for name in ("linear_probe", "finetune")}).loc[settings]

# %% [markdown]
# `weights` are those before the training. A fit has two phases, and either may have no epochs:
#
# 1. `head_epochs`: the backbone is frozen, and the head alone is trained on its features, which are computed once.
# 2. `epochs`: every layer is trained, on augmented images; the first layer at `input_lr_ratio` of the head's rate, so
#    that what it has learned before is kept.
#
# `linear_probe` solves a logistic regression on the features as they are. `finetune` begins with the head alone too,
# since the gradients of a random head would undo what the net has learned. Both start from ImageNet weights:
#
# ```python needs="ImageNet weights, which Keras downloads"
# bench = ldl.Benchmark(dataset, ["resnet50", "xception"], recipe="finetune", store="runs/tuning-imagenet")
# bench.run()
# ```
#
# ## Weights of your own
#
# `weights` may also be a file, written by Keras's `save_weights` from the net without its head. Here `cnn` is first
# trained on other synthetic cells, to have something to start from.

# %%
sizes = {"subjects": 40, "images": 200, "preliminary_images": 12}
dataset = ldl.Dataset.load("synthetic", **sizes)
other = ldl.Dataset.load("synthetic", seed=1, **sizes)
recipe = ldl.Recipe.preset("quick", image_size=32, epochs=4)
ldl.Benchmark(other, ["cnn"], recipe=recipe, folds=[2], baselines=[], store="runs/tuning-weights").run()
trained = ldl.load_classifier("runs/tuning-weights").model

inputs = keras.Input((32, 32, 3))
bare = keras.Model(inputs, ldl.get_backbone("cnn").build(inputs, None))
bare.set_weights(trained.get_weights()[:-2])  # all but the head's two
bare.save_weights("cells.weights.h5")

# %% [markdown]
# ## Probe and fine-tune
#
# The same data and split, two recipes, a store for each. The epochs are few, to be quick.

# %%
start = {"weights": "cells.weights.h5", "image_size": 32}
probe = ldl.Recipe.preset("linear_probe", **start)
finetune = ldl.Recipe.preset("finetune", head_epochs=10, epochs=5, **start)
runs = {
    recipe.name: ldl.Benchmark(dataset, ["cnn"], recipe=recipe, folds=[2], store=f"runs/tuning-{recipe.name}")
    for recipe in (probe, finetune)
}
frame = pd.concat([bench.run() for bench in runs.values()], ignore_index=True)
frame[["backbone", "recipe", "accuracy", "balanced_accuracy", "auroc", "loss"]].round(3)

# %% [markdown]
# Baselines know no recipe, and are in both runs. `cnn+tta` is the same net, averaged over the eight turned and
# mirrored forms of each image, which `finetune` asks for (`tta`). In the curves the second phase begins at
# the dotted line.

# %% alt="Accuracy and loss over fifteen epochs, training and validation; a dotted line after the tenth"
reporting.plot_learning_curves(runs["finetune"].histories())

# %% [markdown]
# ## Temperature
#
# A net can be right often and still give 0.99 too easily. A *temperature* is one number that divides its logits; it is
# above 1 where the net was too sure. It changes no predicted class, only the probabilities. It is **never fitted to the
# test side**:
#
# - where a head alone is trained, to images of the training side that heads of inner folds had not seen;
# - else to the val side.

# %%
columns = ["backbone", "recipe", "temperature", "loss", "loss_calibrated", "ece", "ece_calibrated", "groups_val"]
frame.loc[frame["recipe"].notna(), columns].round(3)

# %% [markdown]
# `loss` is always that of the probabilities as the net gives them; `ece` is how far they are from what happens, on
# average. Compare each with its neighbour: **calibration need not help.** A temperature of a few patients fits these
# patients (with fewer than five of a class it stays 1), and it cannot shift. The recipe `finetune` gives the classes
# equal weight (`class_balance`). Its probabilities hold for equally frequent classes, which they are not on the test
# side.
#
# `calibrate` does the same with any predictions: one temperature per fitted net, from val. The curves are before, and
# after. Points on the dotted line are probabilities that mean what they say.

# %% alt="Two reliability curves with intervals, of the net as trained and calibrated"
predictions = runs["finetune"].predictions()
predictions = predictions[predictions["backbone"] == "cnn"]
calibrated = evaluation.calibrate(predictions)
both = [predictions.assign(backbone="as trained"), calibrated.assign(backbone="calibrated")]
reporting.plot_reliability(pd.concat(both))

# %% [markdown]
# Fitting on the side that is tested is refused.

# %%
try:
    evaluation.calibrate(predictions, fitted_on="test")
except ldl.errors.SettingsError as error:
    print(error)

# %% [markdown]
# ## A threshold for a purpose
#
# The predicted class is the most probable one. If you must not miss leukemic cells (`all`), you want another threshold.
# `operating_points` takes the highest one with the sensitivity that you ask for on val, and says what it does on the
# test side.

# %%
points = evaluation.operating_points(predictions, sensitivity=0.9)
points[["target", "threshold", "metric", "value", "low", "high"]].round(3)

# %% [markdown]
# The sensitivity that was asked for need not hold on the test side: the first row says what it is there.
#
# ## Leave the unsure ones to somebody else
#
# `accuracy_at_coverage` keeps the images that the net is surest of. `wanted` is the share kept on val, `coverage` what
# that confidence keeps on the test side.

# %%
coverage = evaluation.accuracy_at_coverage(predictions, [1.0, 0.8, 0.5])
coverage[["wanted", "coverage", "threshold", "value", "low", "high", "reason"]].round(3)

# %% [markdown]
# ## Save it, and use it
#
# The temperature travels with the net, and so does the preprocessing. `predict` divides by the temperature unless you
# pass `calibrated=False`; the label is the same. Averaging over symmetries takes eight times as long, and may change
# the label.

# %%
classifier = ldl.load_classifier("runs/tuning-finetune")
classifier.save("cells.keras")
classifier = ldl.load_classifier("cells.keras")
ways = {"calibrated": {}, "as trained": {"calibrated": False}, "eight symmetries": {"tta": True}}
cells = dataset.paths[:4]
pd.DataFrame({way: classifier.predict(cells, **how)["probability_all"] for way, how in ways.items()}).round(3)

# %% [markdown]
# ## Where to go from here
#
# - [Recipes and training](../guides/training.md): every preset, both phases, callbacks.
# - [Evaluation](../guides/evaluation.md): intervals, comparisons, thresholds; [reading a report](reading_a_report.md).
# - [C-NMC 2019 done right](c_nmc_2019.md): real cells, and [a GPU](gpu.md) for them.
