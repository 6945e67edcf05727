"""Measures of quality: each moves when, and only when, the image does."""

import numpy as np
import pytest
from hypothesis import given
from PIL import Image, ImageFilter

from leukemia_dl.datasets import Dataset
from leukemia_dl.errors import ImageError
from leukemia_dl.preprocess import decode_image, measure_quality, quality_frame
from leukemia_dl.testing.strategies import images


def cell(shift=0):
    rng = np.random.default_rng(0)
    image = np.zeros((80, 80, 3), np.uint8)
    disc = np.hypot(*np.mgrid[-40:40, -40 + shift : 40 + shift]) < 25
    image[disc] = rng.integers(60, 180, (int(disc.sum()), 3))
    return image


def test_blur_lowers_focus_alone():
    sharp = cell()
    blurred = np.asarray(Image.fromarray(sharp).filter(ImageFilter.GaussianBlur(1)))
    one, other = measure_quality(sharp), measure_quality(blurred)
    assert other["focus"] < 0.2 * one["focus"]
    assert other["brightness"] == pytest.approx(one["brightness"], rel=0.25)


def test_focus_is_the_variance_of_the_laplacian_away_from_the_rim():
    image = cell()
    grey = np.asarray(Image.fromarray(image).convert("L")).astype(float)
    inner = np.hypot(*np.mgrid[-40:40, -40:40]) < 20
    laplacian = sum(np.roll(grey, shift, axis) for shift in (1, -1) for axis in (0, 1)) - 4 * grey
    assert measure_quality(image)["focus"] == pytest.approx(laplacian[inner].var(), rel=0.1)


def test_exposure_border_and_blank():
    fine, light = measure_quality(cell()), measure_quality(np.where(cell() > 0, 255, 0).astype(np.uint8))
    assert (fine["saturated"], fine["dark"]) == (0, 0)
    assert light["saturated"] == 1
    assert light["brightness"] == pytest.approx(255)
    assert not fine["touches_border"]
    assert measure_quality(cell(shift=20))["touches_border"]
    assert fine["foreground"] == pytest.approx(np.pi * 25**2 / 80**2, rel=0.02)
    empty = measure_quality(np.zeros((9, 9, 3), np.uint8))
    assert empty["empty_mask"]
    assert empty["blank"]
    assert np.isnan([empty["focus"], empty["brightness"]]).all()
    assert not fine["blank"]
    assert not fine["empty_mask"]


@given(image=images(max_size=9))
def test_any_image_can_be_measured(image):
    before = image.copy()
    measured = measure_quality(image)
    assert 0 <= measured["foreground"] <= 1
    assert measured["empty_mask"] == (measured["foreground"] == 0)
    np.testing.assert_array_equal(image, before)


def test_a_frame_of_files_and_arrays(tmp_path):
    Image.fromarray(cell()).save(tmp_path / "good.png")
    (tmp_path / "bad.png").write_bytes(b"no image")
    frame = quality_frame([tmp_path / "good.png", str(tmp_path / "bad.png"), cell()])
    assert list(frame.index) == [str(tmp_path / "good.png"), str(tmp_path / "bad.png"), 2]
    assert frame["problem"].tolist()[::2] == ["", ""]
    assert "bad.png" in frame["problem"].iloc[1]
    assert frame["focus"].isna().tolist() == [False, True, False]
    assert frame["focus"].iloc[0] == frame["focus"].iloc[2] == measure_quality(cell())["focus"]
    assert str(frame["blank"].dtype) == "boolean"
    assert list(quality_frame([], show_progress=False)) == list(frame)
    assert list(quality_frame([cell()], names=["a"]).index) == ["a"]


def test_a_data_set_of_arrays_is_measured():
    """20.30: it raised "has images that are arrays, not files"."""
    dataset = Dataset.from_arrays(np.stack([cell(), cell(9)]), [0, 1], ("hem", "all"))
    frame = quality_frame(dataset, show_progress=False)
    assert frame["focus"].tolist() == [measure_quality(image)["focus"] for image in (cell(), cell(9))]
    assert list(frame.index) == [0, 1]


def test_what_is_no_image_is_said():
    with pytest.raises(ImageError):
        measure_quality(np.zeros((4, 4)))
    assert "Received: str" not in quality_frame([np.zeros((4, 4))])["problem"].iloc[0]


def test_every_real_image_can_be_measured(shared_data):
    paths = sorted(path for path in shared_data.rglob("*") if path.suffix in (".bmp", ".jpg"))[::7]
    frame = quality_frame(paths, show_progress=False)
    assert (frame["problem"] == "").all()
    cells = frame[[("UID_" in str(path)) for path in frame.index]]
    assert not cells["empty_mask"].any()
    assert not cells["blank"].any()
    assert (cells["focus"] > 1).all()
    assert cells["foreground"].between(0.03, 0.5).all()
    assert measure_quality(decode_image(paths[0]))["foreground"] == frame["foreground"].iloc[0]
