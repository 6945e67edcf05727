"""Fetching a data set, without the network: folders, space and failures for real, Kaggle by a server of our own."""

import http.server
import importlib.util
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest

from leukemia_dl.datasets import Dataset
from leukemia_dl.datasets import download as module
from leukemia_dl.datasets.download import DOWNLOADS, check_counts, download
from leukemia_dl.errors import DataError, UnknownNameError

needs_kagglehub = pytest.mark.skipif(importlib.util.find_spec("kagglehub") is None, reason="kagglehub is not installed")
SMALL = ("andrewmvd/leukemia-classification", 10**7)
PAGE = "https://www.kaggle.com/datasets/andrewmvd/leukemia-classification"


def start(to, *arguments, unpacked=SMALL[1], before="", **environment):
    """Start the command in a process of its own, for a data set of that size; no proxy or token of the user's."""
    program = (
        f"import sys; sys.argv = {['leukemia-dl', 'download', 'c_nmc_2019', '--to', str(to), *map(str, arguments)]!r}\n"
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "from leukemia_dl.datasets import download\n"
        f"download.DOWNLOADS = {{'c_nmc_2019': ({SMALL[0]!r}, {unpacked})}}\n"
        f"{before}\nfrom leukemia_dl.cli import main; main()"
    )
    kept = {k: v for k, v in os.environ.items() if "proxy" not in k.lower() and "KAGGLE" not in k}
    env = {**kept, "HOME": str(Path(to).parent), **environment}
    return subprocess.Popen([sys.executable, "-c", program], stdout=-1, stderr=-1, text=True, env=env)


def run(to, *arguments, **options):
    process = start(to, *arguments, **options)
    output, error = process.communicate(timeout=120)
    return process.returncode, output, error


@pytest.fixture(scope="module")
def archive(c_nmc_tree, tmp_path_factory):
    """All names of C-NMC 2019, as the archive from Kaggle has them."""
    path = tmp_path_factory.mktemp("archive") / "archive.zip"
    with zipfile.ZipFile(path, "w") as opened:
        for file in sorted(p for p in c_nmc_tree.rglob("*") if p.is_file()):
            opened.write(file, file.relative_to(c_nmc_tree.parent))
    return path


def test_what_can_be_downloaded():
    assert {"c_nmc_2019": (SMALL[0], 10_400_000_000)} == DOWNLOADS
    with pytest.raises(UnknownNameError, match=r"no data set to download 'c_nmc'.*Known: c_nmc_2019"):
        download("c_nmc", "x")


def test_an_archive_fetched_by_hand(archive, tmp_path):
    (tmp_path / "to" / ".kagglehub" / "unpacked").mkdir(parents=True)  # as an interruption leaves it
    assert len(download("c_nmc_2019", tmp_path / "to", archive=archive, show_progress=False)) == 15_114
    assert [p.name for p in (tmp_path / "to").iterdir()] == ["C-NMC_Leukemia"]
    assert len(download("c_nmc_2019", tmp_path / "to")) == 15_114  # nothing to do, so no network is needed


def test_the_hashes_are_compared(archive, c_nmc_manifest, tmp_path):
    """The names are those of the real files, the contents are not."""
    code, output, _ = run(tmp_path / "to", "--archive", archive, "--manifest", c_nmc_manifest / "sha256.tsv")
    assert code == 1
    assert "Licence: CC BY 3.0" in output
    assert "Cite: Gupta" in output
    assert "15,114 images of 101 subjects" in output
    assert "NOT OK: 1 ok, 15,114 changed" in output


def test_the_real_sample_is_not_complete(c_nmc_sample, tmp_path):
    with pytest.raises(DataError, match=r"images: 60 of 15,114; subjects: \d+ of 101; fold 0: 21 of 3,527"):
        check_counts(Dataset.load("c_nmc_2019", root=c_nmc_sample))
    path = shutil.make_archive(str(tmp_path / "a"), "zip", c_nmc_sample.parent)
    with pytest.raises(DataError, match="is not complete"):
        download("c_nmc_2019", tmp_path / "to", archive=path, show_progress=False)


