"""The strategies draw what they promise, and enough of it to find a mistake."""

import numpy as np
import pytest
from hypothesis import find, given, settings

from leukemia_dl.preprocess import Macenko, Pipeline, Reinhard, foreground_mask, foreground_pixels, is_single_cell
from leukemia_dl.testing import strategies


@given(image=strategies.images(min_size=2, max_size=5), batch=strategies.images(max_size=4, square=True, batch=3))
def test_images(image, batch):
    assert image.dtype == batch.dtype == np.uint8
    assert 2 <= min(image.shape[:2]) <= max(image.shape[:2]) <= 5
    assert image.shape[2] == 3
    assert batch.shape == (3, batch.shape[1], batch.shape[1], 3)
    image[0, 0, 0] ^= 1  # may be written to


@pytest.mark.parametrize("level", [0, 255])
def test_images_that_break_things_are_among_them(level):
    found = find(strategies.images(), lambda image: bool((image == level).all()), settings=settings(max_examples=2000))
    assert found.size


def test_a_failing_image_is_made_as_simple_as_it_can_be_and_shown_as_pixels():
    def no_pixel_is_bright(image):
        assert image.max() < 200

    with pytest.raises(AssertionError) as failure:
        settings(derandomize=True, database=None)(given(image=strategies.images())(no_pixel_is_bright))()
    assert "image=array([[[  0,   0, 200]]], dtype=uint8)" in "".join(failure.value.__notes__)


def test_large_images_can_be_drawn():
    sizes = {"min_size": 50, "max_size": 60, "batch": 3}
    shown = find(strategies.images(**sizes), lambda images: len(np.unique(images)) > 100)
    assert shown.shape == (3, 50, 50, 3)


@given(image=strategies.cells())
def test_cells_are_on_exact_black(image):
    assert image.shape[0] == image.shape[1]
    lit = image.any(axis=-1)
    assert lit.any()
    assert (image[lit] > 0).all()
    if is_single_cell(image):
        np.testing.assert_array_equal(foreground_pixels(image), lit)
        assert foreground_mask(image).sum() >= 0.9 * lit.sum()


@given(pipeline=strategies.pipelines(), image=strategies.images())
def test_pipelines_can_be_applied(pipeline, image):
    assert isinstance(pipeline, Pipeline)
    assert pipeline.is_fitted
    assert pipeline(image).dtype == np.uint8


@pytest.mark.parametrize("kind", [Reinhard, Macenko])
def test_every_step_is_drawn(kind):
    assert find(strategies.steps(), lambda step: isinstance(step, kind))


def test_a_property_that_does_not_hold_is_refuted():
    """A step that paints the background."""
    found = find(strategies.cells(), lambda image: bool(np.maximum(image, 10)[image.max(axis=-1) == 0].any()))
    assert found.size
