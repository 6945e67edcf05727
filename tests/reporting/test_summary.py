"""The findings of a run in sentences and tables: of finished, unfinished and degenerate runs."""

import re
import shutil

import numpy as np
import pandas as pd
import pytest

import leukemia_dl as ldl
import records
import stores
from leukemia_dl.benchmark.run_files import read_run
from leukemia_dl.datasets import splits
from leukemia_dl.reporting import write_model_cards
from leukemia_dl.reporting.summary import summaries_of, worst_errors
from pages import write

FIFTEEN = [f"class {i}" for i in range(15)]
NASTY = "<script>alert(1)</script>"

FEW = "fewer than 5 groups: 2 of class hem (3 missing), 2 of class all (3 missing)"


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
        ({"backbones": ["cnn"], "baselines": []}, {"subjects": 16}, "without a rank or a verdict: cnn"),
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
    counts = pd.DataFrame(
        {"side": ["train"], "class": ["hem"], "images": [60], "groups": [24], "effective_groups": [24.0]}
    )
    monkeypatch.setattr(splits, "_count", lambda *_: counts.set_index(["side", "class"]))
    dataset = stores.cells(60)
    sides = ["test" if label else ("val" if i % 3 else "train") for i, label in enumerate(dataset.labels)]
    dataset = ldl.Dataset(dataset.table.assign(split=sides), dataset.class_names, dataset.info, dataset._arrays)
    stores.made_up(tmp_path, dataset, protocol="fixed")
    write(tmp_path, rendered=True, dataset=dataset)
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    row, *_ = re.findall(r'<th scope="row">cnn<.*?</tr>', page, re.DOTALL)
    assert row.count(">\u2013</td>") == 1  # of the AUROC


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


def test_one_split_that_leaks_is_enough_to_say_that_a_protocol_does(tmp_path):
    stores.made_up(tmp_path, stores.cells(), protocol="kfold", folds=[0, 1])
    run = read_run(tmp_path)
    assert summaries_of(run)[0].keeps_patients_apart is True
    run.results.loc[0, "guarantees"] = "content-disjoint"
    found = summaries_of(run)[0]
    assert found.keeps_patients_apart is False
    assert found.sentences()[-1].startswith("This protocol lets patients be on both sides")


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
        f"Not testable, {FEW} (4 groups of patients in all). "
        f"Accuracy on the test side, without a rank or a verdict: {values}."
    )
    assert f"The baseline majority reaches {board.loc['majority', 'accuracy']:.3f}." in answer
    results = page.text[page.text.index("Results, protocol holdout") :]
    assert results.split("\n")[1] == f"Not testable, {FEW}: every pair of rows."
    for verdict in (
        "Best accuracy",
        "significant",
        "no net exceeds",
        "Rank",
        "Better than",
        "95%",
        "Comparisons in",
    ):
        assert verdict not in page.text
    (card, *_) = write_model_cards(tmp_path)
    assert f"No interval can be given: {FEW}." in card.read_text()
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
    assert "Best accuracy of a net on the test side: " in text


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


def test_means_over_nets_are_in_the_leaderboard_without_a_rank(tmp_path):
    stores.made_up(tmp_path, stores.cells())
    (summary,) = summaries_of(read_run(tmp_path))
    means = summary.leaderboard[summary.leaderboard["kind"] == "ensemble"]
    assert len(means)
    assert means["rank"].isna().all()
    assert set(means["backbone"]) <= set(summary.intervals["backbone"])
    assert not (summary.predictions["kind"] == "ensemble").any()
    page = write(tmp_path, dataset=stores.cells())
    assert means["backbone"].iloc[-1] in page.text
