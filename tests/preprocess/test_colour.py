"""Colour spaces against scikit-image, and stains taken apart and put together."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from leukemia_dl.preprocess import GIEMSA, lab_to_rgb, optical_density, rgb_to_lab
from leukemia_dl.preprocess.colour import stain_matrix
from leukemia_dl.testing.strategies import images

color = pytest.importorskip("skimage.color")
ALL_LEVELS = np.stack(np.meshgrid(*[np.arange(0, 256, 5, dtype=np.uint8)] * 3), axis=-1).reshape(-1, 1, 3)


def unit_rows(stains):
    rows = np.array(stains)
    return stain_matrix(rows) if len(rows) == 2 else rows / np.linalg.norm(rows, axis=1, keepdims=True)


def separate_stains(image, stains=GIEMSA, light=256.0):
    return optical_density(image, light) @ np.linalg.inv(unit_rows(stains))


def combine_stains(amounts, stains=GIEMSA):
    return np.rint(np.clip(256 * np.exp(-amounts @ unit_rows(stains)) - 1, 0, 255)).astype(np.uint8)


def test_lab_agrees_with_scikit_image_on_the_whole_cube():
    np.testing.assert_allclose(rgb_to_lab(ALL_LEVELS), color.rgb2lab(ALL_LEVELS), atol=2e-3)


@given(image=images())
def test_lab_and_back_is_the_identity(image):
    np.testing.assert_array_equal(lab_to_rgb(rgb_to_lab(image)), image)


@given(seed=st.integers(0, 10_000))
def test_any_lab_value_becomes_the_colour_that_scikit_image_says(seed):
    lab = np.random.default_rng(seed).uniform([0, -128, -128], [100, 127, 127], (20, 1, 3))
    import warnings

    with warnings.catch_warnings():  # it warns of what it clips
        warnings.simplefilter("ignore")
        expected = np.rint(color.lab2rgb(lab) * 255)
    # It clips negative Z first, which moves colours outside of sRGB; inside both agree.
    inside = ((expected > 0) & (expected < 255)).all(axis=-1)
    assert np.abs(lab_to_rgb(lab)[inside] - expected[inside]).max(initial=0) <= 1


def test_optical_density():
    density = optical_density(np.array([[[255, 127, 0]]], np.uint8))
    np.testing.assert_allclose(density[0, 0], [0, np.log(2), np.log(256)])
    assert optical_density(np.array([[[255, 239, 0]]], np.uint8), light=240)[0, 0, 0] < 0


@given(image=images())
def test_separation_and_recombination_is_the_identity(image):
    """With the residual, every colour lies inside the gamut: the identity, not only within one grey level."""
    for stains in (GIEMSA, color.rgb_from_hed):
        again = combine_stains(separate_stains(image, stains), stains)
        assert np.abs(again.astype(int) - image).max() <= 1


def test_separation_agrees_with_scikit_image():
    """It divides by ln 10^-6 and clips below; the ratio of stains is the same."""
    image = np.random.default_rng(0).integers(20, 250, (9, 9, 3), dtype=np.uint8)
    matrix = unit_rows(color.rgb_from_hed)
    theirs = np.maximum(image / 255, 1e-6)
    theirs = np.log(theirs) @ np.linalg.inv(matrix) / np.log(1e-6)
    oracle = color.separate_stains(image, np.linalg.inv(matrix))
    np.testing.assert_allclose(np.maximum(theirs, 0), oracle, atol=1e-6)
    ours = separate_stains(image, color.rgb_from_hed, light=255) / -np.log(1e-6)
    np.testing.assert_allclose(ours, theirs, atol=0.02)


def test_one_pure_stain_is_found_alone():
    amounts = np.zeros((1, 5, 3))
    amounts[0, :, 0] = np.linspace(0.2, 1.5, 5)
    found = separate_stains(combine_stains(amounts))
    np.testing.assert_allclose(found, amounts, atol=0.03)


def test_light_may_be_a_number_of_numpy():
    image = np.full((2, 2, 3), 9, np.uint8)
    assert (optical_density(image, np.int64(240)) == optical_density(image, 240)).all()
