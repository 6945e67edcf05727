"""Images that a report asks to look at: the worst errors with maps by their nets, and doubtful labels."""

import dataclasses
import sys

import pandas as pd
import pytest

import grids
import leukemia_dl as ldl
import stores
from leukemia_dl.benchmark.run_files import read_run
from leukemia_dl.evaluation import error_list, label_doubts
from leukemia_dl.reporting import inspected
from leukemia_dl.reporting.summary import summaries_of
from pages import write


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    dataset = stores.cells()
    store = tmp_path_factory.mktemp("inspected") / "store"
    grids.register(grids.tiny)
    bench = ldl.Benchmark(dataset, ["tiny"], recipe=grids.RECIPE, protocol="kfold", n_folds=3, store=store)
    bench.run(executor="in-process", show_progress=False)
    return dataset, store


def test_the_worst_errors_are_explained_by_the_net_that_is_surest_of_them(run):
    dataset, store = run
    stored = read_run(store)
    (summary,) = summaries_of(stored)
    plain = inspected.errors_of(stored, summary, dataset, explain=False)
    rows = inspected.errors_of(stored, summary, dataset, explain=True)
    assert rows
    assert [row["sample"] for row in rows] == [row["sample"] for row in plain]
    wrong = error_list(stored.predictions[stored.predictions["kind"] == "backbone"])
    for row in rows:
        own = wrong[wrong["sample"] == row["sample"]].sort_values("confidence", ascending=False).iloc[0]
        assert row["net"] == "tiny"
        assert row["map"].startswith("data:image/png;base64,")
        net = ldl.load_classifier(store / "trials" / own["trial"])
        picture = dataset.subset(dataset.table["sample"].eq(row["sample"]).to_numpy())
        checks = net.explain(picture, "gradcam", [row["predicted"]]).checks
        assert row["inside"] == pytest.approx(checks["inside"].iloc[0], abs=1e-5)
        assert checks["probability"].iloc[0] > 0.5
    page = write(store, dataset=dataset, explain=True)
    assert page.text.count("map of tiny") == len(rows)
    assert "It does not say why the net is wrong" in page.text
    assert "leukemia-dl report --explain" in write(store, dataset=dataset).text


def test_without_images_or_nets_there_are_no_maps(run, tmp_path):
    dataset, store = run
    stored = read_run(store)
    (summary,) = summaries_of(stored)
    assert all("map" not in row for row in inspected.errors_of(stored, summary, None, explain=True))
    stores.made_up(tmp_path, dataset)  # predictions without nets
    other = read_run(tmp_path)
    (summary,) = summaries_of(other)
    rows = inspected.errors_of(other, summary, dataset, explain=True)
    assert rows
    assert all(row["image"] and "map" not in row for row in rows)


def test_no_map_is_of_a_net_that_is_right(run):
    """The nets that are wrong are of embeddings, which save no model."""
    dataset, store = run
    stored = read_run(store)
    (summary,) = summaries_of(stored)
    few = summary.predictions.loc[summary.predictions["sample"].isin(error_list(summary.predictions)["sample"][:3])]
    summary, nets = dataclasses.replace(summary, predictions=few), few
    sample = inspected.errors_of(stored, summary, dataset, explain=False)[0]["sample"]
    rows = nets["sample"].eq(sample) & nets["kind"].eq("backbone") & nets["side"].eq("test")
    table = pd.concat([nets[rows].assign(backbone=name, trial=f"{name}-of-features") for name in ("one", "two")])
    others = nets[rows].copy()
    columns = [name for name in nets if name.startswith("probability_")]
    others[columns] = others[columns].to_numpy()[:, ::-1]
    summary = dataclasses.replace(summary, predictions=pd.concat([nets[~rows], table, others]))
    found = {row["sample"]: row for row in inspected.errors_of(stored, summary, dataset, explain=True)}
    assert "map" not in found[sample]
    assert sum("map" in row for row in found.values()) == len(found) - 1


def test_doubtful_labels_are_those_of_the_ranking(run, tmp_path, monkeypatch):
    dataset = run[0]
    stores.made_up(tmp_path, dataset)
    stored = read_run(tmp_path)
    (summary,) = summaries_of(stored)
    found, table = inspected.doubts_of(summary, dataset), label_doubts(stored.predictions)
    doubtful = table[table["doubtful"]]
    assert (found["images"], found["doubtful"]) == (len(table), len(doubtful))
    assert [row["sample"] for row in found["rows"]] == doubtful["sample"].tolist()[:12]
    assert all(row["image"] for row in found["rows"])
    said = write(tmp_path, dataset=dataset).text
    assert "Labels to look at again" in said
    assert f"confident learning doubts the labels of {len(doubtful)}" in said
    monkeypatch.setitem(sys.modules, "cleanlab.filter", None)
    assert "Install it: pip install 'leukemia-dl[doubts]'" in write(tmp_path, dataset=dataset).text
