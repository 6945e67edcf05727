import importlib.util
import os
import shutil
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from leukemia_dl.datasets import Dataset, pixels
from leukemia_dl.errors import DataError, ImageError, SettingsError, StoreError
from leukemia_dl.preprocess import Pipeline, Reinhard, Resize, Step

PIPELINE = Pipeline.default(24)
SIZES = (8, 24, 31, 60)


@pytest.fixture
def small(tmp_path: Path, write_image: Callable[..., Path]) -> Dataset:
    """Ten images of which 4 and 5 have the same bytes."""
    for number in range(10):
        label = "all" if number % 2 else "hem"
        write_image(tmp_path / "images" / label / f"{number}.png", min(number, 4) if number < 6 else number, SIZES[0])
    shutil.copy(tmp_path / "images" / "hem" / "4.png", tmp_path / "images" / "all" / "5.png")
    return Dataset.from_folder(tmp_path / "images")


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return tmp_path / "stores"


def test_a_store_is_the_pipeline_applied_afresh(small: Dataset, base: Path) -> None:
    store = small.pixel_store(PIPELINE, base)
    fresh = small.to_numpy(PIPELINE)
    assert (len(store), store.images.shape) == (10, (9, 24, 24, 3)), "files with the same bytes are kept once"
    np.testing.assert_array_equal(store[:], fresh)
    assert not store.images.flags.writeable
    part = store[[3, 1]]
    part[:] = 0
    np.testing.assert_array_equal(store[3], fresh[3])


