"""Whatever frame comes: every function answers with a table or with one of our errors, without warnings or changes."""

import warnings

import numpy as np
import pandas as pd
import pytest

from leukemia_dl import evaluation
from leukemia_dl.errors import DataError, SettingsError
from predictions import clustered

SMALL = ((5, 9, 12, 3, 8, 2), (7, 3, 5, 11, 6))
FUNCTIONS = {
    "evaluate": evaluation.evaluate,
    "procedure": lambda f: evaluation.evaluate(f, estimand="procedure"),
    "by": lambda f: evaluation.evaluate(f, metrics=["accuracy", "auroc"], by="odd"),
    "once": lambda f: evaluation.evaluate(f, metrics="accuracy", unique_cells=True),
    "compare": lambda f: evaluation.compare(f, descriptive=["auroc", "loss"]),
    "leaderboard": evaluation.leaderboard,
    "leaderboard, ece": lambda f: evaluation.leaderboard(f, "ece"),
    "patient_predictions": evaluation.patient_predictions,
    "net_benefit": evaluation.net_benefit,
    "group_table": evaluation.group_table,
    "error_list": evaluation.error_list,
    "operating_points": lambda f: evaluation.operating_points(f, sensitivity=0.9),
    "accuracy_at_coverage": lambda f: evaluation.accuracy_at_coverage(f, [0.1, 1.0]),
    "calibrate": evaluation.calibrate,
}


def base():
    test = clustered(SMALL, ["one", "other"], seeds=(0, 1))
    val = clustered(SMALL, ["one", "other"], seeds=(0, 1), seed=1)
    val = val.assign(side="val", sample="v" + val["sample"], group="v" + val["group"])
    frame = pd.concat([test, val], ignore_index=True)
    return frame.assign(kind="backbone", same_cell=pd.NA, odd=np.arange(len(frame)) % 11)


def put(column, value):
    return lambda f: f.assign(**{column: value})


def first(column, value):
    def change(frame):
        frame[column] = frame[column].astype(object)
        frame.loc[0, column] = value
        return frame

    return change


def both(p):
    return lambda f: f.assign(probability_all=p, probability_hem=1 - p)


def labels(values):
    def change(frame):
        frame["label"] = np.where(frame["label"] == "all", values[1], values[0])
        return frame.rename(columns={"probability_hem": "probability_0", "probability_all": "probability_1"})

    return change


