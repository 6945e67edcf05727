"""Mutated files and trees: the data of a stranger may end in one clear error, and in nothing else."""

import contextlib
import ctypes
import os
import random
import resource
import shutil
import struct
import sys
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from leukemia_dl.datasets import Dataset
from leukemia_dl.datasets.audit import audit
from leukemia_dl.errors import ImageError, LeukemiaDLError
from leukemia_dl.preprocess import Pipeline, decode_image

PIPELINE = Pipeline.default(16)
LONGEST_SECONDS = 30
MOST_MEMORY_KB = 600_000


def png(width: int, height: int) -> bytes:
    """Return a PNG of one chunk of pixels that claims to have any number of them."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(b"\0" * 100_000)) + chunk(b"IEND", b"")


class Tree:
    """A small data set on disk, and what a stranger may do to it."""

    def __init__(self, root: Path, rng: random.Random) -> None:
        self.root, self.rng, self.outside = root, rng, root.parent / "outside"
        self.outside.mkdir(parents=True)
        image = np.random.default_rng(0).integers(0, 256, (12, 12, 3), dtype=np.uint8)
        Image.fromarray(image).save(self.outside / "secret.bmp")
        self.kind = rng.choice(["folder", "csv", "c_nmc_2019", "all_aria", "segmentation_wbc"])
        self.files = [self._write(name, number) for number, name in enumerate(self._names())]
        if self.kind == "csv":
            rows = [f"{file.relative_to(root)},{'ab'[i % 2]}" for i, file in enumerate(self.files)]
            self.table: Path | None = root / "images.csv"
            self.table.write_text("path,label\n" + "\n".join(rows) + "\n")
        elif self.kind == "c_nmc_2019":
            folder = self.files[-1].parent
            self.table = folder.parent / "C-NMC_test_prelim_phase_data_labels.csv"
            self.table.write_text(
                "Patient_ID,new_names,labels\r\nUID_57_1_1_all.bmp,1.bmp,1\r\nUID_H9_1_1_hem.bmp,2.bmp,0\r\n"
            )
        elif self.kind == "segmentation_wbc":
            self.table = root / "Class Labels of Dataset 1.csv"
            self.table.write_text("image ID,class label\n" + "".join(f"{i + 1},{i % 2 + 1}\n" for i in range(6)))
        else:
            self.table = None

    def _names(self) -> list[str]:
        if self.kind == "c_nmc_2019":
            training = [
                f"training_data/fold_{i % 3}/{c}/UID_{h}{i}_1_1_{c}.bmp"
                for i in range(3)
                for c, h in (("all", ""), ("hem", "H"))
            ]
            return training + [f"validation_data/C-NMC_test_prelim_phase_data/{i}.bmp" for i in (1, 2)]
        if self.kind == "all_aria":
            return [
                f"Original/{c}/WBC-{'' if c == 'Benign' else 'Malignant-'}{c}-{i:03}.jpg"
                for c in ("Benign", "Early", "Pre", "Pro")
                for i in (1, 2)
            ]
        if self.kind == "segmentation_wbc":
            return [f"Dataset 1/{i:03}.bmp" for i in range(1, 7)]
        return [f"{'ab'[i % 2]}/{i}.{self.rng.choice(['bmp', 'png', 'tif', 'jpg'])}" for i in range(8)]

    def _write(self, name: str, number: int) -> Path:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(number).integers(0, 256, (12, 12, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path)
        return path

    def flip_bits(self, path: Path) -> None:
        data = bytearray(path.read_bytes() or b"\0")
        for _ in range(self.rng.randint(1, 8)):
            data[self.rng.randrange(len(data))] ^= 1 << self.rng.randrange(8)
        path.write_bytes(data)

    def truncate(self, path: Path) -> None:
        path.write_bytes(path.read_bytes()[: self.rng.randrange(path.stat().st_size + 1)])

    def lie(self, path: Path) -> None:
        """Overwrite a word near the beginning, where sizes and offsets are."""
        data = bytearray(path.read_bytes().ljust(16, b"\0"))
        place = self.rng.randrange(2, min(len(data), 64) - 4)
        data[place : place + 4] = struct.pack("<I", self.rng.choice([0, 1, 2**31 - 1, 2**32 - 1, 70_000, 1 << 24]))
        path.write_bytes(data)

    def bomb(self, path: Path) -> None:
        path.write_bytes(png(*self.rng.choice([(60_000, 60_000), (2**31 - 1, 1), (1, 2**31 - 1), (4_000, 4_000)])))

    def other_content(self, path: Path) -> None:
        path.write_bytes(
            self.rng.choice(
                [b"", b"text\n", b"PK\x03\x04" + b"\0" * 50, b"GIF89a" + b"\0" * 30, b"%PDF", b"\0" * 5_000]
            )
        )

    def rename(self, path: Path) -> None:
        name = self.rng.choice(
            [
                b"new\nline.bmp",
                b"\xff\xfe.png",
                b"-rf.bmp",
                b"$(x).jpg",
                b"UID_1_1_1_all.bmp.bmp",
                b"a" * 200 + b".bmp",
                b"\x1b[2J.bmp",
            ]
        )
        path.rename(path.with_name(os.fsdecode(name)))

    def link_in_a_circle(self, path: Path) -> None:
        path.unlink()
        path.symlink_to(path)

    def link_to_a_parent(self, path: Path) -> None:
        (path.parent / "again").symlink_to(self.root, target_is_directory=True)

    def pipe(self, path: Path) -> None:
        path.unlink()
        os.mkfifo(path)

    def folder(self, path: Path) -> None:
        path.unlink()
        path.mkdir()

    def close(self, path: Path) -> None:
        self.rng.choice([path, path.parent]).chmod(0)

    def remove(self, path: Path) -> None:
        path.unlink()

    def climb(self, path: Path) -> None:
        """Let the table of C-NMC name a file outside the root."""
        if self.table is not None and self.kind == "c_nmc_2019":
            name = self.rng.choice(["../../../outside/secret.bmp", str(self.outside / "secret.bmp"), "..\\secret.bmp"])
            self.table.write_text(self.table.read_text().replace("1.bmp,1", f"{name},1"))

    def break_table(self, path: Path) -> None:
        if self.table is not None:
            self.rng.choice([self.flip_bits, self.truncate, self.other_content])(self.table)

    def mutate(self) -> None:
        ways: list[Callable[[Path], None]] = [
            self.flip_bits, self.truncate, self.lie, self.bomb, self.other_content, self.rename, self.link_in_a_circle,
            self.link_to_a_parent, self.pipe, self.folder, self.close, self.remove, self.climb, self.break_table,
        ]  # fmt: skip
        for way in self.rng.choices(ways, k=self.rng.randint(1, 3)):
            with contextlib.suppress(OSError):  # an earlier one closed the folder or took the file
                path = self.rng.choice(self.files)
                if not path.is_file():
                    continue
                way(path)

    def load(self) -> Dataset:
        return Dataset.load(self.kind, self.table if self.kind == "csv" else self.root)

    def restore(self) -> None:
        """Make everything deletable again."""
        for parent, folders, _ in os.walk(self.root):
            for folder in (Path(parent, name) for name in folders):
                if not folder.is_symlink():
                    folder.chmod(0o700)


@contextlib.contextmanager
def bound_by_permissions() -> Iterator[None]:
    """Give up root's right to read what is closed (CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH), for a while."""
    if os.geteuid() != 0 or sys.platform != "linux":
        yield
        return
    libc, head, sets = ctypes.CDLL(None, use_errno=True), (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
    assert libc.capget(head, sets) == 0
    effective = sets[0]
    sets[0] = effective & ~0b110
    assert libc.capset(head, sets) == 0
    try:
        yield
    finally:
        sets[0] = effective
        assert libc.capset(head, sets) == 0


def attack(base: Path, seed: int) -> str:
    """Build and mutate one tree, use it in every way, and return how that ended."""
    tree = Tree(base / "root", random.Random(seed))
    tree.mutate()
    started = time.monotonic()
    try:
        with bound_by_permissions():
            dataset = tree.load()
            assert not any("secret" in str(path) for path in dataset.table["path"])
            report = audit(dataset, show_progress=False)
            undecodable = set()
            for row, path in enumerate(dataset.paths):
                try:
                    decode_image(path)
                except ImageError:
                    undecodable.add(dataset.table["sample"].iloc[row])
            named = report.findings.loc[report.findings["kind"] == "unreadable", "sample"]
            assert sorted(named) == sorted(undecodable), "every undecodable file is named once"
            str(report)
            store = dataset.pixel_store(PIPELINE, base / "stores", show_progress=False)
            assert not undecodable
            assert len(store[:]) == len(dataset)
        return "fine"
    except PermissionError:
        return "DataError"
    except LeukemiaDLError as error:
        return type(error).__name__ if str(error) else "an error without a message"
    finally:
        assert time.monotonic() - started < LONGEST_SECONDS
        tree.restore()


def run(base: Path, seeds: range) -> dict[str, int]:
    ends: dict[str, int] = {}
    before = threading.active_count()
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for seed in seeds:
        folder = base / str(seed)
        folder.mkdir(parents=True)
        try:
            end = attack(folder, seed)
        except BaseException as error:
            raise AssertionError(f"Case {seed}: {error!r}") from error
        ends[end] = ends.get(end, 0) + 1
        shutil.rmtree(folder)
    assert threading.active_count() <= before + 1, "no thread is left hanging at a pipe"
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory < MOST_MEMORY_KB
    return ends


@pytest.fixture(autouse=True)
def _own_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LEUKEMIA_DL_CACHE", str(tmp_path / "cache"))


@pytest.mark.skipif(os.name != "posix", reason="needs pipes and permissions")
def test_sixty_mutated_trees(tmp_path: Path) -> None:
    ends = run(tmp_path / "trees", range(60))
    assert set(ends) == {"fine", "DataError", "ImageError"}
    assert ends["fine"] > 10
    assert ends["DataError"] > 10
    assert ends["ImageError"] > 10


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="needs pipes and permissions")
def test_two_thousand_mutated_trees(tmp_path: Path) -> None:
    ends = run(tmp_path / "trees", range(100, 2_100))
    assert set(ends) == {"fine", "DataError", "ImageError"}
