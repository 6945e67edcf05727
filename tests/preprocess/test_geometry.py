"""Geometry: canvas and padding are exact, resizing agrees with Pillow and commutes with flips."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from leukemia_dl.errors import ImageError, SettingsError
from leukemia_dl.preprocess import CenterOnCanvas, PadToSquare, Resize, center_on_canvas, pad_to_square, resize

SIZES = st.integers(1, 24)
IMAGES = hnp.arrays(np.uint8, st.tuples(SIZES, SIZES, st.just(3)))
METHODS = st.sampled_from(["lanczos", "bilinear"])


@given(image=IMAGES, size=SIZES, method=METHODS)
def test_steps_leave_their_input_alone_and_give_new_uint8(image: np.ndarray, size: int, method: str) -> None:
    before = image.copy()
    for step in (CenterOnCanvas(size), PadToSquare(), Resize(size, method)):
        result = step(image)
        assert result.dtype == np.uint8
        assert result.shape[0] == result.shape[1] == (step.size_after(None) or max(image.shape[:2]))
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


@given(image=IMAGES, method=METHODS)
def test_resize_to_the_same_size_is_the_identity(image: np.ndarray, method: str) -> None:
    same = resize(image, *image.shape[:2], method)
    np.testing.assert_array_equal(same, image)
    assert not np.shares_memory(same, image)


@given(image=IMAGES, height=SIZES, width=SIZES)
def test_lanczos_is_pillows(image: np.ndarray, height: int, width: int) -> None:
    expected = np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.LANCZOS))
    np.testing.assert_array_equal(resize(image, height, width), expected)


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


@pytest.mark.parametrize("size", [0, -1, 7_072, 2.0, "96", True, None])
def test_sizes_are_checked(size: object) -> None:
    for step in (CenterOnCanvas, Resize):
        with pytest.raises(SettingsError, match=r"needs a size in pixels, an int from 1 to 7,071. Received: size="):
            step(size)


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
