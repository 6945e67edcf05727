"""The worked example of a third-party source: found by its entry point, and hard to fool by a file."""

import io
import logging
import os
import pickle
import random
import tomllib
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from leukemia_dl import plugins
from leukemia_dl.datasets import Dataset, dataset_table, list_datasets, make_splits
from leukemia_dl.errors import DataError, SettingsError, SplitError

EXAMPLE = Path(__file__).parents[2] / "examples" / "bloodmnist"
COUNTS = {"train": 80, "val": 16, "test": 24}
Arrays = dict[str, np.ndarray]


@pytest.fixture(autouse=True)
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The metadata that pip would write, made from the example's own pyproject.toml."""
    project = tomllib.loads((EXAMPLE / "pyproject.toml").read_text())["project"]
    info = tmp_path / "site" / f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n")
    points = "\n".join(f"{name} = {module}" for name, module in project["entry-points"]["leukemia_dl"].items())
    (info / "entry_points.txt").write_text(f"[leukemia_dl]\n{points}\n")
    monkeypatch.syspath_prepend(info.parent)
    monkeypatch.syspath_prepend(EXAMPLE)
    plugins.forget()
    yield
    plugins.forget()


def arrays(size: int = 28) -> Arrays:
    rng = np.random.default_rng(0)
    made: Arrays = {}
    for side, count in COUNTS.items():
        made[f"{side}_images"] = rng.integers(0, 256, (count, size, size, 3), dtype=np.uint8)
        made[f"{side}_labels"] = (np.arange(count) % 8).astype(np.uint8)[:, np.newaxis]
    return made


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    """Return `write(name="bloodmnist.npz", size=28, **changed)`: MedMNIST's form, arrays changed or left out."""

    def write(name: str = "bloodmnist.npz", size: int = 28, **changed: Any) -> Path:
        made = {key: value for key, value in {**arrays(size), **changed}.items() if value is not None}
        np.savez_compressed(tmp_path / name, **made)
        return tmp_path / name

    return write


def replace(path: Path, key: str, content: bytes, compression: int = zipfile.ZIP_DEFLATED) -> Path:
    """Write the file again, with other bytes as one of its members."""
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, old in {**members, key: content}.items():
            archive.writestr(name, content if name == key else old)
    return path


