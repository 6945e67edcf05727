"""Hypothesis strategies for images, cells and pipelines, for property-based tests of preprocessing.

    >>> from hypothesis import given, settings
    >>> from leukemia_dl.preprocess import Reinhard
    >>> from leukemia_dl.testing import strategies
    >>> my_step = Reinhard(mean=(40, 20, -20), std=(8, 5, 5))
    >>> @settings(deadline=None, max_examples=20)
    ... @given(image=strategies.cells())
    ... def test_my_step_leaves_the_background_black(image):
    ...     assert not my_step(image)[image.max(axis=-1) == 0].any()
    >>> test_my_step_leaves_the_background_black()

The first image of a step may take longer than Hypothesis's deadline of 200 ms: use `settings(deadline=None)`.
Needs the extra `testing`: pip install "leukemia-dl[testing]".
"""

from typing import Any

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from leukemia_dl import preprocess

__all__ = ["cells", "images", "masks", "pipelines", "steps"]

Image = NDArray[np.uint8]
_MOST_BYTES = 1021  # a prime: repeated rows would be equal


def images(
    min_size: int = 1, max_size: int = 24, square: bool = False, batch: int | None = None
) -> st.SearchStrategy[Image]:
    """Return any pixels at all: uint8 (height, width, 3); noise, and often one colour, black or white.

    Sides are from `min_size` to `max_size` pixels, equal with `square`; with `batch` it is (batch, height, width, 3).
    """
    side = st.integers(min_size, max_size)
    shape: Any = side.map(lambda size: (size, size)) if square else st.tuples(side, side)
    full = shape.map(lambda hw: (*(() if batch is None else (batch,)), *hw, 3))
    level = st.sampled_from([0, 1, 128, 254, 255])
    colour = st.one_of(level, st.tuples(level, level, level))
    # Hypothesis shrinks towards the first, pixel by pixel.
    return st.one_of(_noise(full), hnp.arrays(np.uint8, full), st.builds(one_colour, full, colour))


@st.composite
def _noise(draw: st.DrawFn, shapes: st.SearchStrategy[tuple[int, ...]]) -> Image:
    """Return noise from bytes that Hypothesis draws; of large images they are repeated, as it has not many."""
    shape = draw(shapes)
    count = min(int(np.prod(shape)), _MOST_BYTES)
    return np.resize(np.frombuffer(draw(st.binary(min_size=count, max_size=count)), np.uint8), shape)


def one_colour(shape: tuple[int, ...], colour: int | tuple[int, int, int]) -> Image:
    """Return pixels of one grey level or colour: a function with a name, as a failing example shows it."""
    return np.full(shape, colour, np.uint8)


@st.composite
def cells(draw: st.DrawFn, min_size: int = 12, max_size: int = 48) -> Image:
    """Return one stained cell, an ellipse with a darker nucleus and grain, on exact black: uint8 (size, size, 3).

    Its side is from `min_size` to `max_size` pixels; the cell may touch the frame.
    """
    size = draw(st.integers(min_size, max_size))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    radii = [draw(st.floats(0.15, 0.55)) * size for _ in range(2)]
    y, x = (np.arange(size) - size * draw(st.floats(0.4, 0.6)) for _ in range(2))
    distance = (y[:, None] / radii[0]) ** 2 + (x[None, :] / radii[1]) ** 2
    base = np.array([draw(st.integers(60, 200)), draw(st.integers(25, 120)), draw(st.integers(80, 210))], dtype=float)
    colour = base * np.where(distance < draw(st.floats(0.2, 0.8)), draw(st.floats(0.4, 0.8)), 1.0)[..., None]
    grain = rng.normal(1, draw(st.floats(0.02, 0.2)), (size, size, 1)) + rng.normal(0, 0.02, (size, size, 3))
    return np.where((distance < 1)[..., None], np.clip(colour * grain, 1, 255), 0).astype(np.uint8)


def masks(shape: tuple[int, int]) -> st.SearchStrategy[NDArray[np.bool_]]:
    """Return any mask, bool, of that `shape`, (height, width)."""
    return hnp.arrays(np.bool_, shape)


def steps(max_size: int = 24) -> st.SearchStrategy[preprocess.Step]:
    """Return any step that can be applied, stain normalisers fitted; sides up to `max_size` pixels."""
    side = st.integers(1, max_size)
    directions = st.sampled_from([((0.65, 0.7, 0.29), (0.07, 0.99, 0.11)), ((0.83, 0.51, 0.2), (0.09, 0.95, 0.28))])
    levels = st.tuples(st.floats(0.5, 2.5), st.floats(0.5, 2.5))
    spread = st.tuples(st.floats(1, 20), st.floats(1, 12), st.floats(1, 12))
    mean = st.tuples(st.floats(10, 90), st.floats(-10, 50), st.floats(-50, 10))
    return st.one_of(
        st.builds(preprocess.CenterOnCanvas, side),
        st.builds(preprocess.CropToCell, st.floats(0, 0.5)),
        st.just(preprocess.PadToSquare()),
        st.builds(preprocess.Resize, side, st.sampled_from(["lanczos", "bilinear"])),
        st.builds(preprocess.Reinhard, mean, spread),
        st.builds(preprocess.Macenko, directions, levels),
    )


def pipelines(max_steps: int = 4, max_size: int = 24) -> st.SearchStrategy[preprocess.Pipeline]:
    """Return any pipeline of up to `max_steps` steps that can be applied; `max_size` as in `steps`."""
    return st.lists(steps(max_size), max_size=max_steps).map(lambda drawn: preprocess.Pipeline(tuple(drawn)))
