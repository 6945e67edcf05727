# %% [markdown]
# # Property-based tests of your own preprocessing
#
# A contrast step with two bugs that a look at good images does not show, tests that find them with an image of one or
# two pixels, and the fixed step in a benchmark. It takes about a minute on a laptop, and nothing is downloaded.
#
# ```console needs="a package index"
# pip install "leukemia-dl[testing]"
# ```
#
# The extra `testing` brings [Hypothesis](https://hypothesis.readthedocs.io/), which draws the images.
#
# ## Properties
#
# A usual test gives the result for one image. A property says what holds of **every** image, such as that black stays
# black. A *strategy* draws images, and Hypothesis looks for one that breaks the property. These are drawn by
# `strategies.cells()`; **no cell on this page is real.**

# %% alt="Eight drawn cells on black: ellipses of different colour, size and grain, most with a darker nucleus"
import warnings
from dataclasses import dataclass

import numpy as np
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

import leukemia_dl as ldl
from leukemia_dl import preprocess, reporting
from leukemia_dl.testing import strategies

# The same images in each run, so that this page does not change.
settings.register_profile("page", derandomize=True, deadline=None, phases=set(Phase) - {Phase.explain})
settings.load_profile("page")
drawn = []


@given(image=strategies.cells(min_size=40))
def look(image):
    drawn.append(image)


look()  # a function under @given is called without arguments; it gets a hundred images, one after the other
reporting.plot_samples(drawn[20::10], [f"{len(image)} pixels" for image in drawn[20::10]], columns=4)

# %% [markdown]
# `images()` draws any pixels at all, down to a single one: noise, one colour, black, white. `masks((height, width))`
# draws any mask, the empty one too; `steps()` and `pipelines()` draw the library's own steps, with any parameters.
#
# ## A step of your own
#
# A step is a frozen dataclass that inherits `Step`: its fields are its parameters, and it turns uint8 pixels (height,
# width, 3) into such pixels. This one brings grey levels nearer to their mean, or takes them further from it.


# %%
@dataclass(frozen=True)
class Contrast(preprocess.Step):
    factor: float = 0.7

    def __call__(self, image):
        mean = image.mean()
        return np.clip(np.rint(mean + self.factor * (image - mean)), 0, 255).astype(np.uint8)


# %% [markdown]
# ## Properties of every step
#
# A property does not repeat the code that it tests. It answers what any step can be asked: is the input unchanged?
# Does the background stay black, and the cell a cell (its size [is a cue](../explanation/size.md))? Does one setting
# change nothing? Is a mirrored image treated alike, and one with a wider margin? They must hold for unusual images,
# too: one pixel, one colour, nothing but black.


# %%
def check(step):
    """Tell which properties hold of a contrast step, whatever the image and the factor."""

    def the_input_is_unchanged(image, factor):
        before = image.copy()
        step(factor)(image)
        assert np.array_equal(image, before)

    def black_stays_black(image, factor):
        assert not step(factor)(image)[~image.any(axis=-1)].any()

    def the_cell_stays_a_cell(image, factor):
        assert step(factor)(image).any(axis=-1)[image.any(axis=-1)].all()

    def a_factor_of_one_changes_nothing(image, factor):
        assert np.array_equal(step(1.0)(image), image)

    def mirrored_before_is_mirrored_after(image, factor):
        assert np.array_equal(step(factor)(image[:, ::-1]), step(factor)(image)[:, ::-1])

    def a_black_margin_makes_no_difference(image, factor):
        margin = ((2, 2), (2, 2), (0, 0))
        assert np.array_equal(step(factor)(np.pad(image, margin)), np.pad(step(factor)(image), margin))

    told = []
    for test in list(locals().values())[1:-1]:
        try:
            given(image=strategies.images(), factor=st.floats(0.5, 2))(test)()
            told.append(f"{test.__name__}: holds")
        except Exception as error:
            told += [f"{test.__name__}: {type(error).__name__}", *error.__notes__]
    print("\n".join(told))


