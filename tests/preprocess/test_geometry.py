"""Geometry: canvas and padding are exact, resizing agrees with Pillow and commutes with flips."""

import json
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
    center_on_canvas,
    crop_to_cell,
    decode_image,
    foreground_mask,
    is_single_cell,
    pad_to_square,
    resize,
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


@given(image=IMAGES, more=st.integers(0, 9))
def test_padding_then_cropping_is_the_identity(image: np.ndarray, more: int) -> None:
    height, width = image.shape[:2]
    padded = center_on_canvas(image, height + more, width + 2 * more)
    assert int(padded.sum()) == int(image.sum())
    np.testing.assert_array_equal(center_on_canvas(padded, height, width), image)


def test_canvas_centres_exactly() -> None:
    image = np.arange(1, 28, dtype=np.uint8).reshape(3, 3, 3)
    assert center_on_canvas(image, 5, 5)[1:4, 1:4].tolist() == image.tolist()
    assert center_on_canvas(image, 1, 1).tolist() == image[1:2, 1:2].tolist()
    even = center_on_canvas(image, 4, 3)  # the extra row is below
    assert even[:3].tolist() == image.tolist()
    assert not even[3].any()


def test_600_comes_to_the_scale_of_450() -> None:
    image = np.zeros((600, 600, 3), np.uint8)
    image[200:400, 250:350] = 80
    cut = CenterOnCanvas()(image)
    assert cut.shape == (450, 450, 3)
    assert int((cut > 0).sum()) == int((image > 0).sum())
    assert cut[125, 175].tolist() == [80, 80, 80]


@given(image=IMAGES)
def test_pad_to_square_keeps_every_pixel(image: np.ndarray) -> None:
    square = pad_to_square(image)
    assert square.shape == (max(image.shape), max(image.shape), 3) or max(image.shape[:2]) < 3
    assert sorted(square[square > 0]) == sorted(image[image > 0])


@given(image=cells(), margin=st.floats(0, 1))
def test_crop_is_a_square_around_the_cell_at_its_scale(image: np.ndarray, margin: float) -> None:
    mask = foreground_mask(image)
    assume(mask.any())
    cropped = crop_to_cell(image, margin)
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
        with pytest.raises(SettingsError, match=r"margin must be a number in \[0, 10\]"):
            crop_to_cell(np.zeros((4, 4, 3), np.uint8), margin)
    for call in (lambda i: resize(i, 0, 5), lambda i: resize(i, 5, -1), lambda i: center_on_canvas(i, 5.0, 5)):
        with pytest.raises(SettingsError, match="size must be"):
            call(np.zeros((4, 4, 3), np.uint8))


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
    assert (resize(enormous, 224, 224, "bilinear") == 9).all()


@given(image=IMAGES, method=METHODS)
def test_resize_to_the_same_size_is_the_identity(image: np.ndarray, method: str) -> None:
    same = resize(image, *image.shape[:2], method)
    np.testing.assert_array_equal(same, image)
    assert not np.shares_memory(same, image)


@given(image=IMAGES, height=SIZES, width=SIZES)
def test_lanczos_is_pillows(image: np.ndarray, height: int, width: int) -> None:
    image = np.maximum(image, 1)  # what is black is left out, which may round otherwise: the tests below
    expected = np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.LANCZOS))
    np.testing.assert_array_equal(resize(image, height, width), expected)


def _assert_pillows_but_for_rounding(image: np.ndarray, height: int, width: int) -> None:
    """Pillow resizes along one axis, cuts to 0..255, then along the other, and chooses the order by the sizes.

    A rounding that differs in the first pass is one grey level, which the second pass may weight by up to 1.4.
    """
    found = resize(image, height, width).astype(int)
    differences = []
    for first in ((width, len(image)), (image.shape[1], height)):
        picture = Image.fromarray(image).resize(first, Image.Resampling.LANCZOS)
        expected = np.asarray(picture.resize((width, height), Image.Resampling.LANCZOS))
        differences.append(np.abs(found - expected).max())
    assert min(differences) <= 2


@given(image=IMAGES, height=SIZES, width=SIZES)
def test_black_images_are_resized_as_pillow_does(image: np.ndarray, height: int, width: int) -> None:
    _assert_pillows_but_for_rounding(image, height, width)


@given(image=cells(), top=st.integers(0, 60), left=st.integers(0, 60), size=st.integers(1, 200))
def test_a_cell_on_black_is_resized_as_pillow_does(image: np.ndarray, top: int, left: int, size: int) -> None:
    """Only the part that is not black is computed: the same but for rounding."""
    frame = np.zeros((120, 110, 3), np.uint8)
    frame[top : top + len(image), left : left + len(image)] = image[: 120 - top, : 110 - left]
    _assert_pillows_but_for_rounding(frame, size, size)


@given(image=IMAGES, height=SIZES, width=SIZES)
def test_bilinear_agrees_with_pillows_point_sampling(image: np.ndarray, height: int, width: int) -> None:
    """Pillow's affine transform interpolates at the same half-pixel centres, without antialiasing; it truncates."""
    scale = (image.shape[1] / width, 0, 0, 0, image.shape[0] / height, 0)
    oracle = Image.fromarray(image).transform(
        (width, height), Image.Transform.AFFINE, scale, resample=Image.Resampling.BILINEAR
    )
    difference = np.abs(resize(image, height, width, "bilinear").astype(int) - np.asarray(oracle).astype(int))
    assert difference.max() <= 1


def test_only_lanczos_is_antialiased() -> None:
    stripes = np.zeros((64, 64, 3), np.uint8)
    stripes[:, ::4] = 255
    assert np.ptp(resize(stripes, 16, 16)[:, 4:12]) < 40
    assert set(np.unique(resize(stripes, 16, 16, "bilinear"))) == {0}


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
    with pytest.raises(SettingsError, match=r"knows the methods lanczos, bilinear. Received: method='area'"):
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
