"""Fetching a data set, without the network: folders, space and failures for real, Kaggle by a server of our own."""

import http.server
import importlib.util
import io
import json
import os
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

import command
from leukemia_dl.datasets import Dataset
from leukemia_dl.datasets import download as module
from leukemia_dl.datasets.download import DOWNLOADS, download
from leukemia_dl.datasets.table import differing_counts
from leukemia_dl.errors import DataError, LeukemiaDLError, UnknownNameError

needs_kagglehub = pytest.mark.skipif(importlib.util.find_spec("kagglehub") is None, reason="kagglehub is not installed")
SMALL = ("andrewmvd/leukemia-classification", 10**7)
PAGE = "https://www.kaggle.com/datasets/andrewmvd/leukemia-classification"


def start(to, **environment):
    """Start the command in a process of its own, for a small data set; no proxy or token of the user's."""
    program = (
        f"import sys; sys.argv = {['leukemia-dl', 'download', 'c_nmc_2019', '--to', str(to)]!r}\n"
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "from leukemia_dl.datasets import download\n"
        f"download.DOWNLOADS = {{'c_nmc_2019': {SMALL!r}}}\n"
        "from leukemia_dl.cli import main; main()"
    )
    kept = {k: v for k, v in os.environ.items() if "proxy" not in k.lower() and "KAGGLE" not in k}
    env = {**kept, "HOME": str(Path(to).parent), **environment}
    return subprocess.Popen([sys.executable, "-c", program], stdout=-1, stderr=-1, text=True, env=env)


@pytest.fixture(scope="module")
def archive():
    """An archive like Kaggle's, of two images."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as opened:
        for name in ("all/UID_1_1_1_all.bmp", "hem/UID_H1_1_1_hem.bmp"):
            opened.writestr(f"C-NMC_Leukemia/training_data/fold_0/{name}", bytes(3 * 10**6))
    return buffer.getvalue()


def test_what_can_be_downloaded():
    assert {"c_nmc_2019": (SMALL[0], 10_400_000_000)} == DOWNLOADS
    with pytest.raises(UnknownNameError, match=r"no data set to download 'c_nmc'.*Known: c_nmc_2019"):
        download("c_nmc", "x")


def test_what_is_there_is_counted(c_nmc_tree):
    """All names are there, so nothing is fetched."""
    answer = command.run("download", "c_nmc_2019", "--to", c_nmc_tree)
    assert answer.returncode == 0, answer.stderr
    for text in ("Licence: CC BY 3.0", "Cite: Gupta", "15,114 images of 101 subjects", "as declared"):
        assert text in answer.stdout


def test_the_real_sample_is_not_complete(c_nmc_sample):
    message = r"is not complete.*images: 60 of 15,114; subjects: \d+ of 101; fold 0: 21 of 3,527"
    with pytest.raises(DataError, match=message):
        download("c_nmc_2019", c_nmc_sample)


def test_an_image_too_many_is_not_the_published_data_set(c_nmc_tree):
    """Mutant 16: more than declared is as wrong as less."""
    dataset = Dataset.load("c_nmc_2019", root=c_nmc_tree)
    table = dataset.table
    assert differing_counts(table, dataset.info.declared) == []
    more = pd.concat([table, table[table["split"] == "final"].iloc[[-1]]])
    assert differing_counts(more, dataset.info.declared) == ["images: 15,115 of 15,114", "final: 2,587 of 2,586"]


def test_a_folder_with_other_things_is_refused(tmp_path):
    (tmp_path / "thesis.docx").write_text("years of work")
    with pytest.raises(DataError, match=r"does not look like C-NMC 2019. .* Found in it: thesis.docx"):
        download("c_nmc_2019", tmp_path)
    with pytest.raises(DataError, match="is a file, not a folder"):
        download("c_nmc_2019", tmp_path / "thesis.docx")
    assert (tmp_path / "thesis.docx").read_text() == "years of work"


def test_space_is_checked_before_anything_is_fetched(tmp_path, monkeypatch):
    def asked(handle):
        raise AssertionError("asked for")

    monkeypatch.setitem(sys.modules, "kagglehub", SimpleNamespace(dataset_download=asked))
    monkeypatch.setitem(DOWNLOADS, "c_nmc_2019", (SMALL[0], 10**18))
    with pytest.raises(DataError, match=r"2000000000\.0 GB are needed"):
        download("c_nmc_2019", tmp_path / "to")
    monkeypatch.setitem(DOWNLOADS, "c_nmc_2019", (SMALL[0], 1))
    with pytest.raises(LeukemiaDLError, match="asked for"):
        download("c_nmc_2019", tmp_path / "to")


def test_without_kagglehub_the_ways_out_are_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "kagglehub", None)
    answer = command.run("download", "c_nmc_2019", "--to", tmp_path / "to")
    assert answer.returncode == 1
    assert answer.stderr.count("Error: ") == 1
    for text in ("pip install 'leukemia-dl[kaggle]'", PAGE, f"leukemia-dl download c_nmc_2019 --to {tmp_path / 'to'}"):
        assert text in answer.stderr
    assert not (tmp_path / "to").exists()


@pytest.fixture
def environment(monkeypatch):
    """Return a function that sets the variables that kagglehub reads; no proxy or token of the user's."""
    for name in [name for name in os.environ if "proxy" in name.lower() or "KAGGLE" in name]:
        monkeypatch.delenv(name)

    def change(**variables):
        for name, value in variables.items():
            monkeypatch.setenv(name, value)

    monkeypatch.setitem(DOWNLOADS, "c_nmc_2019", SMALL)
    return change


