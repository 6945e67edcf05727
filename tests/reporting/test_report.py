"""The report: what it says of finished, unfinished and degenerate runs, and how it behaves in a browser."""

import json
import re
import shutil
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest

import leukemia_dl as ldl
import records
import stores
from browser import CHROMIUM, Browser
from leukemia_dl.benchmark.run_files import read_run
from leukemia_dl.datasets import splits
from leukemia_dl.errors import DataError, StoreError
from leukemia_dl.reporting import render, write_model_cards, write_pictures, write_report
from leukemia_dl.reporting.summary import summaries_of, worst_errors

FIFTEEN = [f"class {i}" for i in range(15)]
NASTY = "<script>alert(1)</script>"


class Page(HTMLParser):
    """Text, headings, images and everything that could run or fetch."""

    def __init__(self, text):
        super().__init__()
        self.headings, self.images, self.scripts, self.links, self.stack = [], [], 0, [], []
        self.text = ""
        self.feed(text)
        assert not self.stack, self.stack

    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        assert not any(name.startswith("on") for name in found), found
        if tag not in ("meta", "img", "br", "link"):
            self.stack.append(tag)
        self.images += [found] if tag == "img" else []
        self.links += [found["href"]] if tag in ("a", "link") else []
        self.scripts += tag == "script"
        self.headings += [int(tag[1])] if re.fullmatch("h[1-6]", tag) else []

    def handle_endtag(self, tag):
        assert self.stack.pop() == tag

    def handle_data(self, data):
        if self.stack and self.stack[-1] not in ("script", "style"):
            self.text += data


def page_of(path):
    text = path.read_text(encoding="utf-8")
    page = Page(text)
    assert page.scripts == 1
    assert page.headings[0] == 1
    assert all(after - before <= 1 for before, after in zip(page.headings, page.headings[1:], strict=False))
    assert all(image["alt"] and image["src"].startswith("data:image/") for image in page.images)
    assert all(link.startswith(("#", "data:,")) for link in page.links), page.links
    assert "nan" not in re.findall(r"[a-z]+", page.text.replace("tiny", ""))
    assert "For research use only" in page.text
    return page


def write(store, rendered=False, **settings):
    """Return the page of a store, whose figures are drawn but not rendered, which would take most of the time."""
    with pytest.MonkeyPatch.context() as patch:
        if not rendered:
            patch.setattr(render, "svg", lambda _: "data:image/svg+xml;base64,")
        return page_of(write_report(store, show_progress=False, **settings))


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


def test_an_unfinished_run_names_what_is_missing(tmp_path):
    dataset = stores.cells()
    stores.made_up(tmp_path, dataset, protocol="kfold", folds=[0, 1], missing=[1, 9], failed=[2])
    page = write(tmp_path, dataset=dataset)
    assert "This run is not finished: 2 of 10 trials are missing" in page.text
    assert "1 of 10 trials failed" in page.text
    assert "failed: MemoryError: no memory for <b>this</b> one" in page.text
    assert "incomplete: 1 of 2 trials" in page.text


def test_a_damaged_trial_is_missing(tmp_path):
    stores.made_up(tmp_path, stores.cells())
    (folder,) = (tmp_path / "trials").glob("cnn-*")
    (folder / "record.json").write_text("{}")
    assert "1 of 5 trials is missing" in write(tmp_path).text


@pytest.mark.parametrize(
    ("settings", "data", "says"),
    [
        ({"backbones": ["cnn"], "baselines": []}, {}, "without a rank or a verdict: cnn"),
        ({"failed": range(5)}, {}, "Nothing can be said: no trial was finished."),
        ({"missing": range(5)}, {}, "5 of 5 trials are missing"),
        ({"protocol": "random", "allow_leakage": True}, {"subjects": 0}, "The patients are not known"),
        ({"learned": 40.0}, {}, "1.000"),
        ({"protocol": "kfold", "folds": "all"}, {"classes": FIFTEEN, "count": 600, "subjects": 90}, "class 14"),
        ({}, {"classes": [NASTY, "a|b `c`"], "title": "<img src=x onerror=alert(1)>"}, NASTY),
        ({"protocol": ["kfold", "random", "holdout"], "folds": None, "allow_leakage": True}, {}, "Not drawn: "),
    ],
    ids=["one trial", "all failed", "nothing there", "no subjects", "no error", "fifteen classes", "markup", "three"],
)  # fmt: skip
def test_degenerate_runs_have_a_whole_page(settings, data, says, tmp_path):
    dataset = stores.cells(**data)
    stores.made_up(tmp_path, dataset, **settings)
    page = write(tmp_path, rendered="protocol" not in settings or "classes" in data, dataset=dataset)
    assert says in page.text
    assert len(page.images) <= 20 + 12 * 3 + 20


