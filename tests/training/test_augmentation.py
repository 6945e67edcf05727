"""Augmentation: exact symmetries, a background that stays, the same image on every backend."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import ndimage

from leukemia_dl.errors import ImageError, SettingsError
from leukemia_dl.models import classifier
from leukemia_dl.preprocess import GIEMSA, optical_density
from leukemia_dl.preprocess.colour import stain_matrix
from leukemia_dl.testing.strategies import cells, images
from leukemia_dl.training import Augmentation, augment, augment_images
from leukemia_dl.training.augmentation import PARAMETERS, background_colour, training_model

keras = pytest.importorskip("keras")
ALL = Augmentation(rotation=180, shift=0.3, brightness=0.3, contrast=0.3, stain=0.3)
COLOUR = Augmentation(symmetries=False, brightness=0.3, contrast=0.3, stain=0.3)
NUMBERS = np.random.default_rng(0).integers(1, 255, (1, 5, 5, 3), dtype=np.uint8)


def apply(batch, settings, **values):
    """Apply parameters that are given by name, 0 otherwise."""
    row = np.zeros((len(batch), len(PARAMETERS)), np.float32)
    for name, value in values.items():
        row[:, PARAMETERS.index(name)] = value
    return keras.ops.convert_to_numpy(augment(keras.ops.convert_to_tensor(batch), row, settings))


@given(image=images(square=True), turns=st.integers(0, 3), mirror=st.integers(0, 1))
def test_symmetries_are_numpys_exactly(image, turns, mirror):
    expected = np.rot90(image, turns)
    expected = expected[:, ::-1] if mirror else expected
    found = apply(image[None], Augmentation(), turns=turns, mirror=mirror)[0]
    np.testing.assert_array_equal(found, expected)


@given(image=images(square=True))
def test_four_right_angles_are_a_whole_turn_and_mirrors_undo_themselves(image):
    settings, batch = Augmentation(), image[None]
    turned = batch
    for _ in range(4):
        turned = apply(turned, settings, turns=1).astype(np.uint8)
    np.testing.assert_array_equal(turned, batch)
    for turns in range(4):
        once = apply(batch, settings, turns=turns, mirror=1).astype(np.uint8)
        np.testing.assert_array_equal(apply(once, settings, turns=turns, mirror=1), batch)


def test_they_are_the_eight_of_the_square_and_all_are_drawn():
    drawn = {augment_images(NUMBERS, Augmentation(), epoch=epoch).tobytes() for epoch in range(60)}
    wanted = {np.rot90(flip, k).tobytes() for flip in (NUMBERS[0], NUMBERS[0, :, ::-1]) for k in range(4)}
    assert drawn == wanted


@given(image=cells(max_size=24), seed=st.integers(0, 99))
def test_the_background_stays_exactly_black_through_colour(image, seed):
    result = augment_images(image[None], COLOUR, seed)[0]
    assert not result[(image == 0).all(axis=-1)].any()


@given(image=images(square=True, min_size=2), angle=st.floats(-3.1, 3.1), down=st.floats(-0.5, 0.5))
def test_rotation_and_shift_agree_with_scipy(image, angle, down):
    """Where nothing but the image itself is seen: scipy fills differently just outside of it."""
    size = len(image)
    moving = Augmentation(rotation=180, shift=0.5)
    found = apply(image[None], moving, angle=angle, down=down)[0]
    cosine, sine = np.cos(np.float32(angle)), np.sin(np.float32(angle))
    matrix = np.array([[cosine, sine], [-sine, cosine]])
    centre = np.full(2, (size - 1) / 2)
    offset = centre - matrix @ (centre + np.array([np.float32(down) * size, 0]))
    grid = np.moveaxis(np.mgrid[:size, :size], 0, -1) @ matrix.T + offset
    inside = ((grid > 1e-3) & (grid < size - 1 - 1e-3)).all(axis=-1)
    for channel in range(3):
        expected = ndimage.affine_transform(image[..., channel].astype(float), matrix, offset, order=1)
        np.testing.assert_allclose(found[inside, channel], expected[inside], atol=0.1)
    outside = ((grid < -1 - 1e-3) | (grid > size + 1e-3)).any(axis=-1)
    assert not found[outside].any()


def test_a_positive_angle_turns_as_a_quarter_turn_does():
    moving = Augmentation(rotation=180)
    np.testing.assert_allclose(apply(NUMBERS, moving, angle=np.pi / 2)[0], np.rot90(NUMBERS[0]), atol=0.01)
    down = np.pad(NUMBERS[0, :-1], ((1, 0), (0, 0), (0, 0)))
    np.testing.assert_allclose(apply(NUMBERS, Augmentation(shift=0.5), down=0.2)[0], down, atol=0.01)


def test_what_comes_in_has_the_colour_of_the_background():
    bright = np.full((1, 9, 9, 3), 200, np.uint8)
    bright[0, 4, 4] = 20
    assert background_colour(bright).tolist() == [[200, 200, 200]]
    result = augment_images(bright, Augmentation(rotation=180, shift=0.2), seed=3)
    assert (result[0, [0, -1]] == 200).all()
    assert background_colour(np.zeros((2, 4, 4, 3), np.uint8)).tolist() == [[0, 0, 0]] * 2
    bright[0, 0] = bright[0, :7, 0] = 90  # cells that touch the frame do not count, and one on black neither
    assert background_colour(bright).tolist() == [[200, 200, 200]]
    black = np.zeros((1, 9, 9, 3), np.uint8)
    black[0, 0] = 90
    assert background_colour(black).tolist() == [[0, 0, 0]]


@given(image=cells(max_size=20), one=st.floats(-0.3, 0.3), other=st.floats(-0.3, 0.3))
def test_stain_is_scaled_as_in_preprocess(image, one, other):
    stains = stain_matrix(GIEMSA)
    amounts = optical_density(image) @ np.linalg.inv(stains) * [1 + one, 1 + other, 1]
    expected = np.rint(np.clip(256 * np.exp(-amounts @ stains) - 1, 0, 255))
    found = apply(image[None], Augmentation(stain=0.5), stain_1=one, stain_2=other)[0]
    cell = image.sum(axis=-1) >= 32
    assert np.abs(found[cell] - expected[cell]).max(initial=0) <= 0.6


@given(image=cells(max_size=20), brightness=st.floats(-0.2, 0.2), contrast=st.floats(-0.5, 0.5))
def test_brightness_and_contrast(image, brightness, contrast):
    settings = Augmentation(brightness=0.5, contrast=0.5)
    found = apply(image[None], settings, brightness=brightness, contrast=contrast)[0]
    expected = lit(image.astype(float), brightness, contrast)
    np.testing.assert_allclose(found, expected, atol=0.01)
    inside = image.sum(axis=-1) >= 32
    if (inside == image.any(axis=-1)).all():  # no dark rim: the plain formula
        mean = image[inside].mean(axis=0)
        plain = (1 + brightness) * (mean + (1 + contrast) * (image[inside] - mean))
        np.testing.assert_allclose(found[inside], np.clip(plain, 0, 255), atol=0.01)


def lit(image, brightness, contrast, cell=None):
    cell = coverage(image) if cell is None else cell
    mean = image.sum(axis=(0, 1)) / max(cell.sum(), 1)
    image = (1 + brightness) * (1 + contrast) * image - (1 + brightness) * contrast * mean * cell
    return np.clip(image, 0, 255)


def coverage(image):
    return np.minimum(image.sum(axis=-1, keepdims=True) / 32, 1)


@given(image=images(square=True, max_size=9), seed=st.integers(0, 99))
def test_any_image_gives_numbers_in_range(image, seed):
    before = image.copy()
    result = apply(image[None], ALL, turns=seed % 4, angle=seed, down=0.1, stain_1=0.3, stain_2=-0.3, contrast=0.3)
    assert np.isfinite(result).all()
    assert result.min() >= 0
    assert result.max() <= 255
    np.testing.assert_array_equal(image, before)


def test_each_axis_is_drawn_for_itself():
    background = np.zeros((6, 3), np.uint8)
    one = Augmentation(rotation=10).draw(background, 0, 0)
    other = Augmentation(rotation=10, shift=0.1, stain=0.2).draw(background, 0, 0)
    for name in ("turns", "mirror", "angle"):
        column = PARAMETERS.index(name)
        np.testing.assert_array_equal(one[:, column], other[:, column])
    assert np.abs(one[:, PARAMETERS.index("angle")]).max() <= np.radians(10)
    assert not one[:, PARAMETERS.index("down")].any()


def test_no_two_axes_are_drawn_the_same():
    """20, mutant 19: the shift to the right is not that downwards, and the two stains do not change together."""
    drawn = ALL.draw(np.zeros((50, 3), np.uint8), seed=0, epoch=0)
    shares = {
        name: drawn[:, PARAMETERS.index(name)] / np.abs(drawn[:, PARAMETERS.index(name)]).max()
        for name in PARAMETERS[2:9]
    }
    for name, column in shares.items():
        for other in set(shares) - {name}:
            assert np.abs(column - shares[other]).max() > 0.5, (name, other)


def test_the_training_model_shares_weights_and_stays_compiled():
    inputs = keras.Input((6, 6, 3))
    model = keras.Model(inputs, keras.layers.Dense(2)(keras.layers.Flatten()(inputs)), name="m")
    trained = training_model(model, ALL)
    assert [id(v) for v in trained.trainable_variables] == [id(v) for v in model.trainable_variables]
    trained.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True), jit_compile=True)
    assert trained.jit_compile is True
    batch = np.random.default_rng(0).integers(0, 255, (4, 6, 6, 3), dtype=np.uint8)
    parameters = ALL.draw(background_colour(batch), 0, 0)
    expected = model.predict_on_batch(apply_all(batch, parameters))
    np.testing.assert_allclose(trained.predict_on_batch([batch, parameters]), expected, rtol=1e-4, atol=1e-3)
    assert np.isfinite(trained.train_on_batch([batch, parameters], np.array([0, 1, 0, 1])))
    for each in (trained, model):
        each.compile("sgd", jit_compile="auto")
    assert trained.jit_compile == model.jit_compile  # what Keras decides by itself is not changed by augmentation
    assert all(layer.supports_jit for layer in trained.layers)


def apply_all(batch, parameters):
    return keras.ops.convert_to_numpy(augment(keras.ops.convert_to_tensor(batch), parameters, ALL))


@pytest.mark.parametrize("field", ["rotation", "shift", "brightness", "contrast", "stain"])
@pytest.mark.parametrize("value", [-0.1, 200, "1", True, float("nan")])
def test_settings_are_checked(field, value):
    with pytest.raises(SettingsError, match=field):
        Augmentation(**{field: value})


def test_whether_anything_happens_is_known():
    assert not Augmentation(symmetries=False).augments
    assert Augmentation().augments
    assert Augmentation(symmetries=False, stain=0.1).augments


@given(image=cells(max_size=20), seed=st.integers(0, 10_000))
def test_the_whole_chain_is_the_same_on_every_backend_within_one_grey_level(image, seed):
    """Held to numpy and scipy on whichever backend the tests run: `make test` runs this file on TensorFlow and JAX."""
    parameters = ALL.draw(background_colour(image[None]), seed, 0)
    expected = oracle(image, dict(zip(PARAMETERS, parameters[0].astype(float), strict=True)))
    found = augment_images(image[None], ALL, seed)[0]
    assert np.abs(found - expected).max() <= 1


def oracle(image, value):
    size = len(image)
    image = np.rot90(image, int(value["turns"]))
    image = (image[:, ::-1] if value["mirror"] else image).astype(float)
    cosine, sine = np.cos(value["angle"]), np.sin(value["angle"])
    y, x = np.mgrid[:size, :size] - (size - 1) / 2
    y, x = y - value["down"] * size, x - value["right"] * size
    where = np.stack([cosine * y + sine * x, cosine * x - sine * y]) + (size + 1) / 2
    fill = np.array([value[name] for name in ("red", "green", "blue")])
    rim = np.pad(image - fill, ((1, 1), (1, 1), (0, 0)))
    moved = [ndimage.map_coordinates(rim[..., channel], where, order=1) for channel in range(3)]
    image = np.stack(moved, axis=-1) + fill
    stains = stain_matrix(GIEMSA)
    cell = coverage(image)
    amounts = -np.log((image + 1) / 256) @ np.linalg.inv(stains)
    stained = 256 * np.exp(-(amounts * [1 + value["stain_1"], 1 + value["stain_2"], 1]) @ stains) - 1
    image = image + cell * (np.clip(stained, 0, 255) - image)
    return lit(image, value["brightness"], value["contrast"], cell)


def test_a_trace_of_light_stays_one():
    image = np.zeros((1, 9, 9, 3), np.uint8)
    image[0, 4, 4] = (1, 0, 0)
    for seed in range(50):
        assert augment_images(image, Augmentation(brightness=0.2, contrast=0.2, stain=0.2), seed).max() <= 3


def test_only_square_images_of_whole_grey_levels_can_be_augmented():
    for wrong in (np.zeros((2, 4, 6, 3), np.uint8), np.zeros((4, 4, 3), np.uint8), np.zeros((2, 4, 4, 3)), None):
        with pytest.raises(ImageError):
            augment_images(wrong, Augmentation())


def test_forms_of_test_time_augmentation_are_those_of_training(monkeypatch):
    monkeypatch.setattr(classifier, "predict_logits", lambda model, images, batch_size: images)
    for form, found in enumerate(classifier.logits_over_symmetries(None, NUMBERS, 1)):
        expected = apply(NUMBERS, Augmentation(), turns=form % 4, mirror=form // 4)
        np.testing.assert_array_equal(found, expected)
