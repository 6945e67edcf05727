"""Archives of strangers: good ones come out whole, hostile and damaged ones leave nothing, anywhere."""

import bz2
import contextlib
import gzip
import io
import lzma
import shutil
import signal
import stat
import struct
import subprocess
import sys
import tarfile
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
KINDS = ("zip", "tar", "tar.gz", "tar.bz2", "tar.xz")
PACK = {"tar": bytes, "tar.gz": gzip.compress, "tar.bz2": bz2.compress, "tar.xz": lzma.compress}


def tar_of(members, kind="tar", format=tarfile.PAX_FORMAT):
    """Return an archive of (name or TarInfo, content)."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=format, errors="surrogateescape") as opened:
        for name, content in members:
            info = name if isinstance(name, tarfile.TarInfo) else tarfile.TarInfo(name)
            if info.isreg():
                info.size = len(content)
            opened.addfile(info, io.BytesIO(content))
    return PACK[kind](buffer.getvalue())


def zip_of(members, method=zipfile.ZIP_DEFLATED):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as opened:
        for name, content in members:
            opened.writestr(name, content)
    return buffer.getvalue()


def archive_of(kind, files=None):
    members = list((FILES if files is None else files).items())
    return zip_of(members) if kind == "zip" else tar_of(members, kind)


def tree(root):
    return {p.relative_to(root).as_posix(): p.read_bytes() for p in root.rglob("*") if p.is_file()}


def attempt(folder: Path, content: bytes):
    """Unpack bytes inside `folder`; return the files, or the error. Whatever happens, nothing else may be there."""
    box = folder / "box"
    shutil.rmtree(box, ignore_errors=True)
    box.mkdir()
    (folder / "archive.tar").write_bytes(content)
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if box not in path.parents and path != box}
    error = None
    try:
        unpack(folder / "archive.tar", box / "to", show_progress=False)
    except DataError as raised:
        error = str(raised)
    assert {p: p.stat().st_mtime_ns for p in folder.rglob("*") if box not in p.parents and p != box} == before
    assert [p.name for p in box.iterdir()] == ([] if error else ["to"])
    assert not any(p.is_symlink() or not (p.is_file() or p.is_dir()) for p in box.rglob("*"))
    return error or tree(box / "to")


@pytest.mark.parametrize("kind", KINDS)
def test_good_archives_come_out_whole(tmp_path, kind):
    assert attempt(tmp_path, archive_of(kind)) == FILES


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_formats_of_tar_and_long_names(tmp_path, format):
    name = "/".join(["n" * 60] * 3)
    assert attempt(tmp_path, tar_of([(f"./{name}", b"1")], format=format)) == {name: b"1"}


def test_into_an_empty_folder_only(tmp_path):
    (tmp_path / "a.zip").write_bytes(archive_of("zip"))
    (tmp_path / "to").mkdir()
    assert unpack(tmp_path / "a.zip", tmp_path / "to") == tmp_path / "to"
    with pytest.raises(DataError, match="is there already and not empty"):
        unpack(tmp_path / "a.zip", tmp_path / "to")
    with pytest.raises(DataError, match="not empty"):
        unpack(tmp_path / "a.zip", tmp_path / "a.zip")
    assert tree(tmp_path / "to") == FILES
    assert tree(unpack(tmp_path / "a.zip", tmp_path / "new" / "er")) == FILES


def test_what_is_no_archive(tmp_path):
    for content in (b"", b"BM" + bytes(2000), b"PK\x03\x04", gzip.compress(b"text" * 500), b"\x1f\x8b", b"7z\xbc\xaf"):
        assert "archive.tar was not unpacked" in attempt(tmp_path, content)
    (tmp_path / "x.rar").write_bytes(b"Rar!" * 200)
    with pytest.raises(DataError, match=r"no archive that can be read, damaged, or cannot be written"):
        unpack(tmp_path / "x.rar", tmp_path / "to")
    for path in (tmp_path, tmp_path / "none", "a\x00b"):
        with pytest.raises(DataError, match=r"was not unpacked: there is no such file\. Allowed: \.zip"):
            unpack(path, tmp_path / "to")
    for archive, to, name in ((None, "x", "archive"), (tmp_path / "x.rar", None, "to"), (tmp_path / "x.rar", 5, "to")):
        with pytest.raises(DataError, match=f"{name}=(None|5) is no path that can be used"):
            unpack(archive, to)


NAMES = [
    "/tmp/leukemia_dl_escaped", "../escaped", "a/../../escaped", "..", "a/..", "C:/x", "c:x", "\\\\host\\x", "a\\..\\b",
    "a\nb", "a\rb", "a\x1b[2J", "a/b:stream", "~\x7f",
]  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_names_that_climb_or_cannot_be(tmp_path, name, kind):
    members = [("good", b"1"), (name, b"2")]
    error = attempt(tmp_path, zip_of(members) if kind == "zip" else tar_of(members))
    assert "only names below the archive's top are allowed" in error
    assert error.isprintable()
    assert not Path("/tmp/leukemia_dl_escaped").exists()


LINKS = [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE]


@pytest.mark.parametrize("kind", [*LINKS, b"Z"])
@pytest.mark.parametrize("target", ["good", "../../escaped", "/etc"])
def test_links_and_devices_in_a_tar(tmp_path, kind, target):
    info = tarfile.TarInfo("link")
    info.type, info.linkname = kind, target
    assert "no links or devices" in attempt(tmp_path, tar_of([("good", b"1"), (info, b""), ("link/x", b"2")]))


@pytest.mark.parametrize("mode", [stat.S_IFLNK, stat.S_IFIFO, stat.S_IFCHR, stat.S_IFSOCK])
def test_links_and_devices_in_a_zip(tmp_path, mode):
    info = zipfile.ZipInfo("link")
    info.create_system, info.external_attr = 3, (mode | 0o777) << 16
    assert "no links or devices" in attempt(tmp_path, zip_of([(info, b"/etc")]))


def test_an_encrypted_member(tmp_path):
    content = bytearray(zip_of([("a", b"1")], zipfile.ZIP_STORED))
    content[content.index(b"PK\x01\x02") + 8] |= 1
    assert "is encrypted" in attempt(tmp_path, bytes(content))


@pytest.mark.parametrize("kind", KINDS)
def test_bounds_on_size_and_count(tmp_path, kind, monkeypatch):
    content = archive_of(kind, {f"{n}": bytes(10_000) for n in range(20)})
    monkeypatch.setattr(download, "_MOST_FILES", 20)
    monkeypatch.setattr(download, "_MOST_BYTES", 200_000)
    assert len(attempt(tmp_path, content)) == 20
    monkeypatch.setattr(download, "_MOST_BYTES", 199_999)
    assert "or 199,999 bytes" in attempt(tmp_path, content)
    monkeypatch.setattr(download, "_MOST_FILES", 19)
    assert "more than 19 members" in attempt(tmp_path, content)


@pytest.mark.parametrize("kind", ["zip", "tar.gz", "tar.bz2", "tar.xz"])
def test_bombs(tmp_path, kind):
    content = archive_of(kind, {"bomb": bytes(2**26 + 2**20)})
    assert len(content) < 2**20
    assert "as bombs do" in attempt(tmp_path, content)


def test_a_bomb_that_lies_about_its_size(tmp_path):
    """The headers of the zip say ten bytes: what is written counts."""
    content = zip_of([("bomb", bytes(10**6))])
    content = content.replace(struct.pack("<L", 10**6), struct.pack("<L", 10))
    assert "was not unpacked" in attempt(tmp_path, content)


@pytest.mark.parametrize("kind", ["zip", "tar.gz", "tar.bz2", "tar.xz"])
def test_archives_that_end_early(tmp_path, kind):
    """Half a data set must not look like one."""
    content = archive_of(kind, {f"{n}": bytes([n]) * 1000 for n in range(10)})
    for length in range(0, len(content), max(1, len(content) // 40)):
        result = attempt(tmp_path, content[:length])
        assert isinstance(result, str) or len(result) == 10, length  # without its end only


FUZZED = {kind: archive_of(kind) for kind in KINDS}


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(data=st.data())
def test_mutated_archives_do_no_harm(tmp_path, kind, data):
    """150 of them: flipped bits, cut ends, bytes put in, pieces moved, in packed and (for tar) unpacked form."""
    inside = kind.startswith("tar.") and data.draw(st.booleans())
    content = bytearray(FUZZED["tar"] if inside else FUZZED[kind])
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
    result = attempt(tmp_path, PACK[kind](bytes(content)) if inside else bytes(content))
    if isinstance(result, dict) and kind == "zip":
        assert set(result.values()) <= {*FILES.values()}  # each file has a checksum


def test_more_than_the_disk_holds(tmp_path, monkeypatch):
    monkeypatch.setattr(download, "_MOST_RATIO", 10**15)
    monkeypatch.setattr(download, "_MOST_BYTES", 2**60)
    count = shutil.disk_usage(tmp_path).free // 2**32 + 2
    content = bytearray(zip_of([(str(n), b"x" * 2000) for n in range(count)]))
    crc, place = struct.pack("<L", zlib.crc32(b"x" * 2000)), -1
    while (place := content.find(crc, place + 1)) >= 0:
        content[place + 8 : place + 12] = struct.pack("<L", 2**32 - 2)
    assert "GB are needed" in attempt(tmp_path, bytes(content))


@pytest.mark.skipif(sys.platform == "win32", reason="no signals of this kind")
@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_ctrl_c_leaves_nothing(tmp_path, kind):
    files = {str(n): bytes(2**23) for n in range(24)}
    content = zip_of(files.items(), zipfile.ZIP_STORED) if kind == "zip" else archive_of(kind, files)
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


def number(value):
    """The size of a member as GNU tar writes what does not fit in octal digits: binary, signed."""
    return b"\x80" + value.to_bytes(11, "big") if value >= 0 else b"\xff" + (256**11 + value).to_bytes(11, "big")


def header(name, size, kind=b"0"):
    info = tarfile.TarInfo(name)
    info.type = kind
    block = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    block[124:136] = size
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\x00 " % sum(block)
    return bytes(block)


@pytest.mark.parametrize(
    "names",
    [
        ("a", "a"),
        ("a", "A"),
        ("a", "a/b"),
        ("a/b", "a"),
        ("ß", "SS"),
    ],
)
@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_names_that_collide(tmp_path, names, kind):
    members = [(name, b"1") for name in names]
    with (
        pytest.warns(UserWarning, match="Duplicate")
        if kind == "zip" and names == ("a", "a")
        else contextlib.nullcontext()
    ):
        content = zip_of(members) if kind == "zip" else tar_of(members)
    assert "was not unpacked" in attempt(tmp_path, content)


@pytest.mark.parametrize("size", [-1, -512, -1024, -(2**40), 2**40, 2**62, 2**87])
@pytest.mark.parametrize("kind", [b"0", b"L", b"K", b"x", b"g", b"5", b"S"])
@pytest.mark.parametrize("packed", ["tar", "tar.gz"])
def test_sizes_in_tar_headers_that_lie(tmp_path, size, kind, packed):
    """Negative ones lead backwards, for ever; the name of a member that claims a terabyte would be read at once."""
    content = tar_of([("good", b"1")])[:1024] + header("x", number(size), kind) + bytes(4096)
    started = time.monotonic()
    result = attempt(tmp_path, PACK[packed](content))
    # What a folder says of its size is not used by anyone.
    assert result == {"good": b"1"} if kind == b"5" else isinstance(result, str)
    assert time.monotonic() - started < 5


def test_long_names_of_a_bomb_are_not_read_into_memory(tmp_path):
    size = 2**25
    content = gzip.compress(header("x", number(size), b"L") + bytes(size) + bytes(1024))
    error = attempt(tmp_path, content)
    assert "impossible size" in error


def test_a_damaged_header_is_not_the_end(tmp_path):
    content = bytearray(tar_of([(str(n), b"1") for n in range(5)]))
    content[2048 + 10] ^= 0x40
    assert "damaged or ends too early" in attempt(tmp_path, bytes(content))
