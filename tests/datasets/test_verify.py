"""Manifests, and files compared with them: the real sample, and copies of it with one thing wrong."""

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from leukemia_dl.datasets.verify import read_manifest, verify
from leukemia_dl.errors import DataError

HASH = "0" * 64
IMAGE = "training_data/fold_1/all/UID_2_1_1_all.bmp"


def write(path: Path, text: str | bytes) -> Path:
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def listing(root: Path, manifest: Path) -> Path:
    """Write a manifest of all files below `root`."""
    rows = []
    for path in sorted(p for p in root.rglob("*") if p.is_file()):
        digest, name = hashlib.sha256(path.read_bytes()).hexdigest(), path.relative_to(root).as_posix()
        rows.append(f"{digest}  {name}")
    return write(manifest, "\n".join(rows) + "\n")


@pytest.fixture
def published(c_nmc_manifest, tmp_path):
    """The list of C-NMC 2019 as `sha256sum` writes it."""
    lines = [line.split("\t") for line in (c_nmc_manifest / "sha256.tsv").read_text().splitlines()[1:]]
    return write(tmp_path / "sha256.txt", "\n".join(f"{content}  {name}" for content, _, name in lines))


@pytest.fixture
def files(tmp_path):
    """Five small files in two folders."""
    root = tmp_path / "data"
    for number in range(4):
        path = root / "top" / "ab"[number % 2] / f"{number}.bmp"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(bytes([number]) * 100)
    (root / "top" / "labels.csv").write_bytes(b"x,y")
    return root


@pytest.fixture
def copy(c_nmc_sample, tmp_path):
    """A copy of the real sample that may be changed."""
    root = tmp_path / "C-NMC_Leukemia"
    shutil.copytree(c_nmc_sample, root, copy_function=shutil.copyfile)
    for folder in [root, *(p for p in root.rglob("*") if p.is_dir())]:
        folder.chmod(0o755)
    return root


def statuses(report):
    """Return {path: (status, detail)} of what is not in order, missing files without detail aside."""
    wrong = report.files[
        (report.files["status"] != "ok") & ((report.files["status"] != "missing") | report.files["detail"].ne(""))
    ]
    return {path: (status, detail) for path, status, detail in wrong.to_numpy()}


def test_the_manifest_of_c_nmc(published):
    frame = read_manifest(published)
    assert list(frame) == ["path", "sha256"]
    assert len(frame) == 15_115  # the images and the label CSV
    assert frame["path"].str.endswith(".bmp").sum() == 15_114
    assert frame["path"].is_unique
    assert frame["sha256"].str.fullmatch("[0-9a-f]{64}").all()


@pytest.mark.parametrize("level", [".", ".."])
def test_the_real_sample_passes_at_any_level(c_nmc_sample, published, level):
    root = Path(os.path.normpath(c_nmc_sample / level))
    report = verify(root, published, partial=True, show_progress=False)
    assert report.ok
    assert report.counts == {"ok": 61, "missing": 15_054, "extra": 0, "changed": 0, "unreadable": 0}
    assert str(report) == f"OK: 61 ok, 15,054 missing in {c_nmc_sample.parent}"
    whole = verify(root, published, show_progress=False)
    assert not whole.ok
    assert "and 15,044 more" in str(whole)


