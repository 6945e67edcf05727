"""Archives of strangers: good ones come out whole, hostile and damaged ones leave nothing, anywhere."""

import io
import shutil
import signal
import stat
import struct
import subprocess
import sys
import time
import zipfile
import zlib
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from leukemia_dl.datasets import download
from leukemia_dl.datasets.download import unpack
from leukemia_dl.errors import DataError

FILES = {"top/a.bmp": b"a" * 3000, "top/b/c.bmp": bytes(range(256)) * 5, "top/empty": b"", "é.txt": b"x"}


def zip_of(members, method=zipfile.ZIP_DEFLATED):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as opened:
        for name, content in members:
            opened.writestr(name, content)
    return buffer.getvalue()


def tree(root):
    return {p.relative_to(root).as_posix(): p.read_bytes() for p in root.rglob("*") if p.is_file()}


def attempt(folder: Path, content: bytes):
    """Unpack bytes inside `folder`; return the files, or the error. Whatever happens, nothing else may be there."""
    box = folder / "box"
    shutil.rmtree(box, ignore_errors=True)
    box.mkdir()
    (folder / "archive.zip").write_bytes(content)
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if box not in path.parents and path != box}
    error = None
    try:
        unpack(folder / "archive.zip", box / "to", show_progress=False)
    except DataError as raised:
        error = str(raised)
    assert {p: p.stat().st_mtime_ns for p in folder.rglob("*") if box not in p.parents and p != box} == before
    assert [p.name for p in box.iterdir()] == ([] if error else ["to"])
    assert not any(p.is_symlink() or not (p.is_file() or p.is_dir()) for p in box.rglob("*"))
    return error or tree(box / "to")


def test_good_archives_come_out_whole(tmp_path):
    assert attempt(tmp_path, zip_of(FILES.items())) == FILES


def test_into_an_empty_folder_only(tmp_path):
    (tmp_path / "a.zip").write_bytes(zip_of(FILES.items()))
    (tmp_path / "to").mkdir()
    assert unpack(tmp_path / "a.zip", tmp_path / "to") == tmp_path / "to"
    with pytest.raises(DataError, match="is there already and not empty"):
        unpack(tmp_path / "a.zip", tmp_path / "to")
    with pytest.raises(DataError, match="not empty"):
        unpack(tmp_path / "a.zip", tmp_path / "a.zip")
    assert tree(tmp_path / "to") == FILES
    assert tree(unpack(tmp_path / "a.zip", tmp_path / "new" / "er")) == FILES


def test_what_is_no_archive(tmp_path):
    for content in (b"", b"BM" + bytes(2000), b"PK\x03\x04", b"\x1f\x8b", b"7z\xbc\xaf"):
        assert "archive.zip was not unpacked: it is no zip archive that can be read" in attempt(tmp_path, content)
    for path in (tmp_path, tmp_path / "none"):
        with pytest.raises(DataError, match="was not unpacked: it is no zip archive that can be read, or cannot be"):
            unpack(path, tmp_path / "to")
    for archive, to, name in ((None, "x", "archive"), (tmp_path / "x.rar", 5, "to")):
        with pytest.raises(DataError, match=f"{name}=(None|5) is no path that can be used"):
            unpack(archive, to)


NAMES = [
    "/tmp/leukemia_dl_escaped", "../escaped", "a/../../escaped", "..", "a/..", "C:/x", "c:x", "\\\\host\\x", "a\\..\\b",
    "a\nb", "a\rb", "a\x1b[2J", "a/b:stream", "~\x7f",
]  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_names_that_climb_stay_inside(tmp_path, name):
    result = attempt(tmp_path, zip_of([("good", b"1"), (name, b"2")]))
    assert isinstance(result, str) or result["good"] == b"1"
    assert not Path("/tmp/leukemia_dl_escaped").exists()


@pytest.mark.parametrize("mode", [stat.S_IFLNK, stat.S_IFIFO, stat.S_IFCHR, stat.S_IFSOCK])
def test_links_and_devices(tmp_path, mode):
    info = zipfile.ZipInfo("link")
    info.create_system, info.external_attr = 3, (mode | 0o777) << 16
    assert attempt(tmp_path, zip_of([(info, b"/etc")])) == {"link": b"/etc"}  # a file, whatever it says it is


def test_an_encrypted_member(tmp_path):
    content = bytearray(zip_of([("a", b"1")], zipfile.ZIP_STORED))
    content[content.index(b"PK\x01\x02") + 8] |= 1
    assert "is encrypted" in attempt(tmp_path, bytes(content))


