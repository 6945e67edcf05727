"""Pipelines are values: equal ones hash, print, store and compute the same."""

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from leukemia_dl.datasets import Dataset, DatasetInfo
from leukemia_dl.errors import ImageError, SettingsError, UnknownNameError
from leukemia_dl.preprocess import (
    IMAGE_SUFFIXES,
    CenterOnCanvas,
    CropToCell,
    Macenko,
    PadToSquare,
    Pipeline,
    Reinhard,
    Resize,
    Step,
    decode_image,
    is_single_cell,
)
from leukemia_dl.testing.strategies import cells, images, pipelines

SIZES = st.integers(1, 24)
PIPELINES = pipelines()
IMAGES = images()


def test_the_default_pipeline_cuts_nothing_off_and_a_data_set_has_a_canvas_or_not() -> None:
    """20.12: what lay outside the middle 450 pixels of an image was cut off, whatever the data."""
    field = np.zeros((2_000, 2_000, 3), np.uint8)
    field[:200, :200] = 180, 90, 200
    assert Pipeline.default(100)(field)[:9, :9].min() > 60
    assert not Pipeline.default(100, canvas=450)(field).any()
    for canvas in (None, 60):
        info = DatasetInfo("one", "One", "none", "none", canvas=canvas)
        dataset = Dataset.from_arrays(np.zeros((2, 8, 8, 3), np.uint8), [0, 1], ("a", "b"), info)
        assert dataset.default_pipeline(32) == Pipeline.default(32, canvas=canvas)


@given(pipeline=PIPELINES)
def test_round_trip_through_json_and_repr(pipeline: Pipeline) -> None:
    again = Pipeline.from_dict(json.loads(json.dumps(pipeline.to_dict())))
    assert again == pipeline
    assert hash(again) == hash(pipeline)
    assert again.digest == pipeline.digest
    assert eval(repr(pipeline)) == pipeline


@given(one=PIPELINES, other=PIPELINES)
def test_digests_are_equal_exactly_for_equal_pipelines(one: Pipeline, other: Pipeline) -> None:
    assert (one.digest == other.digest) == (one == other)


def test_digest_changes_with_every_parameter() -> None:
    variants = [
        Pipeline.default(96, canvas=450),
        Pipeline.default(97, canvas=450),
        Pipeline.default(96, canvas=600),
        Pipeline.default(96),
        Pipeline((CenterOnCanvas(450), Resize(96, "bilinear"))),
        Pipeline((Resize(96), CenterOnCanvas(450))),
        Pipeline.published_v1(),
        Pipeline.decode_only(),
        Pipeline((CropToCell(0.1), Resize(96))),
        Pipeline((CropToCell(0.2), Resize(96))),
        *(Pipeline.default(96, canvas=450).then(step) for step in NORMALISERS),
    ]
    assert len({variant.digest for variant in variants}) == len(variants)


NORMALISERS = [
    Reinhard(),
    Reinhard((45.0, 25.0, -30.0), (12.0, 8.0, 6.0)),
    Reinhard((45.0, 25.0, -30.0), (12.0, 8.0, 7.0)),
    Macenko(),
    Macenko(alpha=2.0),
    Macenko(beta=0.2),
    Macenko(percentile=50.0),
    Macenko(light=255.0),
    Macenko(((0.65, 0.7, 0.29), (0.2, 0.9, 0.38)), (1.9, 1.0)),
    Macenko(((0.65, 0.7, 0.29), (0.2, 0.9, 0.38)), (1.9, 1.1)),
]


def test_digest_is_stable_between_versions() -> None:
    """It names cached pixels: a change here must be meant."""
    assert Pipeline.default(224, canvas=450).digest.startswith("72a790091b96e018")


@given(pipeline=PIPELINES, image=IMAGES)
def test_input_is_never_changed_nor_returned(pipeline: Pipeline, image: np.ndarray) -> None:
    before = image.copy()
    result = pipeline(image)
    assert result.dtype == np.uint8
    assert result.ndim == 3
    if pipeline.output_size is not None:
        assert result.shape == (pipeline.output_size, pipeline.output_size, 3)
    assert not np.shares_memory(result, image)
    np.testing.assert_array_equal(image, before)