@settings(max_examples=15)
@given(rows=st.lists(st.integers(0, 9), min_size=2, max_size=10, unique=True), picked=st.data())
def test_random_subsets_and_orders(
    rows: list[int], picked: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    root = tmp_path_factory.getbasetemp() / "subsets"
    if not root.exists():
        from PIL import Image

        for number in range(10):
            (root / "ab"[number % 2]).mkdir(parents=True, exist_ok=True)
            noise = np.random.default_rng(number).integers(0, 256, (9, 7, 3), dtype=np.uint8)
            Image.fromarray(noise).save(root / "ab"[number % 2] / f"{number}.bmp")
    dataset = Dataset.from_folder(root).subset(rows)
    store = dataset.pixel_store(PIPELINE, root.with_name("subset_stores"))
    some = picked.draw(st.lists(st.integers(0, len(rows) - 1), min_size=1))
    np.testing.assert_array_equal(store[some], np.stack([PIPELINE(dataset.decode(row)) for row in some]))


def test_it_is_found_again_by_content_wherever_the_files_lie(small: Dataset, base: Path, tmp_path: Path) -> None:
    first = small.pixel_store(PIPELINE, base)
    written = first.path.stat().st_ino
    shutil.copytree(tmp_path / "images", tmp_path / "moved")
    moved = Dataset.from_folder(tmp_path / "moved").subset(range(9, -1, -1))
    again = moved.pixel_store(PIPELINE, base)
    assert again.path == first.path
    assert again.path.stat().st_ino == written
    np.testing.assert_array_equal(again[:], first[:][::-1])


def test_a_changed_file_or_another_pipeline_is_another_store(
    small: Dataset, base: Path, write_image: Callable[..., Path]
) -> None:
    first = small.pixel_store(PIPELINE, base)
    other = small.pixel_store(Pipeline.default(25), base)
    write_image(small.paths[0], 77, 12)
    changed = Dataset.from_dataframe(small.table).pixel_store(PIPELINE, base)
    assert len({first.path, other.path, changed.path}) == 3
    np.testing.assert_array_equal(changed[0], PIPELINE.load(small.paths[0]))


@pytest.mark.parametrize("package", ["leukemia-dl", "pillow", "numpy"])
def test_another_version_of_what_decodes_is_another_store(
    small: Dataset, base: Path, monkeypatch: pytest.MonkeyPatch, package: str
) -> None:
    """Mutant 15: the versions of Pillow and NumPy are part of what a store is found by."""
    first, real = small.pixel_store(PIPELINE, base), pixels.metadata.version
    monkeypatch.setattr(pixels.metadata, "version", lambda name: "0.0" if name == package else real(name))
    assert small.pixel_store(PIPELINE, base).path != first.path


def test_pixels_reach_the_disk_before_the_name_does(
    small: Dataset, base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Mutant 15: the file of a store is synchronised before it is moved into place."""
    synced, real = [], os.fsync

    def sync(descriptor: int) -> None:
        if stat.S_ISREG(os.fstat(descriptor).st_mode):
            assert not [place for place in base.iterdir() if not place.name.startswith(".")]
            synced.append(os.fstat(descriptor).st_size)
        real(descriptor)

    monkeypatch.setattr(os, "fsync", sync)
    store = small.pixel_store(PIPELINE, base)
    assert synced == [store.path.stat().st_size]


def test_a_file_that_has_changed_is_noticed(small: Dataset, base: Path, write_image: Callable[..., Path]) -> None:
    _ = small.content_hashes
    write_image(small.paths[2], 99, 13)
    with pytest.raises(
        DataError, match=r"all.5.png has changed since the data set was loaded. Load the data set again"
    ):
        small.pixel_store(PIPELINE, base)
    assert list(base.iterdir()) == []


def test_corrupt_files_are_named_once_and_nothing_is_left(small: Dataset, base: Path) -> None:
    bad = [small.paths[row] for row in (1, 6)]
    for path in bad:
        path.write_bytes(path.read_bytes()[: 40 + int(path.stem)])
    with pytest.raises(ImageError, match="2 of 10 images cannot be read") as caught:
        Dataset.from_dataframe(small.table).pixel_store(PIPELINE, base)
    assert [str(caught.value).count(str(path)) for path in bad] == [1, 1]
    assert list(base.iterdir()) == []


def test_processes_fill_it_as_threads_do(small: Dataset, base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    threads = small.pixel_store(PIPELINE, base)
    monkeypatch.setattr(pixels, "_FEW", 0)
    processes = small.pixel_store(PIPELINE, base.with_name("others"))
    np.testing.assert_array_equal(threads[:], processes[:])
    small.paths[3].write_bytes(b"BM")
    with pytest.raises(ImageError, match="1 of 10 images"):
        Dataset.from_dataframe(small.table).pixel_store(PIPELINE, base)


def test_images_in_memory_are_stored_too(base: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (5, 30, 20, 3), dtype=np.uint8)
    dataset = Dataset.from_arrays(images, [0, 1, 0, 1, 0], ("hem", "all"))
    np.testing.assert_array_equal(dataset.pixel_store(PIPELINE, base)[:], PIPELINE(images))


def test_what_does_not_fit_is_refused(small: Dataset, base: Path) -> None:
    for pipeline in (Pipeline(), Pipeline((Resize(8), Reinhard()))):
        with pytest.raises(SettingsError, match="takes a fitted pipeline that ends in Resize"):
            small.pixel_store(pipeline, base)
    file = base.with_name("file")
    file.write_text("")
    with pytest.raises(StoreError, match="set LEUKEMIA_DL_CACHE"):
        small.pixel_store(PIPELINE, file)


_FULL = """
import resource, sys
from leukemia_dl.datasets import Dataset
from leukemia_dl.errors import StoreError
from leukemia_dl.preprocess import Pipeline
dataset = Dataset.from_folder(sys.argv[1])
_ = dataset.content_hashes
resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
try:
    dataset.pixel_store(Pipeline.default(64), sys.argv[2])
except StoreError as error:
    print(error)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="needs limits of the system")
def test_a_full_disk_is_one_clear_error(small: Dataset, base: Path, tmp_path: Path) -> None:
    """A limit on the size of a file stands for it: the system refuses in the same place."""
    command = [sys.executable, "-c", _FULL, str(tmp_path / "images"), str(base)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    assert "The decoded pixels cannot be written to" in done.stdout
    assert list(base.iterdir()) == []


_SLOW = """
import sys, time
from dataclasses import dataclass
from leukemia_dl.datasets import Dataset
from leukemia_dl.preprocess import Pipeline, Resize, Step
@dataclass(frozen=True)
class Wait(Step):
    def __call__(self, image):
        open(sys.argv[3], "a").close()
        time.sleep(0.15)
        return image
Dataset.from_folder(sys.argv[1]).pixel_store(Pipeline((Wait(), Resize(24))), sys.argv[2])
"""


@pytest.mark.skipif(sys.platform == "win32", reason="needs signals")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_interrupted_it_is_absent(small: Dataset, base: Path, tmp_path: Path, number: signal.Signals) -> None:
    begun = tmp_path / "begun"
    arguments = [sys.executable, "-c", _SLOW, str(tmp_path / "images"), str(base), str(begun)]
    process = subprocess.Popen(
        arguments,
        stderr=subprocess.DEVNULL,
        # A shell's background job ignores SIGINT, and its children with it.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    for _ in range(3_000):
        if begun.exists():
            break
        time.sleep(0.02)
    process.send_signal(number)
    assert process.wait(timeout=60) != 0
    assert [place for place in base.iterdir() if not place.name.startswith(".")] == []
    if number == signal.SIGINT:
        assert list(base.iterdir()) == []
    np.testing.assert_array_equal(small.pixel_store(PIPELINE, base)[:], small.to_numpy(PIPELINE))


_OPEN = """
import sys
from leukemia_dl.datasets import Dataset
from leukemia_dl.preprocess import Pipeline
print(Dataset.from_folder(sys.argv[1]).pixel_store(Pipeline.default(24), sys.argv[2])[:].sum())
"""


def test_two_processes_may_build_one_store(small: Dataset, base: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-c", _OPEN, str(tmp_path / "images"), str(base)]
    workers = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    sums = [int(worker.communicate(timeout=120)[0]) for worker in workers]
    assert sums == [small.to_numpy(PIPELINE).sum(dtype=np.int64)] * 2
    assert len(list(base.iterdir())) == 1


def test_files_and_arrays_together(small: Dataset, base: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (3, 9, 9, 3), dtype=np.uint8)
    arrays = Dataset.from_arrays(images, [0, 1, 0], small.class_names)
    both = small.merge(arrays)
    np.testing.assert_array_equal(both.pixel_store(PIPELINE, base)[:], both.to_numpy(PIPELINE))
    again = Dataset.from_arrays(images, [0, 1, 0], small.class_names)
    _ = again.content_hashes
    images[1] = 0
    with pytest.raises(DataError, match="An array has changed"):
        again.pixel_store(PIPELINE, base)


def test_a_step_that_shrinks_what_was_promised_is_refused(small: Dataset, base: Path) -> None:
    @dataclass(frozen=True)
    class OnePixel(Step):
        def __call__(self, image: np.ndarray) -> np.ndarray:
            return image[:1, :1]

    pipeline = Pipeline((Resize(12), OnePixel()))
    for use in (lambda: small.pixel_store(pipeline, base), lambda: small.to_numpy(pipeline)):
        with pytest.raises(SettingsError, match="gives images of 1 x 1 and 12 x 12 pixels"):
            use()


@pytest.mark.parametrize("damage", ["cut", "shape", "header"])
def test_a_damaged_store_is_built_again(small: Dataset, base: Path, damage: str) -> None:
    store = small.pixel_store(PIPELINE, base)
    expected = store[:]
    if damage == "cut":
        os.truncate(store.path, 1000)
    elif damage == "shape":
        np.save(store.path, expected[:2])
    else:
        store.path.write_bytes(b"\x93NUMPY\x01\x00\xff\xff{'descr': '|O'}")
    np.testing.assert_array_equal(small.pixel_store(PIPELINE, base)[:], expected)
    assert [place.name for place in base.iterdir()] == [store.path.name]


def test_an_edited_step_is_another_store(
    small: Dataset, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = """
from dataclasses import dataclass
from leukemia_dl.preprocess import Step

@dataclass(frozen=True)
class Edited(Step):
    def __call__(self, image):
        return RESULT
"""
    sums = []
    for number, result in enumerate(("image", "255 - image", "image")):
        script = tmp_path / f"script_{number}.py"
        script.write_text(code.replace("RESULT", result))
        spec = importlib.util.spec_from_file_location(script.stem, script)
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, script.stem, module)
        spec.loader.exec_module(module)
        sums.append(int(small.pixel_store(Pipeline((Resize(12), module.Edited())), base)[:].sum(dtype=np.int64)))
    plain = int(small.to_numpy(Pipeline((Resize(12),))).sum(dtype=np.int64))
    assert sums == [plain, 10 * 12 * 12 * 3 * 255 - plain, plain]
    assert len(list(base.iterdir())) == 2


def test_what_a_killed_process_left_is_swept_after_a_day(small: Dataset, base: Path) -> None:
    """Nothing else may be deleted in a folder of the user, such as `.git`."""
    left, busy = (f".{name}-0a1b2c3d.unfinished" for name in ("left", "busy"))
    for name, age in ((left, 2 * 86_400), (busy, 60), (".git", 2 * 86_400)):
        (base / name).mkdir(parents=True)
        os.utime(base / name, (time.time() - age,) * 2)
    small.pixel_store(PIPELINE, base)
    assert {place.name for place in base.iterdir() if place.name.startswith(".")} == {busy, ".git"}