def test_one_class_alone_on_the_test_side(tmp_path, monkeypatch):
    """Our protocols refuse that; a store may come from anywhere."""
    counts = pd.DataFrame({"side": ["train"], "class": ["hem"], "images": [60], "groups": [24]})
    monkeypatch.setattr(splits, "_count", lambda *_: counts.set_index(["side", "class"]))
    dataset = stores.cells(60)
    sides = ["test" if label else ("val" if i % 3 else "train") for i, label in enumerate(dataset.labels)]
    dataset = ldl.Dataset(dataset.table.assign(split=sides), dataset.class_names, dataset.info, dataset._arrays)
    stores.made_up(tmp_path, dataset, protocol="fixed")
    write(tmp_path, rendered=True, dataset=dataset)
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    (row,) = re.findall(r'<th scope="row">cnn<.*?</tr>', page, re.DOTALL)
    assert row.count(">\u2013</td>") == 1  # of the AUROC


def test_what_is_no_store_is_refused(tmp_path, finished):
    with pytest.raises(StoreError, match=r"is not the store of a benchmark.*settings.toml"):
        write_report(tmp_path)
    store = tmp_path / "copy"
    shutil.copytree(finished[0], store)
    with pytest.raises(StoreError, match="there is no folder"):
        write_report(store, path=tmp_path / "not" / "there.html")
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
    cells = f"[...document.querySelectorAll('#results-1 tbody tr')].map(r => r.cells[{number}].dataset.value)"
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


def test_a_report_names_what_differs_from_the_preset(tmp_path):
    """20.7: the report's leaderboard says which settings were changed."""
    recipe = ldl.Recipe.preset("quick", learning_rate=0.01)
    stores.made_up(tmp_path, stores.cells(), ["cnn"], recipe=recipe)
    assert "cnnlearning_rate=0.01" in write(tmp_path).text.replace(" ", "")


def test_who_called_an_image_what_is_counted_by_class(tmp_path):
    dataset = stores.cells(200, 40, classes=list("abcd"))
    stores.made_up(tmp_path, dataset, seeds=[0, 1, 2], learned=0.3)
    frame = read_run(tmp_path).predictions
    nets = frame[(frame["kind"] == "backbone") & (frame["side"] == "test")].reset_index(drop=True)
    shares = nets[[f"probability_{name}" for name in "abcd"]]
    nets["called"] = np.array(list("abcd"))[shares.to_numpy().argmax(axis=1)]
    text = write(tmp_path).text
    told = re.findall(
        r"(Made-\d+)is ([abcd]), called ([abcd]) by (\d) of 6 fitted nets, with a mean probability of (\S+?\d\d)", text
    )
    assert len(told) == 12
    for sample, label, called, times, share in told:
        rows = nets[nets["sample"] == sample]
        said = rows[rows["called"] == called]
        assert (rows["label"].iloc[0], len(said)) == (label, int(times))
        assert said[f"probability_{called}"].mean() == pytest.approx(float(share), abs=0.006)
        wrong = rows[rows["called"] != label]["called"].value_counts()
        assert wrong.max() == len(said)


