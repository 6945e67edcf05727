"""Sources are found by name, with their options checked; a data set is fetched from a server of our own."""

import http.server
import importlib.metadata
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
from leukemia_dl import plugins
from leukemia_dl.datasets import Dataset, DatasetSource, cache_dir, dataset_table, get_source, list_datasets
from leukemia_dl.datasets.registry import DOWNLOADS, download
from leukemia_dl.datasets.table import differing_counts
from leukemia_dl.errors import DataError, LeukemiaDLError, SettingsError, UnknownNameError

BUILTIN = ["all_aria", "c_nmc_2019", "csv", "folder", "segmentation_wbc", "synthetic"]


def test_built_in_names() -> None:
    assert set(BUILTIN) <= set(list_datasets())
    assert list_datasets() == sorted(list_datasets())
    for name in BUILTIN:
        source = get_source(name)
        assert isinstance(source, DatasetSource)
        assert source.name == source.info.name == name
        assert source.info.licence
        assert source.info.citation


def test_table_has_no_gaps() -> None:
    table = dataset_table().set_index("name")
    assert not table.isna().any(axis=None)
    assert table.loc["c_nmc_2019", ["classes", "images"]].tolist() == ["hem, all", "15114"]
    assert table.loc["c_nmc_2019", "licence"].startswith("CC BY 3.0")
    assert "10.7937/tcia.2019.dc64i46r" in table.loc["c_nmc_2019", "citation"]
    assert "seed" in table.loc["synthetic", "options"]
    assert table.loc[["csv", "folder", "synthetic"], "images"].tolist() == ["yours", "yours", "as many as asked for"]


def test_unknown_name_and_option() -> None:
    with pytest.raises(UnknownNameError, match=r"There is no data set 'c_nmc'. Did you mean 'c_nmc_2019'"):
        Dataset.load("c_nmc", root="x")
    with pytest.raises(SettingsError, match=r"'synthetic' has no option 'subject'. Known: subjects \(number of"):
        Dataset.load("synthetic", subject=4)
    with pytest.raises(SettingsError, match=r"'c_nmc_2019' has no option 'canvas'. Known: drop_classes"):
        Dataset.load("c_nmc_2019", root="x", canvas=4)


def test_a_plugin_that_yields_something_else_is_named_and_hides_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    class Wrong:
        name = "wrong"

    module = SimpleNamespace(leukemia_dl_datasets=plugins.hookimpl(lambda: [Wrong()]))
    distribution = SimpleNamespace(name="their-package", version="1.2")
    point = type("Point", (), {"name": "theirs", "dist": distribution, "load": lambda self: module})()
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda group: [point])
    plugins.forget()
    try:
        assert set(BUILTIN) <= set(list_datasets())
        assert "wrong" not in list_datasets()
        (row,) = plugins.plugin_problems().to_dict("records")
    finally:
        plugins.forget()
    assert (row["plugin"], row["entry_point"]) == ("their-package", "theirs")
    assert "must yield leukemia_dl.DatasetSource records" in row["problem"]


def test_cache_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("LEUKEMIA_DL_CACHE", str(tmp_path / "c"))
    assert cache_dir() == tmp_path / "c"
    monkeypatch.delenv("LEUKEMIA_DL_CACHE")
    assert cache_dir().name == "leukemia_dl"
    assert cache_dir().is_absolute()


def test_importing_loads_nothing_heavy() -> None:
    code = (
        "import sys, leukemia_dl.datasets, leukemia_dl.preprocess as p, leukemia_dl.datasets as d; d.list_datasets(); "
    )
    code += "print([m for m in ('keras', 'tensorflow', 'jax', 'sklearn', 'matplotlib', 'scipy') if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


needs_kagglehub = pytest.mark.skipif(importlib.util.find_spec("kagglehub") is None, reason="kagglehub is not installed")
HANDLE = "andrewmvd/leukemia-classification"


def start(to, **environment):
    """Start the command in a process of its own; no proxy or token of the user's."""
    program = (
        f"import sys; sys.argv = {['leukemia-dl', 'download', 'c_nmc_2019', '--to', str(to)]!r}\n"
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
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
    assert {"c_nmc_2019": HANDLE} == DOWNLOADS
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


def test_without_kagglehub_the_ways_out_are_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "kagglehub", None)
    answer = command.run("download", "c_nmc_2019", "--to", tmp_path / "to")
    assert answer.returncode == 1
    assert answer.stderr.startswith("Error: ")
    assert answer.stderr.count("\n") == 1
    for text in ("pip install 'leukemia-dl[kaggle]'", HANDLE, f"into {tmp_path / 'to'}, and repeat the command"):
        assert text in answer.stderr
    assert not (tmp_path / "to").exists()


@pytest.fixture
def environment(monkeypatch):
    """Return a function that sets the variables that kagglehub reads; no proxy or token of the user's."""
    for name in ("KAGGLEHUB_CACHE", "DISABLE_KAGGLE_CACHE", "DISABLE_COLAB_CACHE"):  # set by a download, for good
        monkeypatch.setenv(name, "")
    for name in [name for name in os.environ if "proxy" in name.lower() or "KAGGLE" in name]:
        monkeypatch.delenv(name)

    def change(**variables):
        for name, value in variables.items():
            monkeypatch.setenv(name, value)

    return change


@needs_kagglehub
def test_without_network_the_ways_out_are_named(tmp_path, environment):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{free.getsockname()[1]}"
    environment(HTTPS_PROXY=address, HTTP_PROXY=address, HOME=str(tmp_path))
    with pytest.raises(LeukemiaDLError) as caught:
        download("c_nmc_2019", tmp_path / "to")
    for text in ("could not be downloaded (ProxyError", "HTTPS_PROXY", "kaggle.json", "goes on", "unpack the archive"):
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


@pytest.mark.network
@pytest.mark.slow
@needs_kagglehub
def test_the_real_download(tmp_path):
    """About 10 GB, from Kaggle."""
    assert len(download("c_nmc_2019", tmp_path / "to")) == 15_114