warnings.simplefilter("error", RuntimeWarning)  # what numpy warns of, such as the mean of nothing, is an error here
check(Contrast)

# %% [markdown]
# Three do not hold, and of each Hypothesis prints the smallest image that it found.
# Two pixels show the first bug: with a factor below one, **black becomes grey**, since the mean is of the whole image,
# background included. So a wider margin changes it too. The other bug is the opposite: with a factor above one, dark
# pixels of the cell become exactly black, and count as background from then on.
#
# ## Fix it
#
# Now the mean is of the cell alone, only the cell is changed, and a value above 0 stays at least 1. Without the line
# `if not mask.any()` the tests would go on to fail, on an image of one black pixel.


# %%
@dataclass(frozen=True)
class CellContrast(preprocess.Step):
    factor: float = 0.7

    def __call__(self, image):
        mask = image.any(axis=-1)
        if not mask.any():
            return image
        inside, result = image[mask], image.copy()
        mean = inside.mean()
        result[mask] = np.clip(np.rint(mean + self.factor * (inside - mean)), np.minimum(inside, 1), 255)
        return result


check(CellContrast)

# %% [markdown]
# All properties hold for as many images as were tried. This is no proof, but covers more images than a person looks
# at. The class has a new name because stored results know a step by its name and fields, not by its code.
#
# ## Use it
#
# In a pipeline it stands as the library's own steps do; here before the resize, which leaves faint pixels around a
# cell that the step would take for a part of it. No property had asked for that: look at the resulting images, too.
# The cell is synthetic.

# %% alt="A synthetic cell as decoded, on its canvas, with less contrast inside the cell alone, and resized"
dataset = ldl.Dataset.load("synthetic", subjects=24, images=90, preliminary_images=12)
pipeline = ldl.Pipeline((preprocess.CenterOnCanvas(450), CellContrast(0.5), preprocess.Resize(48)))
stages = [dataset.decode(0)]
for step in pipeline.steps:
    stages.append(step(stages[-1]))
ldl.reporting.plot_samples(stages, ["file", "on its canvas", "less contrast", "resized"], columns=4)

# %% [markdown]
# A benchmark takes the pipeline; the rest is as in [the first one](first_benchmark.md). Two epochs on synthetic cells
# do not show whether the step is useful. They show that it runs, and that it travels with the net.

# %%
recipe = ldl.Recipe.preset("quick", image_size=48, epochs=2)
ldl.Benchmark(dataset, ["cnn"], recipe=recipe, pipeline=pipeline, folds=[2], store="runs/contrast").run()
print(ldl.load_classifier("runs/contrast").pipeline)

# %% [markdown]
# ## Keep the tests
#
# A step that is to stay lives in a module, say `cell_contrast.py`, which is imported before `load_classifier`. Its
# properties stand beside it in a file that pytest finds, each under its own `@given`; `check` was for this page.
#
# ```python needs="pytest, and the step in a module"
# from cell_contrast import CellContrast
# from hypothesis import given, settings
# from leukemia_dl.testing import strategies
#
#
# @settings(deadline=None)  # the first image takes longest
# @given(image=strategies.images(), pipeline=strategies.pipelines())
# def test_it_works_behind_any_steps(image, pipeline):
#     assert (pipeline.then(CellContrast())(image) == CellContrast()(pipeline(image))).all()
# ```
#
# There Hypothesis draws other images in each run, and keeps those that failed in the folder `.hypothesis`, to try them
# first the next time.
#
# ## Where to go from here
#
# - [Preprocessing that does no harm](../guides/preprocessing.md): the library's own steps, and what its tests hold.
# - [`leukemia_dl.testing`](../reference/api/testing.md); nets have `check_backbone` instead, as in
#   [a backbone of your own](backbone_plugin.md).