def test_what_is_wrong_with_real_files_is_named(copy, published):
    flipped, renamed = copy / IMAGE, copy / "training_data/fold_1/all/UID_2_1_2_all.bmp"
    short = copy / "training_data/fold_0/hem/UID_H6_1_1_hem.bmp"
    content = bytearray(flipped.read_bytes())
    content[len(content) // 2] ^= 1
    flipped.write_bytes(content)
    renamed.rename(renamed.with_name("UID_2_1_9_all.bmp"))
    with short.open("r+b") as file:
        file.truncate(608_000)
    report = verify(copy, published, partial=True, show_progress=False)
    assert statuses(report) == {
        f"C-NMC_Leukemia/{IMAGE}": ("changed", ""),
        "C-NMC_Leukemia/training_data/fold_0/hem/UID_H6_1_1_hem.bmp": ("changed", ""),
        "C-NMC_Leukemia/training_data/fold_1/all/UID_2_1_9_all.bmp": ("extra", ""),
    }
    assert not report.ok
    assert report.counts["ok"] == 58
    assert str(report).startswith("NOT OK: 58 ok, ")
    assert f"changed    C-NMC_Leukemia/{IMAGE}" in str(report)


def test_the_root_is_the_folder_of_the_paths_or_the_one_above(files, tmp_path):
    manifest = listing(files, tmp_path / "list.txt")
    assert verify(files, manifest).ok
    assert verify(files / "top", manifest).ok
    (files / "top" / "a" / "0.bmp").unlink()
    report = verify(files, manifest)
    assert (report.ok, report.counts["missing"]) == (False, 1)
    assert verify(files, manifest, partial=True).ok
    assert set(report.files["status"]) < set(report.counts)


def test_marks_of_windows_and_of_sha256sum_are_read(tmp_path):
    text = f"\ufeff{HASH.replace('0', 'A')}  ./a b/é.bmp\n\n".replace("\n", "\r\n")
    assert read_manifest(write(tmp_path / "m", text)).to_numpy().tolist() == [["a b/é.bmp", "a" * 64]]
    frame = read_manifest(write(tmp_path / "m", f"{HASH} *a\n{HASH}  b".encode() + b"\xff"))
    assert list(frame["path"]) == ["a", "b\udcff"]


def test_extra_files_and_clutter(files, tmp_path):
    manifest = listing(files, tmp_path / "list.txt")
    for name in (".DS_Store", "Thumbs.db", "b/.hidden", "b/ehthumbs.db"):
        (files / "top" / name).write_bytes(b"-")
    (files / "beside.bmp").write_bytes(b"-")  # outside of the folder that the manifest lists
    assert verify(files, manifest).ok
    (files / "top" / "c\n\x1b[2J").write_bytes(b"-")
    (files / "top" / "new").mkdir()
    (files / "top" / "new" / "9.bmp").write_bytes(bytes([0]) * 100)
    report = verify(files, manifest, partial=True)
    assert statuses(report) == {"top/c\n\x1b[2J": ("extra", ""), "top/new/9.bmp": ("extra", "")}
    assert not report.ok
    assert "\x1b" not in str(report)
    assert str(report).count("\n") == 2


def test_links_are_followed_inside_only(files, tmp_path):
    manifest = listing(files, tmp_path / "list.txt")
    outside = tmp_path / "outside"
    shutil.copytree(files / "top" / "b", outside)
    inner = files / "top" / "a" / "0.bmp"
    inner.rename(files / "top" / "moved.bin")
    inner.symlink_to(files / "top" / "moved.bin")
    shutil.rmtree(files / "top" / "b")
    (files / "top" / "b").symlink_to(outside)
    report = verify(files, manifest)
    out = ("unreadable", "a link leads out of the root; it was not followed")
    assert statuses(report) == {"top/b/1.bmp": out, "top/b/3.bmp": out, "top/moved.bin": ("extra", "")}
    (files / "top" / "b").unlink()
    (files / "top" / "b").symlink_to(tmp_path / "nowhere")
    assert verify(files, manifest).counts["unreadable"] == 2
    link = tmp_path / "link"
    link.symlink_to(files / "top" / "a")
    (files / "top" / "a" / "0.bmp").unlink()
    assert verify(link, listing(files / "top" / "a", tmp_path / "m")).ok  # the root itself may be a link


def test_a_link_to_a_folder_of_a_similar_name_leads_outside(tmp_path):
    """Mutant 17: `data2` is not inside `data`."""
    for name in ("data", "data2"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.bmp").write_bytes(b"a")
    manifest = listing(tmp_path / "data", tmp_path / "list.txt")
    (tmp_path / "data" / "a.bmp").unlink()
    (tmp_path / "data" / "a.bmp").symlink_to(tmp_path / "data2" / "a.bmp")
    report = verify(tmp_path / "data", manifest)
    assert statuses(report) == {"a.bmp": ("unreadable", "a link leads out of the root; it was not followed")}


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes on this system")
def test_what_is_no_file_is_not_read(files, tmp_path):
    manifest = listing(files, tmp_path / "list.txt")
    for name in ("a/0.bmp", "a/2.bmp", "b/1.bmp"):
        (files / "top" / name).unlink()
    os.mkfifo(files / "top/a/0.bmp")
    (files / "top/a/2.bmp").mkdir()
    (files / "top/b/1.bmp").symlink_to(files / "top/nothing")
    report = verify(files, manifest)
    assert report.counts == {"ok": 2, "missing": 1, "extra": 0, "changed": 0, "unreadable": 2}
    assert statuses(report).keys() == {"top/a/0.bmp", "top/a/2.bmp"}


@pytest.mark.skipif(sys.platform == "win32", reason="no permissions of this kind")
@pytest.mark.parametrize("root", [".", "top"])
@pytest.mark.parametrize("mode", [0o000, 0o444])
def test_the_files_of_a_closed_folder_are_unreadable(root, mode):
    with tempfile.TemporaryDirectory() as name:  # below tmp_path only its owner may go
        data = Path(name) / "data"
        (data / "top" / "closed").mkdir(parents=True)
        for path in (data / "top" / "closed" / "1", data / "top" / "2"):
            path.write_bytes(b"1")
        manifest = listing(data, Path(name) / "m")
        (data / "aside").mkdir()
        for path in (Path(name), data, data / "top"):
            path.chmod(0o755)
        for path in (data / "top" / "closed", data / "aside"):
            path.chmod(mode)
        # The superuser may read everything: ask as somebody else.
        become = "os.setuid(65534)" if os.access(data / "top" / "closed", os.X_OK) or os.geteuid() == 0 else ""
        program = (
            "import os, pandas, encodings.utf_8_sig, leukemia_dl.datasets.verify as module\n"
            f"{become}\nos.environ['LEUKEMIA_DL_CACHE'] = {name!r}\n"
            f"print(module.verify({str(data / root)!r}, {str(manifest)!r}))"
        )
        answer = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
        for path in (data / "top" / "closed", data / "aside"):
            path.chmod(0o755)
    assert answer.returncode == 0, answer.stderr
    assert "unreadable top/closed/1" in answer.stdout
    assert "Permission denied" in answer.stdout


@pytest.mark.parametrize(
    "path",
    ["/etc/passwd", "../a", "a/../../b", "a/..", "..", ".", "a\\b", "\\\\host\\a", "C:/a", "c:a", "a//b", "a/", "a/./b",
     "a\x00b", "a\x1b[2J", "\x85"],
)  # fmt: skip
def test_hostile_paths_are_refused(tmp_path, path):
    manifest = write(tmp_path / "m", f"{HASH}  good\n{HASH}  {path}\n")
    with pytest.raises(DataError, match="line 2 is not allowed"):
        read_manifest(manifest)


@pytest.mark.parametrize(
    "line",
    [f"{HASH[1:]}  a", f"{HASH}0  a", f"{'g' * 64}  a", f"{HASH}\t1\ta", f"{HASH}  ", HASH, f"{HASH}  first", "#"],
)
def test_malformed_lines_are_named(tmp_path, line):
    with pytest.raises(DataError, match="line 2 is not allowed"):
        read_manifest(write(tmp_path / "m", f"{HASH}  first\n{line}\n"))


def test_what_is_no_manifest(tmp_path):
    for path in (tmp_path, tmp_path / "none"):
        with pytest.raises(OSError, match=str(path)):
            read_manifest(path)


@given(st.binary(max_size=300))
def test_any_bytes_are_read_or_refused(tmp_path_factory, content):
    path = write(tmp_path_factory.getbasetemp() / "any", content)
    try:
        frame = read_manifest(path)
    except DataError:
        return
    assert frame["path"].is_unique


@given(st.text(st.characters(codec="utf-8", exclude_characters="\n"), min_size=1, max_size=20))
def test_no_path_that_is_read_leaves_the_root(tmp_path_factory, name):
    path = write(tmp_path_factory.getbasetemp() / "any", f"{HASH}  {name}\n")
    try:
        (found,) = read_manifest(path)["path"]
    except DataError:
        return
    root = tmp_path_factory.getbasetemp()
    assert Path(os.path.normpath(root / found)).is_relative_to(root)
    assert found in name


def test_the_root_is_checked(files, tmp_path):
    manifest = listing(files, tmp_path / "list.txt")
    (tmp_path / "x" / "y").mkdir(parents=True)
    report = verify(tmp_path / "x" / "y", manifest, partial=True)
    assert (report.ok, report.counts["missing"]) == (False, 5)
    for root in (manifest, tmp_path / "none"):
        with pytest.raises(DataError, match="There is no folder"):
            verify(root, manifest)
    for arguments, name in (((None, None), "root"), ((files, None), "manifest"), ((5, manifest), "root")):
        with pytest.raises(DataError, match=f"{name}=(None|5) is no path that can be used"):
            verify(*arguments)


def test_a_check_of_nothing_is_not_ok(files, tmp_path):
    manifest = listing(files, tmp_path / "list.txt")
    for path in [*files.rglob("*.bmp"), *files.rglob("*.csv")]:
        path.unlink()
    assert not verify(files, manifest, partial=True).ok


def test_a_change_that_keeps_size_and_time_is_noticed(files, tmp_path, monkeypatch):
    """Hashes are remembered from process to process, but not for a file that somebody wrote to."""
    monkeypatch.setenv("LEUKEMIA_DL_CACHE", str(tmp_path / "cache"))
    manifest, path = listing(files, tmp_path / "list.txt"), files / "top" / "a" / "0.bmp"
    for file in files.rglob("*.bmp"):
        os.utime(file, ns=(10**18, 10**18))
    time.sleep(2.2)  # younger files are not remembered at all
    command = [sys.executable, "-m", "leukemia_dl", "verify", str(files), "--manifest", str(manifest)]
    assert [subprocess.run(command).returncode for _ in range(2)] == [0, 0]
    path.write_bytes(b"\xff" * 100)
    os.utime(path, ns=(10**18, 10**18))
    assert subprocess.run(command).returncode == 1


def test_the_report_is_a_frame(files, tmp_path):
    report = verify(files, listing(files, tmp_path / "m"))
    assert list(report.files) == ["path", "status", "detail"]
    assert isinstance(report.files, pd.DataFrame)
    assert report.root == files
