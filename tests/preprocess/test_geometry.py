"""Geometry: canvas and padding are exact, resizing agrees with Pillow and commutes with flips."""

import json
import random
from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from leukemia_dl.errors import ImageError, SettingsError
from leukemia_dl.preprocess import (
    CenterOnCanvas,
    CropToCell,
    PadToSquare,
    Pipeline,
    Resize,
    decode_image,
    foreground_mask,
    is_single_cell,
)
from leukemia_dl.testing.strategies import cells

SIZES = st.integers(1, 24)
IMAGES = hnp.arrays(np.uint8, st.tuples(SIZES, SIZES, st.just(3)))
METHODS = st.sampled_from(["lanczos", "bilinear"])


@given(image=IMAGES, size=SIZES, method=METHODS)
def test_steps_leave_their_input_alone(image: np.ndarray, size: int, method: str) -> None:
    before = image.copy()
    for step in (CenterOnCanvas(size), PadToSquare(), Resize(size, method)):
        result = step(image)
        assert result.dtype == np.uint8
        assert result.shape[0] == result.shape[1] == (step.size_after(None) or max(image.shape[:2]))
        if result is not image:  # where nothing was to be done
            result[:] = 7
        np.testing.assert_array_equal(image, before)


@given(size=SIZES, noise=st.randoms(use_true_random=False), more=st.integers(0, 9))
def test_padding_then_cropping_is_the_identity(size: int, noise: random.Random, more: int) -> None:
    image = np.frombuffer(noise.randbytes(3 * size * size), np.uint8).reshape(size, size, 3)
    padded = CenterOnCanvas(size + more)(image)
    assert int(padded.sum()) == int(image.sum())
    np.testing.assert_array_equal(CenterOnCanvas(size)(padded), image)


def test_canvas_centres_exactly() -> None:
    image = np.arange(1, 28, dtype=np.uint8).reshape(3, 3, 3)
    assert CenterOnCanvas(5)(image)[1:4, 1:4].tolist() == image.tolist()
    assert CenterOnCanvas(1)(image).tolist() == image[1:2, 1:2].tolist()
    even = CenterOnCanvas(4)(image)  # the extra row is below, the extra column at the right
    assert even[:3, :3].tolist() == image.tolist()
    assert not even[3].any()
    assert not even[:, 3].any()
    assert CenterOnCanvas(2)(image).tolist() == image[:2, :2].tolist()
    tall = CenterOnCanvas(4)(np.ones((7, 1, 3), np.uint8))
    assert tall[:, 1].all()
    assert tall.sum() == 12


def test_600_comes_to_the_scale_of_450() -> None:
    image = np.zeros((600, 600, 3), np.uint8)
    image[200:400, 250:350] = 80
    cut = CenterOnCanvas()(image)
    assert cut.shape == (450, 450, 3)
    assert int((cut > 0).sum()) == int((image > 0).sum())
    assert cut[125, 175].tolist() == [80, 80, 80]


@given(image=IMAGES)
def test_pad_to_square_keeps_every_pixel(image: np.ndarray) -> None:
    square = PadToSquare()(image)
    assert square.shape == (max(image.shape), max(image.shape), 3) or max(image.shape[:2]) < 3
    assert sorted(square[square > 0]) == sorted(image[image > 0])


@given(image=cells(), margin=st.floats(0, 1))
def test_crop_is_a_square_around_the_cell_at_its_scale(image: np.ndarray, margin: float) -> None:
    mask = foreground_mask(image)
    assume(mask.any())
    cropped = CropToCell(margin)(image)
    rows, columns = np.nonzero(mask)
    longer = max(np.ptp(rows), np.ptp(columns)) + 1
    assert cropped.shape == (longer + 2 * round(margin * longer),) * 2 + (3,)
    if is_single_cell(image) and (mask == image.any(axis=2)).all():
        assert int(cropped.sum()) == int(image.sum())
        if is_single_cell(cropped):
            np.testing.assert_array_equal(CropToCell(margin)(cropped), cropped)


def test_scale_is_what_a_crop_loses_and_the_canvas_keeps(c_nmc_sample: Path) -> None:
    default, crop = Pipeline.default(90, canvas=450), Pipeline((CropToCell(0.1), Resize(90)))
    assert default.keeps_scale
    assert not crop.keeps_scale
    small, large = (np.zeros((450, 450, 3), np.uint8) for _ in range(2))
    small[200:260, 200:260] = large[150:300, 150:300] = 90
    assert default.scale(small) == default.scale(large) == pytest.approx(0.2)
    assert crop.scale(small) == pytest.approx(90 / 72)
    assert crop.scale(large) == pytest.approx(90 / 180)
    scales = [crop.scale(decode_image(path)) for path in sorted(c_nmc_sample.rglob("UID_*.bmp"))[:6]]
    assert len(set(scales)) == 6


