"""The page of `leukemia-dl demo`: its answers without a browser, and the page itself in a headless Chromium."""

import base64
import dataclasses
import json
import logging
import os
import re
import signal
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import urlsplit

import keras
import numpy as np
import pytest
from PIL import Image

import leukemia_dl as ldl
from browser import CHROMIUM
from command import fails
from leukemia_dl.errors import SettingsError
from leukemia_dl.reporting import demo
from leukemia_dl.reporting.render import page as written

SIZE, LONG = 32, "a_name_without_any_space_" * 4
DISCLAIMER = "For research use only; not a medical device. Nothing here is a diagnosis."


def net(inputs, weights):
    x = keras.layers.Conv2D(8, 3, strides=2, padding="same", activation="relu")(inputs)
    return keras.layers.Conv2D(8, 3, padding="same", activation="relu")(x)


@pytest.fixture(scope="module")
def classifier():
    keras.utils.set_random_seed(0)
    spec = ldl.BackboneSpec(name="small", build=net, scaling="unit", native_size=SIZE, min_size=SIZE)
    record = {
        "images": {"on_black": 1.0, "size": [20, 40]}, "dataset": "discs", "training_images": {"hem": 3, "all": 1_200},
        "citation": "Nobody 2024", "trial": {"backbone": "small"},
        "threshold": {"value": 0.25, "sensitivity": 0.95, "chosen_on": "val", "reason": ""},
        "abstain": {"value": None, "reason": "too few patients", "coverage": 0.9, "chosen_on": "val"},
    }  # fmt: skip
    model = ldl.models.build_model(spec, SIZE, 2)
    model.layers[-1].set_weights([np.random.default_rng(1).normal(0, 9, w.shape) for w in model.layers[-1].weights])
    return ldl.Classifier(model, ("hem", "all"), ldl.Pipeline((ldl.preprocess.Resize(SIZE),)), record)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Return a cell on black, a field of a smear, and a file that is no image."""
    folder = tmp_path_factory.mktemp("images")
    y, x = np.ogrid[:48, :48]
    disc = np.where(((y - 24) ** 2 + (x - 24) ** 2 < 15**2)[..., None], (140, 60, 160), 0).astype(np.uint8)
    cell, smear, broken = folder / "cell.bmp", folder / f"{LONG}.png", folder / "broken.png"
    Image.fromarray(disc).save(cell)
    Image.fromarray(np.full((48, 64, 3), (230, 200, 220), np.uint8)).save(smear)
    broken.write_text("no image")
    return cell, smear, broken


def answers(classifier, *files):
    *_, last = demo.answers_to(classifier, list(files))
    return last


def as_page(classifier, facts):
    return written("demo.html", {"part": "answers", "net": classifier, "name": "x", "most": 32} | facts)


def test_an_answer_is_the_prediction_with_its_image_and_map(classifier, files):
    first, last = demo.answers_to(classifier, [files[0]])
    (image,) = first["images"]
    expected = classifier.predict(files[0]).iloc[0]
    assert image["predicted"] == expected["predicted"]
    for name in classifier.class_names:
        assert image[f"probability_{name}"] == pytest.approx(expected[f"probability_{name}"], abs=1e-6)
    assert (image["error"], image["warnings"]) == ("", [])
    (image,) = last["images"]
    assert (image["map"]["method"], image["map"]["class"]) == ("gradcam", expected["predicted"])
    assert image["map"]["image"].startswith("data:image/png;base64,")
    text = as_page(classifier, last)
    assert f"{expected['probability_all']:.3f}" in text
    assert 'alt="The image cell.bmp"' in text


def test_an_unreadable_file_and_a_foreign_image_say_so_beside_others(classifier, files, caplog):
    found = answers(classifier, files[2], *files[:2])
    broken, cell, smear = found["images"]
    assert broken["error"].startswith("Cannot read the image .../broken.png: it is none of BMP")
    assert broken["predicted"] is None
    assert broken["map"] is None
    assert cell["warnings"] == []
    assert "do not show a cell cut out on black" in smear["warnings"][0]
    assert smear["map"]["method"] == "gradcam"
    text = as_page(classifier, found)
    assert "3 images, 1 unreadable." in text
    assert str(files[0].parent) not in text
    assert smear["warnings"][0] in text
    assert not logging.getLogger("leukemia_dl").handlers


def test_unsure_is_said_where_the_record_has_a_limit(classifier, files):
    probabilities = classifier.predict(files[0])[["probability_hem", "probability_all"]].to_numpy()
    limit = {"value": float(probabilities.min()) - 1e-3, "coverage": 0.9, "chosen_on": "val", "reason": ""}
    found = answers(dataclasses.replace(classifier, provenance={"abstain": limit}), files[0])
    assert found["images"][0]["predicted"] == "unsure"
    assert "<strong>unsure</strong> (possible: hem, all)" in as_page(classifier, found)


def test_a_net_without_feature_maps_is_explained_by_occlusion(files):
    model = keras.Sequential([keras.Input((16, 16, 3)), keras.layers.Flatten(), keras.layers.Dense(2)])
    flat = ldl.Classifier(model, ("hem", "all"), ldl.Pipeline((ldl.preprocess.Resize(16),)))
    assert answers(flat, files[0])["images"][0]["map"]["method"] == "occlusion"


def test_at_most_32_images_are_answered(classifier, files):
    found = answers(classifier, *[files[2]] * 34)
    assert (len(found["images"]), found["left_out"]) == (32, 2)
    assert "2 images left out: at most 32 at a time." in as_page(classifier, found)


def test_names_are_no_markup(classifier, tmp_path):
    hostile = tmp_path / "<img src=x onerror=alert(1)>${1}{{1}}\u202e.png"
    hostile.write_text("no image")
    text = as_page(classifier, answers(classifier, hostile))
    assert "<img src=x" not in text
    assert "\\u202e" in text


def test_the_facts_of_a_net(classifier):
    def facts(**record):
        net = dataclasses.replace(classifier, provenance=record)
        text = written("demo.html", {"part": "net", "net": net, "name": "x", "most": 32})
        return " ".join(re.sub(r"<[^>]+>", " ", text).split())

    known = facts(**classifier.provenance)
    for part in (
        "hem and all", "discs: hem 3 images, all 1,200 images. Nobody 2024",
        "0.250 on the probability of all, for a sensitivity of 0.95 on val", "Never said: too few patients.",
    ):  # fmt: skip
        assert part in known
    assert "Training data Not recorded." in facts()
    assert "Where not exactly one class has a probability of at least 0.300." in facts(
        abstain={"value": 0.3, "coverage": 0.9, "chosen_on": "val"}
    )
    assert "Threshold" not in facts(threshold=0.5, training_images=7)


def test_a_missing_gradio_is_named(classifier, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", None)
    with pytest.raises(SettingsError, match=r"Install it: pip install 'leukemia-dl\[demo\]'"):
        demo.demo_page(classifier)
    said = fails("demo", classifier.save(tmp_path / "net.keras"), "--no-browser")
    assert "Install it: pip install 'leukemia-dl[demo]'" in said


def test_a_port_that_is_taken_is_left_to_its_owner():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with demo._free_socket(port) as found:
            assert found.getsockname()[0] == "127.0.0.1"
            assert port < found.getsockname()[1] < port + 100
    with pytest.raises(SettingsError, match="None of the 100 ports from 65536 on is free"):
        demo._free_socket(65_536)


# In a browser.


@pytest.fixture(scope="module")
def server(classifier, tmp_path_factory):
    """A process of the command, its address, its folder for temporary files, and a proxy that nobody should ask."""
    pytest.importorskip("gradio", reason="no gradio: pip install 'leukemia-dl[demo]'")
    pytest.importorskip("playwright.sync_api", reason="no playwright: pip install playwright")
    if CHROMIUM is None:
        pytest.skip("no Chromium in the path")
    folder = tmp_path_factory.mktemp("server")
    file = classifier.save(folder / "net.keras")
    with socket.create_server(("127.0.0.1", 0)) as proxy, socket.create_server(("127.0.0.1", 0)) as taken:
        asked = f"http://127.0.0.1:{proxy.getsockname()[1]}"
        env = os.environ | {"TMPDIR": str(folder), "HTTP_PROXY": asked, "HTTPS_PROXY": asked, "ALL_PROXY": asked}
        process = subprocess.Popen(
            [sys.executable, "-m", "leukemia_dl", "demo", file, "--no-browser", "--port", str(taken.getsockname()[1])],
            env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, encoding="utf-8",
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        )  # fmt: skip
        try:
            line = process.stdout.readline()
            assert line.startswith("The page: http://127.0.0.1:"), process.stderr.read()
            yield SimpleNamespace(process=process, url=line.split()[2], folder=folder, proxy=proxy)
        finally:
            process.kill()
            process.wait()


@pytest.fixture(scope="module")
def chromium(server):
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def page(chromium, server):
    """The opened page, whose requests are `page.asked`: all go to this machine."""
    page = chromium.new_page(viewport={"width": 390, "height": 800})
    page.asked = []
    page.on("request", lambda request: page.asked.append(request.url))
    page.goto(server.url)
    page.locator("#images button").first.wait_for()
    yield page
    page.close()
    hosts = {(address.scheme, address.hostname) for address in map(urlsplit, page.asked)}
    assert hosts - {("data", None), ("blob", None)} == {("http", "127.0.0.1")}


def drop(page, *files):
    contents = [[file.name, base64.b64encode(file.read_bytes()).decode()] for file in files]
    script = """contents => {
        const dropped = new DataTransfer();
        for (const [name, text] of contents) {
            const bytes = Uint8Array.from(atob(text), letter => letter.charCodeAt(0));
            dropped.items.add(new File([bytes], name));
        }
        const place = document.querySelector("#images button");
        place.dispatchEvent(new DragEvent("drop", {dataTransfer: dropped, bubbles: true, cancelable: true}));
    }"""
    page.evaluate(script, contents)


def test_dropped_images_are_answered(page, server, classifier, files):
    assert page.get_by_text(DISCLAIMER).is_visible()
    drop(page, *files)
    page.locator("article figure:nth-child(2)").nth(1).wait_for()
    expected = classifier.predict(files[:2], show_progress=False)
    cell, smear, broken = page.locator("article").all()
    for article, (_, row) in zip((cell, smear), expected.iterrows(), strict=True):
        assert article.locator(".class").inner_text() == f"Predicted: {row['predicted']}"
        rows = [part.inner_text().split() for part in article.locator("tbody tr").all()]
        assert rows == [[name, f"{row[f'probability_{name}']:.3f}"] for name in classifier.class_names]
    assert "unlike the training images" in smear.locator(".note").inner_text()
    assert broken.locator(".note").inner_text().startswith("Cannot read the image")
    assert all(image.get_attribute("alt") for image in page.locator("img").all())
    assert page.evaluate("[...document.querySelectorAll('article img')].every(image => image.naturalWidth > 0)")
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    assert len([*server.folder.glob("leukemia-dl-*/*/*.*")]) == 3
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        page.reload()
        page.locator("#images button").first.wait_for()
        assert contrast(page, ".demo h1") > 7
        assert contrast(page, ".demo dd") > 7


def contrast(page, selector):
    """Return the contrast of a text with the background of the page, as WCAG defines it."""
    pair = page.evaluate(
        """selector => [getComputedStyle(document.querySelector(selector)).color,
            getComputedStyle(document.body).backgroundColor]""",
        selector,
    )
    colours = np.array([[int(part) for part in re.findall(r"\d+", text)[:3]] for text in pair]) / 255
    linear = np.where(colours <= 0.04045, colours / 12.92, ((colours + 0.055) / 1.055) ** 2.4)
    assert "rgba" not in pair[1]
    dark, bright = np.sort(linear @ (0.2126, 0.7152, 0.0722))
    return (bright + 0.05) / (dark + 0.05)


def test_the_keyboard_is_enough(page, classifier, files):
    with page.expect_file_chooser() as chooser:  # around it all: a chooser that opens right after this line is missed
        page.keyboard.press("Tab")
        assert "upload" in page.evaluate("document.activeElement.getAttribute('aria-label')")
        assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
        page.keyboard.press("Enter")
    chooser.value.set_files(files[0])
    article = page.locator("article")
    article.locator("figure:nth-child(2)").wait_for()
    assert article.locator(".class").inner_text().endswith(classifier.predict(files[0])["predicted"][0])
    assert page.locator(".demo [role=status]").inner_text() == "1 image, none unreadable."
    names = []
    while "Clear" not in names and len(names) < 10:
        page.keyboard.press("Tab")
        names.append(page.evaluate("document.activeElement.getAttribute('aria-label')"))
    assert names == ["Add images", "Click to upload or drop files", "Clear"]
    page.keyboard.press("Enter")
    article.wait_for(state="detached")


def test_a_file_that_was_not_uploaded_is_not_read(server, files):
    """Another program of this machine may name any path."""
    given = [[{"path": str(files[0]), "meta": {"_type": "gradio.FileData"}}]]
    body = json.dumps({"fn_index": 0, "session_hash": "other", "data": given}).encode()
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    asked = urllib.request.Request(f"{server.url}gradio_api/queue/join", body, {"Content-Type": "application/json"})
    opener.open(asked, timeout=30).read()
    said = opener.open(f"{server.url}gradio_api/queue/data?session_hash=other", timeout=60).read().decode()
    assert "it was not uploaded by a user" in said
    assert "data:image" not in said


def test_ctrl_c_ends_it_and_leaves_no_image(page, server, files):
    """The page is open meanwhile. Nothing was asked through a proxy: no check of a version, no counting of users."""
    drop(page, files[0])
    page.locator("article figure:nth-child(2)").wait_for()
    assert [*server.folder.glob("leukemia-dl-*/*/cell.bmp")]
    server.process.send_signal(signal.SIGINT)
    _, said = server.process.communicate(timeout=30)
    assert server.process.returncode == 0
    assert "Traceback" not in said.rpartition("InvalidPathError")[2]  # gradio's own, of a refused request
    assert not [*server.folder.glob("leukemia-dl-*")]
    assert not [*Path(server.folder).rglob("*.bmp")]
    server.proxy.settimeout(0.1)
    with pytest.raises(TimeoutError):
        server.proxy.accept()