def test_an_image_too_many_is_not_the_published_data_set(c_nmc_tree, tmp_path):
    """Mutant 16: more than declared is as wrong as less."""
    dataset = Dataset.load("c_nmc_2019", root=c_nmc_tree)
    check_counts(dataset)
    table = dataset.table
    extra = table.iloc[[-1]].assign(sample="final/one_more")
    more = Dataset(pd.concat([table, extra]), dataset.class_names, dataset.info)
    with pytest.raises(DataError, match=r"images: 15,115 of 15,114; final: 2,587 of 2,586"):
        check_counts(more)


def test_a_bad_archive_leaves_nothing(tmp_path):
    (tmp_path / "a.zip").write_bytes(b"PK\x03\x04" + bytes(100))
    with pytest.raises(DataError, match="was not unpacked"):
        download("c_nmc_2019", tmp_path / "to", archive=tmp_path / "a.zip")
    assert not list((tmp_path / "to").rglob("*.*mp"))


def test_another_archive_leaves_nothing_in_the_way(archive, tmp_path):
    with zipfile.ZipFile(tmp_path / "other.zip", "w") as opened:
        opened.writestr("thesis.docx", b"x")
    with pytest.raises(DataError, match="does not look like C-NMC 2019"):
        download("c_nmc_2019", tmp_path / "to", archive=tmp_path / "other.zip", show_progress=False)
    assert [path.name for path in (tmp_path / "to").iterdir()] == [".kagglehub"]
    assert len(download("c_nmc_2019", tmp_path / "to", archive=archive, show_progress=False)) == 15_114


def test_a_folder_with_other_things_is_refused(tmp_path):
    (tmp_path / "thesis.docx").write_text("years of work")
    with pytest.raises(DataError, match=r"does not look like C-NMC 2019. .* Found in it: thesis.docx"):
        download("c_nmc_2019", tmp_path)
    with pytest.raises(DataError, match="is a file, not a folder"):
        download("c_nmc_2019", tmp_path / "thesis.docx")
    assert (tmp_path / "thesis.docx").read_text() == "years of work"


def test_space_is_checked_before_anything_is_fetched(tmp_path):
    fake = tmp_path / "kagglehub.py"
    fake.write_text("def dataset_download(handle): raise AssertionError('asked for')")
    code, _, error = run(tmp_path / "to", unpacked=10**18, PYTHONPATH=str(tmp_path))
    assert code == 1
    assert "2000000000.0 GB are needed" in error
    assert "asked for" in run(tmp_path / "to", unpacked=1, PYTHONPATH=str(tmp_path))[2]


def test_without_kagglehub_the_ways_out_are_named(tmp_path):
    code, _, error = run(tmp_path / "to", before="sys.modules['kagglehub'] = None")
    assert code == 1
    assert len(re.findall("^Error: ", error, re.MULTILINE)) == 1
    assert "Traceback" not in error
    for text in ("pip install 'leukemia-dl[kaggle]'", PAGE, "--archive FILE"):
        assert text in error
    assert not (tmp_path / "to").exists()