def header(shape: str, descr: str = "'|u1'") -> bytes:
    text = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}".encode()
    text += b" " * (-(len(text) + 11) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text


def test_the_entry_point_makes_it_a_data_set() -> None:
    assert "bloodmnist" in list_datasets()
    assert plugins.plugin_problems().empty
    row = dataset_table().set_index("name").loc["bloodmnist"]
    assert row[["plugin", "version", "licence", "images", "options"]].tolist() == [
        "leukemia-dl-bloodmnist", "0.1.0", "CC BY 4.0", "17092", "root, size"
    ]  # fmt: skip


def test_images_labels_and_sides(write: Callable[..., Path], caplog: pytest.LogCaptureFixture) -> None:
    path, made = write(), arrays()
    with caplog.at_level(logging.INFO):
        dataset = Dataset.load("bloodmnist", root=path)
    assert "80 of the 11959 images of the side train are there" in caplog.text
    assert len(dataset) == 120
    assert len(dataset.class_names) == 8
    assert dataset.class_names[0] == "basophil"
    assert dataset.class_names[7] == "platelet"
    table = dataset.table
    assert table["split"].value_counts().to_dict() == COUNTS
    assert table["subject"].isna().all()
    rows = {sample: row for row, sample in enumerate(table["sample"])}
    for side, number in (("train", 0), ("train", 79), ("val", 3), ("test", 23)):
        row = rows[f"{side}/{number:05d}"]
        assert np.array_equal(dataset.decode(row), made[f"{side}_images"][number])
        assert dataset.labels[row] == made[f"{side}_labels"][number, 0]


def test_protocols(write: Callable[..., Path]) -> None:
    dataset = Dataset.load("bloodmnist", root=write())
    (split,) = make_splits(dataset, "fixed")
    assert [len(split.train), len(split.val), len(split.test)] == list(COUNTS.values())
    assert set(dataset.table["split"].iloc[split.val]) == {"val"}
    with pytest.raises(SplitError, match=r"protocol=\"fixed\" .*protocol=\"random\", allow_leakage=True"):
        make_splits(dataset, "kfold")


def test_a_folder_and_its_sizes(write: Callable[..., Path]) -> None:
    folder = write().parent
    assert len(Dataset.load("bloodmnist", root=folder)) == 120
    write("bloodmnist_64.npz", size=64)
    with pytest.raises(DataError, match=r"holds bloodmnist\.npz, bloodmnist_64\.npz: pass size=28"):
        Dataset.load("bloodmnist", root=folder)
    assert Dataset.load("bloodmnist", root=folder, size="64").decode(0).shape == (64, 64, 3)
    assert Dataset.load("bloodmnist", root=folder, size=28).decode(0).shape == (28, 28, 3)
    with pytest.raises(DataError, match=r"does not hold bloodmnist_224\.npz"):
        Dataset.load("bloodmnist", root=folder, size=224)
    with pytest.raises(DataError, match="holds images of 64 pixels, and size is 28"):
        Dataset.load("bloodmnist", root=folder / "bloodmnist_64.npz", size=28)
    for size in (32, True, "big"):
        with pytest.raises(SettingsError, match=r"size must be one of 28, 64, 128, 224"):
            Dataset.load("bloodmnist", root=folder, size=size)
    with pytest.raises(DataError, match=r"There is no file or folder .*gone"):
        Dataset.load("bloodmnist", root=folder / "gone")


def test_fingerprint_follows_the_pixels(write: Callable[..., Path]) -> None:
    first = Dataset.load("bloodmnist", root=write()).fingerprint
    assert Dataset.load("bloodmnist", root=write("again.npz")).fingerprint == first
    changed = arrays()["val_images"]
    changed[0, 0, 0, 0] ^= 1
    assert Dataset.load("bloodmnist", root=write("other.npz", val_images=changed)).fingerprint != first


def test_fortran_order_is_the_same(write: Callable[..., Path]) -> None:
    first = Dataset.load("bloodmnist", root=write()).fingerprint
    turned = np.asfortranarray(arrays()["train_images"])
    assert Dataset.load("bloodmnist", root=write("turned.npz", train_images=turned)).fingerprint == first


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"val_images": None}, "has no val_images. Found in it: train_images.npy"),
        ({"test_labels": None}, "has no test_labels"),
        ({"train_images": np.zeros((80, 28, 28, 3), np.float32)}, "train_images must be uint8. Received: float32"),
        ({"train_images": np.zeros((80, 28, 28, 3), np.int8)}, "train_images must be uint8. Received: int8"),
        ({"train_labels": np.zeros((80, 1))}, "train_labels must be whole numbers. Received: float64"),
        ({"train_labels": np.full((80, 1), "x")}, "train_labels must be whole numbers"),
        ({"train_labels": np.zeros((80, 1), object)}, "train_labels must be whole numbers. Received: object"),
        ({"val_images": np.zeros((16, 28, 28, 3), object)}, "val_images must be uint8. Received: object"),
        ({"train_labels": np.zeros(80, np.uint8)}, r"train_labels must be .*labels \(n, 1\). Received: \(80,\)"),
        ({"train_labels": np.zeros((79, 1), np.uint8)}, r"train_labels must be \(80, 1\), .*Received: \(79, 1\)"),
        ({"train_labels": np.full((80, 1), 8)}, "labels must be from 0 to 7. Received: 0 to 8"),
        ({"train_labels": np.full((80, 1), -1)}, "labels must be from 0 to 7. Received: -1"),
        ({"val_images": np.zeros((16, 28, 28), np.uint8)}, r"val_images must be images \(n, size, size, 3\)"),
        ({"val_images": np.zeros((16, 28, 28, 1), np.uint8)}, r"val_images must be \(n, size, size, 3\)"),
        ({"val_images": np.zeros((16, 64, 64, 3), np.uint8)}, r"one size .* for all sides. Received: \(16, 64, 64, 3"),
        ({"val_images": np.zeros((0, 28, 28, 3), np.uint8)}, "with n from 1 to 1,712"),
        ({"val_images": np.zeros((1713, 28, 28, 3), np.uint8)}, "with n from 1 to 1,712"),
        ({"val_images": np.uint8(3)}, r"Received: \(\)"),
    ],
)
def test_other_contents(write: Callable[..., Path], changed: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        Dataset.load("bloodmnist", root=write(**changed))


class _Marks:
    """An object that leaves a file behind if somebody unpickles it."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.mark),)


def test_nothing_is_unpickled(write: Callable[..., Path], tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    content = pickle.dumps(_Marks(mark))
    for key in ("val_labels.npy", "val_labels"):
        path = replace(write(), key, content)
        if key == "val_labels":  # beside the real array, where numpy looks first
            assert len(Dataset.load("bloodmnist", root=path)) == 120
        else:
            with pytest.raises(DataError, match="cannot be read as an npz file"):
                Dataset.load("bloodmnist", root=path)
    with pytest.raises(DataError, match=r"val_labels must be whole numbers. Received: object"):
        Dataset.load("bloodmnist", root=replace(write(), "val_labels.npy", header("(16, 1)", "'|O'") + content))
    (tmp_path / "plain.npz").write_bytes(content)
    with pytest.raises(DataError, match="cannot be read as an npz file"):
        Dataset.load("bloodmnist", root=tmp_path / "plain.npz")
    assert not mark.exists()


@pytest.mark.parametrize(
    ("claim", "message"),
    [
        (header("(1712, 28, 28, 3)"), r"claims the shape \(1712, 28, 28, 3\), which its 128 bytes do not hold"),
        (header("(10**12, 28, 28, 3)"), "cannot be read"),
        (header(f"({10**12}, 28, 28, 3)"), "claims the shape"),
        (header(f"(1{'0' * 5000}, 28, 28, 3)"), "cannot be read"),
        (header(f"(1{'0' * 400}, 28, 28, 3)"), "cannot be read|claims the shape"),
        (header("(-16, 28, 28, 3)"), "claims the shape"),
        (header("(-16, -28, 28, 3)") + bytes(16 * 28 * 28 * 3), "must be"),
        (header("(16, 28, 28, 3)", "'V1'") + bytes(37_632), "must be uint8"),
        (header("(16, 28, 28, 3)", "[('a', '|u1')]") + bytes(37_632), "must be uint8"),
        (header("((((16))))"), "cannot be read"),
        (header("16, 28, 28, 3)"), "the header of val_images cannot be read"),
        (header("(16, 28, 28, 3"), "the header of val_images cannot be read"),
        (header("(16, 28, 28, 3), [1]: 2"), "the header of val_images cannot be read"),
        (header("-" * 9000 + "1"), "cannot be read"),
        (b"\x93NUMPY\x02\x00" + (2**32 - 1).to_bytes(4, "little") + bytes(50_000_000), r"format version \(2, 0\)"),
        (b"\x93NUMPY\x01\x00\xff\xff{", "cannot be read"),
        (b"", "cannot be read"),
    ],
)
def test_a_header_that_lies(write: Callable[..., Path], claim: bytes, message: str) -> None:
    with pytest.raises(DataError, match=message):
        Dataset.load("bloodmnist", root=replace(write(), "val_images.npy", claim))


def test_a_bomb_is_refused_before_it_is_unpacked(write: Callable[..., Path]) -> None:
    """Zeros that are as many as their header says, but more than BloodMNIST holds: 200 MB in a small file."""
    path, bomb, count = write(), io.BytesIO(), 90_000
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as new:
        for name in old.namelist():
            if name != "val_images.npy":
                new.writestr(name, old.read(name))
        with new.open("val_images.npy", "w") as stream:
            stream.write(header(f"({count}, 28, 28, 3)"))
            for _ in range(28):
                stream.write(bytes(count * 28 * 3))
    path.write_bytes(bomb.getvalue())
    assert path.stat().st_size < 3_000_000
    tracemalloc.start()
    try:
        with pytest.raises(DataError, match="with n from 1 to 1,712"):
            Dataset.load("bloodmnist", root=path)
        assert tracemalloc.get_traced_memory()[1] < 10_000_000
    finally:
        tracemalloc.stop()


def test_not_an_npz_file(tmp_path: Path, write: Callable[..., Path]) -> None:
    whole = write().read_bytes()
    buffer = io.BytesIO()
    np.save(buffer, arrays()["train_images"])
    for content in (b"", b"x", whole[: len(whole) // 2], whole[100:-10], buffer.getvalue(), b"PK\x05\x06" + bytes(18)):
        (tmp_path / "bad.npz").write_bytes(content)
        with pytest.raises(DataError, match=r"cannot be read as an npz file|has no train_images"):
            Dataset.load("bloodmnist", root=tmp_path / "bad.npz")
    path = replace(write(), "val_images.npy", header("(16, 28, 28, 3)") + bytes(37_632), zipfile.ZIP_LZMA)
    with pytest.raises(DataError, match="compressed in a way that numpy does not write"):
        Dataset.load("bloodmnist", root=path)


def test_damaged_bytes_never_crash(tmp_path: Path, write: Callable[..., Path]) -> None:
    whole = write().read_bytes()
    rng = random.Random(0)
    path = tmp_path / "damaged.npz"
    refused = 0
    for _ in range(300):
        damaged = bytearray(whole)
        for _ in range(rng.randint(1, 8)):
            # Half of the damage goes to the directory at the end, which is small beside the pixels.
            start = 0 if rng.random() < 0.5 else len(whole) - 700
            damaged[rng.randrange(start, len(whole))] = rng.randrange(256)
        path.write_bytes(damaged)
        try:
            Dataset.load("bloodmnist", root=path)
        except DataError:
            refused += 1
    assert refused > 200
