"""The report: what it says of a run, what it needs, and how it behaves in a browser."""

import json
import re
import shutil

import numpy as np
import pytest

import leukemia_dl as ldl
import records
import stores
from browser import CHROMIUM, Browser
from leukemia_dl.benchmark.run_files import read_run
from leukemia_dl.errors import DataError, StoreError
from leukemia_dl.reporting import plots, write_model_cards, write_pictures, write_report
from pages import page_of, write

NASTY = "<script>alert(1)</script>"


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    store = tmp_path_factory.mktemp("report") / "store"
    dataset = stores.cells()
    stores.made_up(store, dataset, protocol="kfold", folds=[0, 1], seeds=[0, 1])
    return store, dataset, write_report(store, dataset=dataset, show_progress=False)


def test_a_finished_run_is_told_in_full(finished):
    store, _, path = finished
    assert path == store / "report.html"
    page = page_of(path)
    said = page.text
    assert (
        "How well do cnn and vgg16 tell hem and all apart, and is that better than majority, cell_size and cell_colour"
        in said
    )
    assert "Synthetic cells, drawn by a program." in said
    assert "Drawn by a test." in said
    for heading in ("Audit", "How the data were split", "Leaderboard", "Where it fails", "Trials", "Settings"):
        assert heading in said
    predictions = read_run(store).predictions
    board = ldl.leaderboard(predictions).set_index("backbone")
    spans = ldl.evaluate(predictions).set_index(["backbone", "metric"])
    rows = re.findall(r"<tr[^>]*>\s*<td.*?</tr>", path.read_text(), re.DOTALL)
    for name in ("cnn", "vgg16"):
        (row,) = [row for row in rows if f'<th scope="row">{name}<' in row]
        shown = [f"{board.loc[name, 'accuracy']:.3f}"]
        for metric in ("accuracy", "loss", "balanced_accuracy", "auroc"):
            value, low, high = spans.loc[(name, metric), ["value", "low", "high"]]
            shown.append(f"{value:.3f} [{low:.3f}, {high:.3f}]")
        cells = [re.sub("<.*?>", "", cell) for cell in re.findall(r"<td.*?</td>", row)]
        assert cells[1:5] == shown[1:]
    assert "could not be drawn" not in said
    for sentence in ldl.compare(predictions)["sentence"]:
        assert sentence.removesuffix(", without correction for multiple comparisons.") in said
    assert "missing" not in said.replace("missing data", "")
    assert len(page.images) == 10 + 12  # figures, and the images of twelve errors
    assert path.stat().st_size < 3e6


def test_worst_errors_are_those_that_most_nets_make(finished):
    store, _, path = finished
    frame = read_run(store).predictions
    nets = frame[(frame["kind"] == "backbone") & (frame["side"] == "test")]
    called = np.where(nets["probability_all"] > nets["probability_hem"], "all", "hem")
    wrong = nets.assign(wrong=called != nets["label"]).groupby("sample")["wrong"].agg(["sum", "size"])
    worst = wrong[wrong["sum"] == wrong["sum"].max()].index
    text = page_of(path).text
    section = text[text.index("Where it fails") : text.index("Trials", text.index("Where it fails"))]
    named = re.findall(r"(Made-\d+)is", section.replace("\n", ""))
    assert len(named) == 12
    assert set(named[: len(worst)]) <= set(worst) or set(worst) <= set(named)


def test_no_folder_of_this_machine_is_in_it(finished, tmp_path):
    store, _, path = finished
    assert str(store) not in path.read_text()
    dataset = ldl.Dataset.load(
        "synthetic", root=tmp_path / "cells", subjects=12, images=72, preliminary_images=12, final_images=2
    )
    stores.made_up(tmp_path / "store", dataset, ["cnn"])
    page = write(tmp_path / "store")
    assert str(tmp_path) not in page.text
    assert 'root = "..."' in page.text
    assert "This page has no images" not in page.text


