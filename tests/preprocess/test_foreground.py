"""The cell's mask and its measures."""

import csv
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from leukemia_dl.errors import ImageError, SettingsError
from leukemia_dl.preprocess import (
    bounding_box,
    decode_image,
    foreground_mask,
    foreground_pixels,
    is_single_cell,
    mask_colour,
    silhouette,
)
from leukemia_dl.testing.strategies import images

smears = images(max_size=12)
IMAGES = hnp.arrays(np.uint8, st.tuples(st.integers(1, 20), st.integers(1, 20), st.just(3)))


def a_cell(size: int = 100, radius: int = 30) -> np.ndarray:
    rows, columns = np.mgrid[:size, :size] - size // 2
    image = np.zeros((size, size, 3), np.uint8)
    image[rows**2 + columns**2 <= radius**2] = (70, 30, 80)
    return image


def test_mask_of_a_disc_with_holes_and_debris() -> None:
    image = a_cell()
    whole = image.any(axis=2)
    image[48:52, 48:52] = 0
    image[2:5, 2:5] = 255
    np.testing.assert_array_equal(foreground_mask(image, "black"), whole)


def test_corners_connect_and_threshold_counts_for_any_channel() -> None:
    image = np.zeros((4, 4, 3), np.uint8)
    image[0, 0], image[1, 1] = (0, 9, 0), (30, 0, 0)
    assert foreground_mask(image, "black").sum() == 2
    assert foreground_mask(image, "black", threshold=9).sum() == 1


def test_silhouette_of_a_rectangle() -> None:
    mask = np.zeros((20, 30), bool)
    mask[5:9, 10:20] = True
    assert silhouette(mask) == {"area": 40.0, "width": 10.0, "height": 4.0, "perimeter": 24.0}


def test_a_mask_that_fills_the_frame() -> None:
    assert silhouette(np.ones((4, 5), bool)) == {"area": 20.0, "width": 5.0, "height": 4.0, "perimeter": 14.0}


@given(image=IMAGES)
def test_any_image_has_finite_measures_and_stays_as_it_was(image: np.ndarray) -> None:
    before = image.copy()
    mask = foreground_mask(image, "black")
    assert mask.dtype == np.bool_
    assert mask.shape == image.shape[:2]
    assert mask.any() == image.any()
    measures = silhouette(mask)
    assert measures["area"] == mask.sum()
    assert measures["perimeter"] <= measures["area"] <= measures["width"] * measures["height"]
    mean, sd = mask_colour(image, mask)
    assert mean.shape == sd.shape == (3,)
    assert np.isfinite([mean, sd]).all()
    is_single_cell(image)
    np.testing.assert_array_equal(image, before)


def test_colour() -> None:
    image = a_cell()
    mean, sd = mask_colour(image, foreground_mask(image, "black"))
    assert mean.tolist() == [70, 30, 80]
    assert sd.tolist() == [0, 0, 0]
    image[image.any(axis=2) & (np.arange(100) < 50)[:, None]] += 10
    assert mask_colour(image, foreground_mask(image, "black"))[1] == pytest.approx([5, 5, 5], abs=0.05)
    empty = mask_colour(image, np.zeros((100, 100), bool))
    assert np.array(empty).tolist() == [[0, 0, 0], [0, 0, 0]]


def test_single_cell() -> None:
    assert is_single_cell(a_cell())
    assert is_single_cell(a_cell(radius=50))  # touches the frame
    assert not is_single_cell(np.zeros((9, 9, 3), np.uint8))
    assert not is_single_cell(np.full((9, 9, 3), 200, np.uint8))
    grey = np.maximum(a_cell(), 1)  # a background that is not exactly black
    assert not is_single_cell(grey)


@pytest.mark.parametrize("mask", [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 1), bool), np.zeros((3, 4), bool)])
def test_masks_are_checked(mask: object) -> None:
    with pytest.raises(ImageError, match=r"a mask, bool, of shape \(4, 4\). Received: "):
        mask_colour(np.zeros((4, 4, 3), np.uint8), mask)


@given(image=smears)
def test_bright_field_is_parted_by_otsu_on_saturation(image: np.ndarray) -> None:
    filters = pytest.importorskip("skimage.filters")
    saturation = np.asarray(Image.fromarray(image).convert("HSV"))[..., 1]
    found = foreground_pixels(image, "bright")
    if np.ptp(saturation) == 0:
        assert not found.any()
        return
    # Several thresholds can be best by the same amount: what counts is that ours parts as well as theirs.
    assert (
        separation(saturation, found) >= separation(saturation, saturation > filters.threshold_otsu(saturation)) - 1e-9
    )


def separation(values: np.ndarray, part: np.ndarray) -> float:
    if part.all() or not part.any():
        return 0.0
    return float(part.mean() * (1 - part.mean()) * (values[part].mean() - values[~part].mean()) ** 2)


def test_a_purple_cell_in_a_bright_smear() -> None:
    smear = np.full((100, 100, 3), (235, 225, 230), np.uint8)
    disc = a_cell().any(axis=2)
    smear[disc] = (110, 60, 150)
    assert not is_single_cell(smear)
    np.testing.assert_array_equal(foreground_mask(smear), disc)
    assert bounding_box(foreground_mask(smear)) == (20, 20, 81, 81)
    assert bounding_box(np.zeros((3, 3), bool)) is None
    with pytest.raises(SettingsError, match="background must be one of"):
        foreground_mask(smear, "white")


def test_boxes_of_real_cells(c_nmc_sample: Path, c_nmc_manifest: Path) -> None:
    with (c_nmc_manifest / "bounding_boxes.csv").open(newline="") as file:
        boxes = {row["file_name"]: [int(row[k]) for k in ("x", "y", "width", "height")] for row in csv.DictReader(file)}
    errors = []
    for path in sorted(c_nmc_sample.rglob("UID_*.bmp")):
        image = decode_image(path)
        assert is_single_cell(image), path
        top, left, bottom, right = bounding_box(foreground_mask(image))
        x, y, width, height = boxes[path.name]
        errors.append(np.abs([left - x, top - y, right - x - width, bottom - y - height]).max())
    assert len(errors) == 54
    assert np.mean(np.array(errors) <= 3) >= 0.98


def test_a_real_smear_has_its_white_cell_in_the_mask(wbc_sample: Path) -> None:
    """A white cell is in the middle of each picture. Its nucleus, which may leave the very middle free, is the mask."""
    hits = []
    for path in sorted(wbc_sample.glob("*.bmp"))[::10]:
        mask = foreground_mask(decode_image(path))
        top, left, bottom, right = bounding_box(mask)
        middle = [side / 2 for side in mask.shape]
        hits.append(top < middle[0] < bottom and left < middle[1] < right and 0.03 < mask.mean() < 0.6)
    assert np.mean(hits) >= 0.9


def test_fields_of_a_smear_are_not_single_cells(aria_sample: Path) -> None:
    assert not any(is_single_cell(decode_image(path)) for path in sorted(aria_sample.rglob("*.jpg"))[::60])