@given(pipeline=PIPELINES, batch=hnp.arrays(np.uint8, st.tuples(st.integers(1, 4), SIZES, SIZES, st.just(3))))
def test_a_batch_equals_the_single_images(pipeline: Pipeline, batch: np.ndarray) -> None:
    if len({pipeline(image).shape for image in batch}) > 1:  # crops of different size cannot be stacked
        with pytest.raises(ValueError, match="must have the same shape"):
            pipeline(batch)
        return
    result = pipeline(batch)
    assert len(result) == len(batch)
    assert result.dtype == np.uint8
    assert result.ndim == 4
    for one, image in zip(result, batch, strict=True):
        np.testing.assert_array_equal(one, pipeline(image))


@given(pipeline=PIPELINES, image=cells())
def test_black_stays_black_through_every_pipeline_that_only_recolours(pipeline: Pipeline, image: np.ndarray) -> None:
    colour = Pipeline(tuple(step for step in pipeline.steps if isinstance(step, (Reinhard, Macenko))))
    assert not colour(image)[(image == 0).all(axis=-1)].any()


def test_fitting_follows_the_steps_and_leaves_the_unfitted_one_alone() -> None:
    batch = np.zeros((4, 30, 30, 3), np.uint8)
    batch[:, 8:22, 8:22] = np.random.default_rng(0).integers(30, 200, (4, 14, 14, 3))
    pipeline = Pipeline.default(16, canvas=24).then(Reinhard(), PadToSquare(), Macenko())
    assert not pipeline.is_fitted
    assert pipeline.output_size == 16
    with pytest.raises(SettingsError, match="has no target yet"):
        pipeline(batch)
    stored, rest = pipeline.partition()
    assert stored == Pipeline.default(16, canvas=24)
    assert rest.steps[0] == Reinhard()
    fitted = pipeline.fit(batch)
    assert fitted.is_fitted
    assert not pipeline.is_fitted
    assert fitted == stored.then(*rest.fit(stored(batch)).steps)
    assert fitted.steps[2] == Reinhard().fit(stored(batch))
    assert fitted.partition() == (fitted, Pipeline())
    np.testing.assert_array_equal(fitted(batch), rest.fit(stored(batch))(stored(batch)))


def test_a_step_of_ones_own_enters_like_ours() -> None:
    @dataclass(frozen=True)
    class Invert(Step):
        amount: int = 255

        def __call__(self, image: np.ndarray) -> np.ndarray:
            """Invert."""
            return (self.amount - image).astype(np.uint8)

    pipeline = Pipeline((Invert(), Resize(4)))
    assert Pipeline.from_dict(pipeline.to_dict()) == pipeline
    assert (pipeline(np.zeros((8, 8, 3), np.uint8)) == 255).all()


def test_a_step_that_breaks_the_rules_is_refused() -> None:
    @dataclass(frozen=True)
    class Floats(Step):
        def __call__(self, image: np.ndarray) -> np.ndarray:
            """Forget to go back to uint8."""
            return image / 255

    with pytest.raises(SettingsError, match="There is a step 'Resize' in leukemia_dl"):
        type("Resize", (Step,), {})
    with pytest.raises(SettingsError, match="takes a tuple of steps"):
        Pipeline(Resize(3))
    with pytest.raises(ImageError, match="Received: float64"):
        Pipeline((Floats(),))(np.zeros((4, 4, 3), np.uint8))


@pytest.mark.parametrize(
    ("one", "other"), [(CropToCell(1), CropToCell(1.0)), (Macenko(percentile=50), Macenko(percentile=50.0))]
)
def test_equal_steps_have_one_digest(one: Step, other: Step) -> None:
    assert Pipeline((one,)) == Pipeline((other,))
    assert Pipeline((one,)).digest == Pipeline((other,)).digest
    assert repr(one) == repr(other)