def test_equal_stores_give_equal_pages(finished, tmp_path):
    store, dataset, path = finished
    again = write_report(store, dataset=dataset, path=tmp_path / "again.html", show_progress=False)
    assert again.read_bytes() == path.read_bytes()


def test_without_the_data_set_it_says_what_is_missing_and_why(finished, tmp_path):
    store, _, _ = finished
    page = write(store, path=tmp_path / "a.html")
    assert "The data set was not loaded by its name from a folder" in page.text
    assert "Every image was checked" in page.text  # as the store knows
    assert len(page.images) == 9  # without samples, and images of errors
    copy = tmp_path / "copy"
    shutil.copytree(store, copy)
    (copy / "audit.json").unlink()
    assert "No audit was made." in write(copy).text
    other = stores.cells(seed=1)
    page = write(store, dataset=other, path=tmp_path / "a.html")
    assert "It has other contents, labels or groups than the data set of the store: " in page.text


def test_the_audit_is_kept_and_made_anew_for_other_data(tmp_path):
    dataset = stores.cells()
    stores.made_up(tmp_path, dataset, ["cnn"])
    write(tmp_path, dataset=dataset)
    path = tmp_path / "audit.json"
    kept = json.loads(path.read_text())
    assert kept["audit"] == dataset.audit(show_progress=False).to_dict()
    kept["audit"]["findings"] = [
        {"kind": "odd_size", "severity": "warning", "sample": "s", "other": None, "detail": "as it is kept"}
    ]
    path.write_text(json.dumps(kept))
    page = write(tmp_path, dataset=dataset)
    assert "as it is kept" in page.text
    assert not re.search(r">\s*(None|nan|<NA>)\s*<", path.with_name("report.html").read_text())
    path.write_text(json.dumps(kept | {"fingerprint": "another"}))
    assert "as it is kept" not in write(tmp_path, dataset=dataset).text
    path.write_text("{")
    assert "as it is kept" not in write(tmp_path, dataset=dataset).text


def test_what_is_no_store_is_refused(tmp_path, finished):
    with pytest.raises(StoreError, match=r"is not the store of a benchmark.*settings.toml"):
        write_report(tmp_path)
    store = tmp_path / "copy"
    shutil.copytree(finished[0], store)
    (stores.run_folder(store) / "grid.csv").unlink()
    with pytest.raises(StoreError, match=r"is damaged \(\[Errno 2\] No such file"):
        write_report(store)


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    if CHROMIUM is None:
        pytest.skip("needs chromium")
    found = Browser(tmp_path_factory.mktemp("profile"))
    yield found
    found.close()


def column(browser, number):
    rows = "[...document.querySelector('#results-1 tbody').rows]"
    cells = f"{rows}.map(r => r.cells[{number}].dataset.value)"
    return [float(value) if value else None for value in browser.run(cells)]


def test_in_a_browser_it_asks_for_nothing_and_complains_of_nothing(browser, finished):
    _, _, path = finished
    browser.open(path)
    assert browser.complaints() == []
    assert browser.requests() == [path.as_uri()]
    assert browser.run("[...document.images].every(i => i.complete && i.naturalWidth > 0)")


def test_in_a_browser_its_table_sorts_by_click_and_by_key(browser, finished):
    browser.open(finished[2])
    head = "#results-1 thead th:nth-child(4)"
    loss = column(browser, 3)
    browser.click(f"{head} button")
    assert column(browser, 3) == sorted(loss)
    assert browser.run(f"document.querySelector({head!r}).getAttribute('aria-sort')") == "ascending"
    assert browser.run("document.querySelector('[aria-live]').textContent") == "Sorted by Loss, ascending."
    browser.press("Enter", 13, "\r")
    assert column(browser, 3) == sorted(loss, reverse=True)
    # Backwards to the head of the column before it, and what is not known comes last in either order.
    for place, times in ((2, 1), (0, 2)):
        for _ in range(times):
            browser.call(
                "Input.dispatchKeyEvent", type="keyDown", key="Tab", code="Tab", windowsVirtualKeyCode=9, modifiers=8
            )
        browser.press(" ", 32, " ")
        found = column(browser, place)
        known = [value for value in found if value is not None]
        assert known == sorted(known)
        assert found[: len(known)] == known


