import pytest

from leukemia_dl.errors import UnknownNameError
from leukemia_dl.evaluation import METRICS, published_results
from leukemia_dl.evaluation.metrics import metric

COLUMNS = ["protocol", "scored_on", "work", "method", "metric", "value", "source", "note"]
SOURCE_V1 = {
    "inception_v3": (0.775, 0.498),
    "resnet50": (0.802, 0.514),
    "vgg16": (0.770, 0.536),
    "cnn": (0.784, 0.506),
    "xception": (0.783, 0.533),
}
CHALLENGE = {
    ("Pan et al. 2019", "preliminary", "weighted_f1", 0.9250),
    ("Pan et al. 2019", "final", "weighted_f1", 0.9104),
    ("Verma and Singh 2019", "final", "weighted_f1", 0.8947),
    ("Prellberg and Kramer 2019", "final", "weighted_f1", 0.8891),
    ("Marzahl et al. 2019", "preliminary", "weighted_f1", 0.8746),
    ("Marzahl et al. 2019", "final", "weighted_f1", 0.8284),
    ("Mondal et al. 2021", "preliminary", "weighted_f1", 0.886),
    ("Mondal et al. 2021", "preliminary", "balanced_accuracy", 0.862),
    ("Mondal et al. 2021", "preliminary", "auroc", 0.941),
    ("Albzour 2026", "preliminary", "auroc", 0.913),
    ("Albzour 2026", "preliminary", "sensitivity", 0.87),
    ("Albzour 2026", "preliminary", "specificity", 0.80),
    ("Albzour 2026", "preliminary", "ece", 0.024),
}


@pytest.fixture
def results():
    return published_results("c_nmc_2019")


def test_the_columns_are_those_of_the_docstring_and_none_ranks(results):
    assert list(results) == COLUMNS
    assert results["value"].dtype == float
    assert not results.isna().any(axis=None)


def test_every_value_is_one_that_its_metric_can_have(results):
    assert set(results["metric"]) <= set(METRICS)
    for row in results.itertuples():
        assert metric(row.metric).lowest <= row.value, row
        assert row.value <= (metric(row.metric).highest if row.metric != "loss" else 10), row


def test_the_source_table_is_whole(results):
    table = results[results["protocol"] == "published_v1"]
    assert len(table) == 2 * len(SOURCE_V1)
    wide = table.pivot(index="method", columns="metric", values="value")[["accuracy", "loss"]]
    assert {name: tuple(row) for name, row in zip(wide.index, wide.to_numpy().tolist(), strict=True)} == SOURCE_V1
    assert set(table["scored_on"]) == {"fold 2"}
    assert table["note"].str.contains("trained on folds 0 and 1").all()


def test_the_challenge_table_is_whole(results):
    table = results[results["protocol"] == "challenge"]
    columns = ["work", "scored_on", "metric", "value"]
    assert sorted(map(tuple, table[columns].to_numpy().tolist())) == sorted(CHALLENGE)
    sources = dict(zip(table["work"], table["source"], strict=True))
    assert sources["Mondal et al. 2021"] == "arXiv:2105.03995"
    assert sources["Albzour 2026"] == "arXiv:2606.24944"


def test_a_figure_whose_test_set_is_not_known_is_set_apart(results):
    unclear = results[results["protocol"] == "unclear"]
    columns = ["work", "metric", "value", "source"]
    assert unclear[columns].to_numpy().tolist() == [["Gehlot et al. 2020", "weighted_f1", 0.948, "arXiv:2006.00304"]]
    assert set(results["protocol"]) == {"published_v1", "challenge", "unclear"}


def test_no_figure_of_a_random_split_is_among_them_and_each_is_there_once(results):
    assert results.loc[results["metric"] != "loss", "value"].max() <= 0.95
    assert not results.duplicated(["protocol", "scored_on", "work", "method", "metric"]).any()
    assert (results["source"] != "").all()


@pytest.mark.parametrize("name", ["c_nmc_2018", "C_NMC_2019", "c-nmc-2019", "c_nmc_2019.csv"])
def test_an_unknown_name_is_met_with_the_near_one(name):
    with pytest.raises(UnknownNameError, match=rf"{name!r}\. Did you mean 'c_nmc_2019'\? Known: c_nmc_2019\."):
        published_results(name)


@pytest.mark.parametrize("name", ["", "__init__", "../published/c_nmc_2019", None, 7])
def test_a_name_that_is_like_none_lists_what_is_known(name):
    with pytest.raises(UnknownNameError, match=r"no data set with published results .*Known: c_nmc_2019\."):
        published_results(name)


def test_each_call_returns_a_copy_of_its_own(results):
    untouched = results.copy()
    results.loc[:, "value"] = 1.0
    results.pop("note")
    assert published_results("c_nmc_2019").equals(untouched)