def test_nets_are_counted_on_the_test_side_only(tmp_path):
    """With several folds an image of one net's test side is on another's val side, which is no test."""
    dataset = stores.cells(200, 40)
    stores.made_up(tmp_path, dataset, protocol="kfold", folds="all", seeds=[0, 1], learned=0.3)
    run = read_run(tmp_path)
    table = worst_errors(summaries_of(run)[0], len(dataset))  # all: the worst few may be on no val side
    frame = run.predictions[run.predictions["kind"] == "backbone"]
    assert (frame["side"] == "val").any()
    assert set(table["nets"]) == {4}  # two backbones, two seeds
    tested = frame[frame["side"] == "test"].set_index("sample")
    called = np.where(tested["probability_all"] > tested["probability_hem"], "all", "hem")
    wrong = (called != tested["label"]).groupby(level=0).sum()
    assert table.set_index("sample")["wrong"].to_dict() == wrong[wrong > 0].to_dict()


def test_where_nothing_can_be_tested_the_reason_comes_first(tmp_path):
    """20.3: fewer than five groups give the reason, the number of groups and values, but no rank and no verdict."""
    stores.made_up(tmp_path, stores.cells(200, 16))
    page = write(tmp_path)
    board = ldl.leaderboard(read_run(tmp_path).predictions).set_index("backbone")
    values = " and ".join(
        f"{name} {board.loc[name, 'accuracy']:.3f}" for name in board.index if name in ("cnn", "vgg16")
    )
    answer = page.text[page.text.index("Recipe made-up;") :].partition("seed.")[2].lstrip()
    assert answer.startswith(
        "Not testable, fewer than 5 groups: 2 of class hem, 2 of class all (4 groups of patients in all). "
        f"Accuracy on the test side, without a rank or a verdict: {values}."
    )
    assert f"The baseline majority reaches {board.loc['majority', 'accuracy']:.3f}." in answer
    results = page.text[page.text.index("Results, protocol holdout") :]
    assert (
        results.split("\n")[1]
        == "Not testable, fewer than 5 groups: 2 of class hem, 2 of class all: every pair of rows."
    )
    for verdict in (
        "Highest accuracy",
        "significant",
        "no net exceeds",
        "Rank",
        "Better than",
        "95%",
        "Comparisons in",
    ):
        assert verdict not in page.text
    (card, *_) = write_model_cards(tmp_path)
    assert "No interval can be given: fewer than 5 groups: 2 of class hem, 2 of class all." in card.read_text()
    assert "95 %" not in card.read_text()


def test_a_net_that_cannot_be_tested_is_named_beside_those_that_can(tmp_path):
    """20.3: one net without a common image has no rank; the others keep theirs."""
    stores.made_up(tmp_path, stores.cells(400, 24), ["cnn", "vgg16", "resnet50"], protocol="kfold", folds=[0, 1, 2])
    gone = [path for path in (tmp_path / "trials").glob("vgg16-*") if "fold0" not in path.name]
    for path in gone:
        shutil.rmtree(path)
    text = write(tmp_path).text
    assert "Not testable, fewer than 5 groups: " in text
    assert "without a rank or a verdict: vgg16 " in text
    assert "Highest accuracy of a net on the test side: " in text


def test_four_classes_have_no_positive_one_and_no_empty_columns(tmp_path):
    """20.33: captions of four classes name no positive class, and only what is known has a column."""
    dataset = stores.cells(400, 80, classes=["benign", "early", "pre", "pro"])
    stores.made_up(tmp_path, dataset, protocol="kfold", folds="all")
    page = write(tmp_path, dataset=dataset)
    assert "positive class" not in page.text
    assert "each against the rest and averaged" in page.text
    assert "Declared" not in page.text
    assert "95% intervals over groups of patients" in page.text
    (card, *_) = write_model_cards(tmp_path)
    assert "sensitivity" not in card.read_text().partition("## Performance")[2].partition("##")[0]


def test_a_baseline_that_the_images_do_not_allow_is_not_unfinished(tmp_path):
    """20.33: a trial that is not applicable is finished."""
    stores.made_up(tmp_path, stores.cells())
    (folder,) = (tmp_path / "trials").glob("cell_size-*")
    records.rewrite(folder, {"status": "not_applicable", "message": "no image shows a single cell", "metrics": {}})
    text = write(tmp_path).text
    assert "Not applicable to these images: cell_size." in text
    assert "Without any finished trial" not in text
    assert "not finished" not in text


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
    monkeypatch.setattr(render, "svg", lambda _: "data:image/svg+xml;base64,")
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