def test_margins_are_checked() -> None:
    for margin in (-0.1, 11, "1", True):
        with pytest.raises(SettingsError, match=r"margin must be a number in \[0, 10\]"):
            CropToCell(margin)


def test_the_square_of_a_thin_strip_is_refused() -> None:
    """It would take gigabytes: found by benchmarks/fuzz_preprocess.py."""
    strip = np.zeros((30_000, 2, 3), np.uint8)
    lit = strip.copy()
    lit[100:29_000] = 90
    for step, image in ((PadToSquare(), strip), (CropToCell(), strip), (CropToCell(), lit)):
        with pytest.raises(ImageError, match="is over the 4,472 allowed"):
            step(image)
    for method in ("lanczos", "bilinear"):
        assert Resize(8, method)(lit).shape == (8, 8, 3)
    enormous = np.full((1, 5_000_000, 3), 9, np.uint8)  # took 12 GB once
    assert (Resize(224, "bilinear")(enormous) == 9).all()


@given(image=IMAGES, method=METHODS)
def test_resize_to_the_same_size_is_the_identity(image: np.ndarray, method: str) -> None:
    square = PadToSquare()(image)
    assert Resize(len(square), method)(square) is square


@given(image=IMAGES, size=SIZES)
def test_lanczos_is_pillows(image: np.ndarray, size: int) -> None:
    expected = np.asarray(Image.fromarray(image).resize((size, size), Image.Resampling.LANCZOS))
    np.testing.assert_array_equal(Resize(size)(image), expected)


@given(image=IMAGES, size=SIZES)
def test_bilinear_agrees_with_pillows_point_sampling(image: np.ndarray, size: int) -> None:
    """Pillow's affine transform interpolates at the same half-pixel centres, without antialiasing; it truncates."""
    scale = (image.shape[1] / size, 0, 0, 0, image.shape[0] / size, 0)
    oracle = Image.fromarray(image).transform(
        (size, size), Image.Transform.AFFINE, scale, resample=Image.Resampling.BILINEAR
    )
    difference = np.abs(Resize(size, "bilinear")(image).astype(int) - np.asarray(oracle).astype(int))
    assert difference.max() <= 1


def test_only_lanczos_is_antialiased() -> None:
    stripes = np.zeros((64, 64, 3), np.uint8)
    stripes[:, ::4] = 255
    assert np.ptp(Resize(16)(stripes)[:, 4:12]) < 40
    assert set(np.unique(Resize(16, "bilinear")(stripes))) == {0}


@given(image=IMAGES, size=SIZES, axis=st.sampled_from([0, 1]), method=METHODS)
def test_resize_commutes_with_flips(image: np.ndarray, size: int, axis: int, method: str) -> None:
    step = Resize(size, method)
    one, other = step(np.flip(image, axis)).astype(int), np.flip(step(image), axis).astype(int)
    assert np.abs(one - other).max() <= 1


@given(image=IMAGES, value=st.integers(0, 255), size=SIZES, method=METHODS)
def test_constant_images_stay_constant(image: np.ndarray, value: int, size: int, method: str) -> None:
    assert (Resize(size, method)(np.full_like(image, value)) == value).all()


@pytest.mark.parametrize("size", [0, -1, 4_473, 2.0, "96", True, None])
def test_sizes_are_checked(size: object) -> None:
    for step in (CenterOnCanvas, Resize):
        with pytest.raises(SettingsError, match=r"size must be a whole number from 1 to 4,472. Received: size="):
            step(size)


def test_numbers_of_numpy_are_those_of_python() -> None:
    numpy = Pipeline((CenterOnCanvas(np.int64(450)), CropToCell(np.float32(0.5)), Resize(np.uint8(64))))
    python = Pipeline((CenterOnCanvas(450), CropToCell(0.5), Resize(64)))
    assert numpy == python
    assert numpy.digest == python.digest
    assert json.dumps(numpy.to_dict()) == json.dumps(python.to_dict())


def test_methods_are_checked() -> None:
    with pytest.raises(SettingsError, match=r"method must be one of 'lanczos', 'bilinear'. Received: method='area'"):
        Resize(96, "area")


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((4, 4, 3)),
        np.zeros((4, 4), np.uint8),
        np.zeros((0, 4, 3), np.uint8),
        np.zeros((4, 4, 4), np.uint8),
        [[1]],
    ],
)
def test_what_is_no_image_is_refused(image: object) -> None:
    for step in (CenterOnCanvas(4), PadToSquare(), Resize(4)):
        with pytest.raises(ImageError, match=r"uint8 and shape \(height, width, 3\).*Received: "):
            step(image)