@needs_kagglehub
def test_without_network_the_ways_out_are_named(tmp_path, environment):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{free.getsockname()[1]}"
    environment(HTTPS_PROXY=address, HTTP_PROXY=address, HOME=str(tmp_path))
    with pytest.raises(LeukemiaDLError) as caught:
        download("c_nmc_2019", tmp_path / "to")
    for text in ("could not be downloaded (ProxyError", "HTTPS_PROXY", "kaggle.json", "goes on", "unpack it into"):
        assert text in str(caught.value)


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
def test_a_download_that_breaks_goes_on(archive, tmp_path, environment, monkeypatch):
    server, to = Kaggle(archive, "breaks"), tmp_path / "to"
    environment(HOME=str(tmp_path), **server.environment)
    with pytest.raises(LeukemiaDLError, match="could not be downloaded"):
        download("c_nmc_2019", to)
    half = next(to.rglob("*.archive")).stat().st_size
    assert 0 < half < len(server.content)
    with pytest.raises(DataError, match="images: 2 of 15,114"):
        download("c_nmc_2019", to)
    assert server.ranges == [None, None, f"bytes={half}-"]
    assert [path.name for path in to.iterdir()] == ["C-NMC_Leukemia"]
    server.shutdown()


@needs_kagglehub
@pytest.mark.skipif(sys.platform == "win32", reason="no signals of this kind")
def test_ctrl_c_keeps_what_was_fetched(archive, tmp_path, environment):
    server, to = Kaggle(archive, "stalls"), tmp_path / "to"
    process = start(to, **server.environment)
    while process.poll() is None and not [p for p in to.rglob("*.archive") if p.stat().st_size]:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    error = process.communicate(timeout=60)[1]
    assert process.returncode == 130, error
    assert "the same command goes on from there" in error
    environment(HOME=str(tmp_path), **server.environment)
    with pytest.raises(DataError, match="images: 2 of 15,114"):
        download("c_nmc_2019", to)
    assert server.ranges[-1].startswith("bytes=")
    server.shutdown()


@needs_kagglehub
@pytest.mark.parametrize("status", [401, 403, 404, 429, 500])
def test_what_kaggle_refuses_is_one_error(tmp_path, status, environment):
    server = Kaggle(b"", "whole", status)
    environment(HOME=str(tmp_path), **server.environment)
    with pytest.raises(LeukemiaDLError, match=str(status)):
        download("c_nmc_2019", tmp_path / "to")
    server.shutdown()


@needs_kagglehub
def test_an_archive_that_is_none_is_one_error(tmp_path, environment):
    server = Kaggle(b"<html>Sign in</html>", "whole")
    environment(HOME=str(tmp_path), **server.environment)
    with pytest.raises(LeukemiaDLError, match="could not be downloaded"):
        download("c_nmc_2019", tmp_path / "to")
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