def test_presets() -> None:
    assert repr(Pipeline.default(96, canvas=450)) == (
        "Pipeline(steps=(CenterOnCanvas(size=450), Resize(size=96, method='lanczos')))"
    )
    assert Pipeline.default(96).steps == (PadToSquare(), Resize(96))
    assert Pipeline.published_v1().steps == (Resize(180, "bilinear"),)
    sizes = [
        Pipeline.default(96, canvas=450),
        Pipeline.published_v1(),
        Pipeline(),
        Pipeline((PadToSquare(),)),
    ]
    assert [pipeline.output_size for pipeline in sizes] == [96, 180, None, None]
    assert Pipeline((CenterOnCanvas(20), PadToSquare())).output_size == 20


def test_default_keeps_absolute_scale_and_padding_does_not_distort() -> None:
    small, large = np.zeros((450, 450, 3), np.uint8), np.zeros((600, 600, 3), np.uint8)
    small[175:275, 175:275] = 200
    large[250:350, 250:350] = 200
    np.testing.assert_array_equal(Pipeline.default(90, canvas=450)(small), Pipeline.default(90, canvas=450)(large))
    wide = np.full((30, 60, 3), 200, np.uint8)
    squared = Pipeline.default(30)(wide)
    assert (squared[15] > 190).all()
    assert not squared[:4].any()


def test_load_is_decode_then_steps(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (31, 20, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    np.testing.assert_array_equal(
        Pipeline.default(16, canvas=450).load(tmp_path / "a.png"), Pipeline.default(16, canvas=450)(pixels)
    )
    np.testing.assert_array_equal(Pipeline().load(str(tmp_path / "a.png")), pixels)
    with pytest.raises(ImageError, match=r"b\.png: there is no such file"):
        Pipeline.default(16, canvas=450).load(tmp_path / "b.png")


def test_threads_share_one_pipeline() -> None:
    images = list(np.random.default_rng(0).integers(0, 256, (40, 50, 40, 3), dtype=np.uint8))
    pipeline = Pipeline.default(24, canvas=48)
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(pipeline, images))
    np.testing.assert_array_equal(np.stack(results), np.stack([pipeline(image) for image in images]))


@pytest.mark.parametrize(
    "array", [np.zeros((4, 4, 3)), np.zeros((2, 2, 4, 4, 3), np.uint8), "cell.bmp", np.zeros((0, 3))]
)
def test_arrays_are_checked(array: object) -> None:
    with pytest.raises(
        ImageError, match=r"\(height, width, 3\) or \(n, height, width, 3\).*decode_image\(\) returns one"
    ):
        Pipeline()(array)


def test_steps_are_checked() -> None:
    with pytest.raises(SettingsError, match=r"takes a tuple of steps.*Received: \(<built-in"):
        Pipeline((abs,))
    with pytest.raises(UnknownNameError, match=r"no preprocessing step 'Resise'. Did you mean 'Resize'"):
        Pipeline.from_dict({"steps": [{"step": "Resise", "size": 4}]})
    for parameters in ({"size": 4, "sze": 4}, {}):
        with pytest.raises(SettingsError, match=r"stored as .*Resize\.__init__\(\) .* argument"):
            Pipeline.from_dict({"steps": [{"step": "Resize", **parameters}]})
    for wrong in ({}, {"steps": 3}, {"steps": ["Resize"]}, {"steps": [{"size": 3}]}, []):
        with pytest.raises(SettingsError, match="stored as"):
            Pipeline.from_dict(wrong)


@pytest.mark.parametrize("every", [6, pytest.param(1, marks=pytest.mark.slow)])
def test_no_real_image_fails(shared_data: Path, every: int) -> None:
    """The images that there are, through the default, a crop, and Reinhard; on black it stays black."""
    paths = sorted(path for path in shared_data.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES)
    assert len(paths) >= 1500
    pipeline = Pipeline.default(64, canvas=450).then(NORMALISERS[1])
    for path in paths[::every]:
        image = decode_image(path)
        result = pipeline(image)
        assert result.shape == (64, 64, 3)
        assert Pipeline((CropToCell(), Resize(16)))(image).shape == (16, 16, 3)
        if is_single_cell(image):
            assert not result[~Pipeline.default(64, canvas=450)(image).any(axis=-1)].any()