def test_in_a_browser_markup_in_names_is_text(browser, tmp_path):
    dataset = stores.cells(classes=[NASTY, '"><b>'], title=f"{NASTY}<img src=x onerror=alert(1)>")
    stores.made_up(tmp_path, dataset, ["cnn"])
    path = write_report(tmp_path, dataset=dataset, show_progress=False)
    browser.open(path)
    assert browser.complaints() == []
    assert browser.requests() == [path.as_uri()]
    assert browser.run("document.scripts.length") == 1
    assert NASTY in browser.run("document.querySelector('h1').textContent")


def test_in_a_browser_it_is_legible_in_the_dark_on_paper_and_on_a_phone(browser, finished):
    browser.open(finished[2])
    colours = "(s => [s.color, s.backgroundColor])(getComputedStyle(document.body))"
    light = browser.run(colours)
    browser.prefer("dark")
    dark = browser.run(colours)
    browser.prefer("light")
    for ink, paper in (light, dark):
        assert contrast(ink, paper) > 7
    assert light != dark
    assert browser.pdf().startswith(b"%PDF")
    browser.size(390, 800)
    assert browser.run("document.documentElement.scrollWidth") <= 390
    browser.size(1200, 900)


def contrast(one, other):
    """Return the contrast ratio of two colours (WCAG 2.2)."""

    def luminance(colour):
        shares = np.array([int(part) / 255 for part in re.findall(r"\d+", colour)[:3]])
        linear = np.where(shares <= 0.04045, shares / 12.92, ((shares + 0.055) / 1.055) ** 2.4)
        return float(linear @ [0.2126, 0.7152, 0.0722])

    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def test_a_wrong_root_is_an_error_and_nothing_is_drawn_there(tmp_path):
    sizes = {"subjects": 12, "images": 72, "preliminary_images": 12, "final_images": 2}
    dataset = ldl.Dataset.load("synthetic", root=tmp_path / "cells", **sizes)
    stores.made_up(tmp_path / "store", dataset, ["cnn"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="is not at"):
        write_report(tmp_path / "store", root=tmp_path / "empty", show_progress=False)
    assert list((tmp_path / "empty").iterdir()) == []
    other = ldl.Dataset.load("synthetic", root=tmp_path / "other", **sizes | {"seed": 1})
    assert len(other) == len(dataset)
    with pytest.raises(DataError):
        write_report(tmp_path / "store", root=tmp_path / "other", show_progress=False)
    shutil.rmtree(tmp_path / "cells")
    assert "The data set 'synthetic' is not at" in write(tmp_path / "store").text
    assert not (tmp_path / "cells").exists()


def test_a_report_draws_and_fetches_nothing(tmp_path, monkeypatch):
    """20.39: settings without a root, of cells that are not in the cache, leave the report without images."""
    monkeypatch.setenv("LEUKEMIA_DL_CACHE", str(tmp_path / "cache"))
    sizes = {"subjects": 12, "images": 72, "preliminary_images": 12, "final_images": 2}
    dataset = ldl.Dataset.load("synthetic", **sizes)
    stores.made_up(tmp_path / "store", dataset, ["cnn"])
    assert "The data set 'synthetic' is not at" not in write(tmp_path / "store").text
    settings = stores.run_folder(tmp_path / "store") / "settings.toml"
    for old, new in (("images = 72", "images = 3000"), ("images = 3000", "images = 72")):
        settings.write_text(settings.read_text().replace(old, new, 1))
        assert ("The data set 'synthetic' is not at" in write(tmp_path / "store").text) == (new != "images = 72")
    shutil.rmtree(tmp_path / "cache")
    assert "The data set 'synthetic' is not at" in write(tmp_path / "store").text
    assert not (tmp_path / "cache").exists()


def test_it_says_whether_the_settings_alone_make_the_data_set_again(tmp_path):
    stores.made_up(tmp_path / "made", stores.cells(), learned=0.0)
    stores.made_up(tmp_path / "loaded", ldl.Dataset.load("synthetic", subjects=12, images=72), ["cnn"])
    for name, said in (("made", True), ("loaded", False)):
        assert ("do not name where the data set comes from" in write(tmp_path / name).text) == said


def test_control_characters_of_names_are_escaped(tmp_path):
    """20.40: neither ESC nor right-to-left overrides reach the report or a card."""
    dataset = stores.cells(title="gnp\u202e \x1b]0;x\x07")  # samples are named by its first four letters
    stores.made_up(tmp_path, dataset, learned=0.0)
    page = write_report(tmp_path, dataset=dataset, show_progress=False).read_text()
    assert re.search(r"<bdi>gnp\\u202e-\d+</bdi>", page)
    for text in (page, *(path.read_text() for path in write_model_cards(tmp_path))):
        assert not set(text) & {"\x1b", "\x07", "\u202e"}
        assert "gnp\\u202e \\x1b]0;x\\x07" in re.sub(r"\\([\\\]])", r"\1", text)  # as Markdown shows it


def test_an_odd_message_costs_no_page(tmp_path):
    stores.made_up(tmp_path, stores.cells(), protocol="kfold", folds=[0, 1])
    first = min((tmp_path / "trials").glob("cnn-*"))
    records.rewrite(first, {"status": "failed", "message": "half \ud800 of /home/alice/secret/x.py\nand \u202e more"})
    page = write(tmp_path)
    assert "alice" not in page.text
    assert ".../x.py" in page.text


def test_a_step_whose_module_is_not_here_costs_one_figure(tmp_path):
    dataset = stores.cells()
    stores.made_up(tmp_path, dataset)
    settings = stores.run_folder(tmp_path) / "settings.toml"
    text = settings.read_text(encoding="utf-8")
    settings.write_text(text.replace('step = "CenterOnCanvas"', 'step = "<b>MyStep"'), encoding="utf-8")
    page = write(tmp_path, dataset=dataset)
    assert "There is no preprocessing step" in page.text
    assert "Made-up cells" in page.text
    (card, *_) = write_model_cards(tmp_path)
    assert "MyStep" in card.read_text(encoding="utf-8")
    assert "<b>" not in card.read_text(encoding="utf-8")
    assert len(read_run(tmp_path).predictions) > 0


def test_a_second_benchmark_in_a_store_leaves_the_report_and_cards_of_the_first(tmp_path, monkeypatch):
    monkeypatch.setattr(plots, "image_of", lambda *_: b"")
    dataset = stores.cells()
    first = stores.made_up(tmp_path, dataset, ["cnn"])
    (page,), cards = [write_report(tmp_path, audit=False, show_progress=False)], write_model_cards(tmp_path)
    before = page.read_bytes()
    second = stores.made_up(tmp_path, dataset, ["cnn"], seeds=[1])
    folders = {bench: bench.stored().folder for bench in (first, second)}
    for folder in folders.values():
        assert write_report(folder, audit=False, show_progress=False) == folder / "report.html"
        assert {path.parent for path in write_model_cards(folder)} == {folder / "cards"}
    assert {path.parent for path in write_pictures(second)} == {folders[second]}
    assert (folders[second] / "predictions.csv").is_file()
    assert page.read_bytes() == before
    assert [path.name for path in (tmp_path / "cards").iterdir()] == [path.name for path in cards]
    assert not list(tmp_path.glob("*.png"))