@needs_kagglehub
def test_without_network_the_ways_out_are_named(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{free.getsockname()[1]}"
    code, output, error = run(tmp_path / "to", HTTPS_PROXY=address, HTTP_PROXY=address)
    assert code == 1
    assert "Licence: CC BY 3.0" in output
    assert len(re.findall("^Error: ", error, re.MULTILINE)) == 1
    assert "Traceback" not in error
    for text in ("could not be downloaded (ProxyError", "HTTPS_PROXY", "kaggle.json", "goes on", "--archive FILE"):
        assert text in error


class Kaggle(http.server.ThreadingHTTPServer):
    """What kagglehub asks of Kaggle, as a proxy: the first time the archive is sent by half."""

    daemon_threads = True

    def __init__(self, content, first, status=200):
        super().__init__(("127.0.0.1", 0), Answer)
        self.content, self.first, self.status, self.ranges = content, first, status, []
        threading.Thread(target=self.serve_forever, daemon=True).start()
        self.environment = {"KAGGLE_API_ENVIRONMENT": "LOCALHOST", "HTTP_PROXY": f"http://127.0.0.1:{self.server_port}"}


class Answer(http.server.BaseHTTPRequestHandler):
    def log_message(self, *_):
        pass

    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        if self.server.status != 200:
            self.reply(self.server.status, json.dumps({"message": "no"}).encode(), "application/json")
        elif self.path.endswith("/GetDataset"):
            self.reply(200, json.dumps({"currentVersionNumber": 2}).encode(), "application/json")
        else:
            self.send_response(302)
            self.send_header("Location", "http://localhost/archive")
            self.send_header("Content-Length", "0")
            self.end_headers()

    def do_GET(self):
        wanted = self.headers["Range"]
        self.server.ranges.append(wanted)
        content = self.server.content[int(wanted.removeprefix("bytes=").removesuffix("-")) if wanted else 0 :]
        if self.server.first == "whole" or len(self.server.ranges) > 1:
            self.reply(206 if wanted else 200, content)
            return
        self.reply(200, content[: len(content) // 2], length=len(content))
        self.wfile.flush()
        if self.server.first == "stalls":
            time.sleep(60)
        self.close_connection = True

    def reply(self, status, content, kind="application/octet-stream", length=None):
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(length or len(content)))
        self.end_headers()
        # kagglehub asks twice when it resumes, and drops the first answer.
        try:
            self.wfile.write(content)
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True


@needs_kagglehub
def test_a_download_that_breaks_goes_on(archive, tmp_path):
    server, to = Kaggle(archive.read_bytes(), "breaks"), tmp_path / "to"
    code, _, error = run(to, **server.environment)
    assert code == 1
    assert "could not be downloaded" in error
    assert "Traceback" not in error
    half = next(to.rglob("*.archive")).stat().st_size
    code, output, error = run(to, **server.environment)
    assert code == 0, error
    assert "15,114 images of 101 subjects" in output
    assert 0 < half < len(server.content)
    assert server.ranges == [None, None, f"bytes={half}-"]
    assert [p.name for p in to.iterdir()] == ["C-NMC_Leukemia"]
    server.shutdown()


@needs_kagglehub
@pytest.mark.skipif(sys.platform == "win32", reason="no signals of this kind")
def test_ctrl_c_keeps_what_was_fetched(archive, tmp_path):
    server, to = Kaggle(archive.read_bytes(), "stalls"), tmp_path / "to"
    process = start(to, **server.environment)
    while process.poll() is None and not [p for p in to.rglob("*.archive") if p.stat().st_size]:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    error = process.communicate(timeout=60)[1]
    assert process.returncode == 130, error
    assert "the same command goes on from there" in error
    code, _, error = run(to, **server.environment)
    assert code == 0, error
    assert server.ranges[-1].startswith("bytes=")
    server.shutdown()


@needs_kagglehub
@pytest.mark.parametrize("status", [401, 403, 404, 429, 500])
def test_what_kaggle_refuses_is_one_error(tmp_path, status):
    server = Kaggle(b"", "whole", status)
    code, _, error = run(tmp_path / "to", **server.environment)
    assert (code, len(re.findall("^Error: ", error, re.MULTILINE)), error.count("Traceback")) == (1, 1, 0)
    assert str(status) in error
    server.shutdown()


@needs_kagglehub
def test_an_archive_that_is_none_is_one_error(tmp_path):
    server = Kaggle(b"<html>Sign in</html>", "whole")
    code, _, error = run(tmp_path / "to", **server.environment)
    assert (code, len(re.findall("^Error: ", error, re.MULTILINE)), error.count("Traceback")) == (1, 1, 0)
    server.shutdown()


def test_the_environment_is_put_back(tmp_path, monkeypatch):
    monkeypatch.setenv("KAGGLEHUB_CACHE", "mine")
    monkeypatch.delenv("DISABLE_COLAB_CACHE", raising=False)
    monkeypatch.setattr(module, "DOWNLOADS", {"c_nmc_2019": SMALL})
    seen, before = {}, dict(os.environ)
    fake = SimpleNamespace(dataset_download=lambda handle: seen.update(os.environ, handle=handle) or str(tmp_path))
    monkeypatch.setitem(sys.modules, "kagglehub", fake)
    assert module._fetch("c_nmc_2019", tmp_path / "to") == tmp_path
    assert (seen["handle"], seen["KAGGLEHUB_CACHE"]) == (SMALL[0], str(tmp_path / "to" / ".kagglehub"))
    assert dict(os.environ) == before


@pytest.mark.network
@pytest.mark.slow
@needs_kagglehub
def test_the_real_download(tmp_path):
    """About 10 GB, from Kaggle."""
    assert len(download("c_nmc_2019", tmp_path / "to")) == 15_114