ODD = {
    "as it is": lambda f: f,
    "no rows": lambda f: f.iloc[:0],
    "one row": lambda f: f.iloc[:1],
    "one class": lambda f: f[f["label"] == "all"],
    "one group": lambda f: f[f["group"].isin(["g0", "vg0"])],
    "two groups": lambda f: f[f["group"].isin(["g0", "g8", "vg0", "vg8"])],
    "one image a group": put("group", [f"x{i}" for i in range(4 * 71)] * 2),
    "no groups": lambda f: f.drop(columns="group"),
    "groups of several classes": put("group", [f"x{i % 9}" for i in range(8 * 71)]),
    "groups are numbers": lambda f: f.assign(group=pd.factorize(f["group"])[0]),
    "a group is missing": first("group", None),
    "no samples": lambda f: f.drop(columns="sample"),
    "samples are numbers": lambda f: f.assign(sample=pd.factorize(f["sample"])[0]),
    "a sample is missing": first("sample", None),
    "a seed is missing": first("seed", np.nan),
    "a backbone is missing": first("backbone", None),
    "backbones are numbers": lambda f: f.assign(backbone=f["backbone"].map({"one": 1, "other": 2})),
    "a label is missing": first("label", np.nan),
    "an unknown label": first("label", "blast"),
    "labels 0 and 1": labels((0, 1)),
    "labels 0.0 and 1.0": labels((0.0, 1.0)),
    "labels false and true": labels((False, True)),
    "labels inf": first("label", np.inf),
    "categories": lambda f: f.astype(dict.fromkeys(["label", "backbone", "group", "side"], "category")),
    "nullable": lambda f: f.convert_dtypes(),
    "float32": lambda f: f.astype({"probability_all": "float32", "probability_hem": "float32"}),
    "text for probabilities": first("probability_all", "high"),
    "nan": first("probability_all", np.nan),
    "negative": first("probability_all", -0.1),
    "constant": both(0.5),
    "certain": lambda f: both((f["label"] == "all").astype(float))(f),
    "certainly wrong": lambda f: both((f["label"] == "hem").astype(float))(f),
    "all positive": both(1.0),
    "folds of one class": lambda f: f.assign(fold=(f["label"] == "all").astype(int)),
    "fold numbers missing": put("fold", pd.NA),
    "a group in two folds": put("fold", [i % 2 for i in range(8 * 71)]),
    "index names": lambda f: f.set_index(["backbone", "group"], drop=False),
    "repeated index": lambda f: f.set_index(np.zeros(len(f), int)),
    "several levels": lambda f: pd.concat({"x": f}, axis=1),
    "a column twice": lambda f: pd.concat([f, f[["label"]]], axis=1),
    "kinds unknown": put("kind", "net"),
    "a baseline": lambda f: f.assign(kind=np.where(f["backbone"] == "one", "baseline", "backbone")),
    "different images": lambda f: f[~((f["backbone"] == "one") & (f["sample"] < "s4"))],
    "another label": lambda f: f.assign(label=f["label"].where(f["backbone"] == "one", "all")),
    "rows twice": lambda f: pd.concat([f, f]),
    "no val": lambda f: f[f["side"] == "test"],
    "sides unnamed": lambda f: f.drop(columns="side"),
    "empty cells": put("same_cell", ""),
    "odd is infinite": put("odd", [np.inf, *np.linspace(-1e305, 1e305, 8 * 71 - 1)]),
    "odd is nothing": put("odd", np.nan),
    "odd is a date": put("odd", pd.Timestamp("2019-01-01")),
    "odd is yes or no": put("odd", [True, False] * 4 * 71),
    "a temperature": put("temperature", 2.0),
    "many classes": lambda f: f.rename(columns={"probability_all": "probability_x"}).assign(
        label="c3", **{f"probability_c{i}": 0.0 for i in range(8)}
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", ODD)
def test_an_odd_frame_ends_in_a_table_or_in_our_error(name):
    frame = ODD[name](base())
    before = frame.copy()
    answered = set()
    for function in FUNCTIONS.values():
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            try:
                table = function(frame)
            except (DataError, SettingsError):
                continue
        assert isinstance(table, pd.DataFrame)
        answered.add(function)
        if {"value", "low", "high"} <= set(table):
            given = table.dropna(subset=["value", "low", "high"])
            assert (given["low"] <= given["value"] + 1e-12).all()
            assert (given["value"] <= given["high"] + 1e-12).all()
        if "p" in table:
            assert table["p"].dropna().between(0, 1).all()
    pd.testing.assert_frame_equal(frame, before)
    if name == "as it is":
        assert len(answered) == len(FUNCTIONS)


@pytest.mark.parametrize("what", [None, 5, "predictions.csv", [], {"label": [1]}, np.zeros((3, 3))])
def test_what_is_no_frame_is_refused(what):
    for function in FUNCTIONS.values():
        with pytest.raises(DataError):
            function(what)


def test_one_spelling_of_labels_serves_everywhere():
    frame = base()
    numbered = labels((0.0, 1.0))(base())
    assert len(evaluation.error_list(numbered)) == len(evaluation.error_list(frame))
    for name in ("evaluate", "operating_points", "calibrate", "group_table"):
        ours, theirs = FUNCTIONS[name](frame), FUNCTIONS[name](numbered)
        numbers = ours.select_dtypes("float").columns.intersection(theirs.columns)
        pd.testing.assert_frame_equal(ours[numbers], theirs[numbers])


def test_many_images_and_classes_take_little_memory():
    labels = np.arange(50_000) % 200
    found = evaluation.score(labels, np.full((50_000, 200), 1 / 200))
    assert found["loss"] == pytest.approx(np.log(200))
    assert found["accuracy"] == pytest.approx(1 / 200)