def test_bounds_on_size_and_count(tmp_path, monkeypatch):
    content = zip_of([(f"{n}", bytes(10_000)) for n in range(20)])
    monkeypatch.setattr(download, "_MOST_FILES", 20)
    monkeypatch.setattr(download, "_MOST_RATIO", 0)
    monkeypatch.setattr(download, "_FREE_BYTES", 200_000)
    assert len(attempt(tmp_path, content)) == 20
    monkeypatch.setattr(download, "_FREE_BYTES", 199_999)
    assert "20 members of 200,000 bytes, as decompression bombs do" in attempt(tmp_path, content)
    monkeypatch.setattr(download, "_MOST_FILES", 19)
    assert "it has 20 members" in attempt(tmp_path, content)


def test_a_bomb(tmp_path):
    content = zip_of([("bomb", bytes(2**26 + 2**20))])
    assert len(content) < 2**20
    assert "as decompression bombs do" in attempt(tmp_path, content)


def test_a_bomb_that_lies_about_its_size(tmp_path):
    """The headers of the zip say ten bytes: what is written counts."""
    content = zip_of([("bomb", bytes(10**6))])
    content = content.replace(struct.pack("<L", 10**6), struct.pack("<L", 10))
    assert "was not unpacked" in attempt(tmp_path, content)


def test_archives_that_end_early(tmp_path):
    """Half a data set must not look like one."""
    content = zip_of([(f"{n}", bytes([n]) * 1000) for n in range(10)])
    for length in range(0, len(content), max(1, len(content) // 40)):
        result = attempt(tmp_path, content[:length])
        assert isinstance(result, str) or len(result) == 10, length  # without its end only


FUZZED = zip_of(FILES.items())


@settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(data=st.data())
def test_mutated_archives_do_no_harm(tmp_path, data):
    """Flipped bits, cut ends, bytes put in, pieces moved."""
    content = bytearray(FUZZED)
    for _ in range(data.draw(st.integers(1, 6))):
        place = data.draw(st.integers(0, max(0, len(content) - 1)))
        match data.draw(st.sampled_from(["bit", "bit", "cut", "insert", "move", "number"])):
            case "bit" if content:
                content[place] ^= 1 << data.draw(st.integers(0, 7))
            case "cut":
                del content[place:]
            case "insert":
                content[place:place] = data.draw(st.binary(max_size=30))
            case "move":
                content[place:place] = content[: data.draw(st.integers(0, 600))]
            case "number":
                content[place : place + 4] = data.draw(
                    st.sampled_from([b"\xff" * 4, bytes(4), b"\x80\x00\x00\x01", b"../.", b"7777"])
                )
    result = attempt(tmp_path, bytes(content))
    if isinstance(result, dict):
        assert set(result.values()) <= {*FILES.values()}  # each file has a checksum


def test_more_than_the_disk_holds(tmp_path, monkeypatch):
    monkeypatch.setattr(download, "_MOST_RATIO", 10**15)
    count = shutil.disk_usage(tmp_path).free // 2**32 + 2
    content = bytearray(zip_of([(str(n), b"x" * 2000) for n in range(count)]))
    crc, place = struct.pack("<L", zlib.crc32(b"x" * 2000)), -1
    while (place := content.find(crc, place + 1)) >= 0:
        content[place + 8 : place + 12] = struct.pack("<L", 2**32 - 2)
    assert "GB are needed" in attempt(tmp_path, bytes(content))


@pytest.mark.skipif(sys.platform == "win32", reason="no signals of this kind")
def test_ctrl_c_leaves_nothing(tmp_path):
    content = zip_of([(str(n), bytes(2**23)) for n in range(24)], zipfile.ZIP_STORED)
    (tmp_path / "archive").write_bytes(content)
    (tmp_path / "box").mkdir()
    program = (
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "from leukemia_dl.datasets.download import unpack\n"
        f"unpack({str(tmp_path / 'archive')!r}, {str(tmp_path / 'box' / 'to')!r})"
    )
    process = subprocess.Popen([sys.executable, "-c", program], stderr=subprocess.PIPE, text=True)
    while process.poll() is None and not list((tmp_path / "box").rglob("2")):
        time.sleep(0.005)
    process.send_signal(signal.SIGINT)
    error = process.communicate(timeout=60)[1]
    assert process.returncode != 0, "it was done before the signal came"
    assert "KeyboardInterrupt" in error
    assert list((tmp_path / "box").iterdir()) == []
