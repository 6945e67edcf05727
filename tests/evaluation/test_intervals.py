import numpy as np
import pandas as pd
import pytest
import sklearn.metrics as sk
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from leukemia_dl.errors import DataError, SettingsError
from leukemia_dl.evaluation import METRICS, drop_repeated_cells, evaluate
from leukemia_dl.evaluation.intervals import Spread, resampling_of
from leukemia_dl.evaluation.metrics import values
from leukemia_dl.evaluation.predictions import models_of, validated_predictions
from predictions import clustered

SMALL = ((5, 9, 12, 30, 8, 20), (7, 3, 25, 11, 6))


def one(frame, metric, **settings):
    return evaluate(frame, metrics=metric, **settings).iloc[0]


def recalls(frame):
    right = frame["probability_all"].gt(0.5).eq(frame["label"].eq("all"))
    return {name: right[frame["label"] == name].mean() for name in ("hem", "all")}


def jackknife(frame, statistic):
    """Value, standard error and degrees of freedom, one group after the other left out, in plain Python."""
    variance, parts = 0.0, []
    for name in ("hem", "all"):
        own = frame[frame["label"] == name]
        sizes = own.groupby("group").size()
        without = [statistic(frame[frame["group"] != group]) for group in sizes.index]
        m = len(without)
        mean = sum(without) / m
        part = (m - 1) / m * sum((value - mean) ** 2 for value in without)
        variance += part
        parts.append((part, sum(sizes) ** 2 / sum(n * n for n in sizes) - 1))
    df = variance**2 / sum(part**2 / d for part, d in parts) if variance > 1e-20 else np.inf
    return statistic(frame), variance**0.5, df


def ends(value, error, df, tail):
    """Wilson's interval of as many independent images as have the error, as roots of its equation."""
    if not 0 < value < 1 or error < 1e-10:
        return value, value
    ratio = stats.t.ppf(1 - tail, df) ** 2 * error**2 / (value * (1 - value))
    return tuple(sorted(np.roots([1 + ratio, -(2 * value + ratio), value**2]).real))


def by_hand(frame, statistic, of_hits=True, level=0.95):
    """The whole interval: of some predictions with fewer errors too, and an unseen kind is allowed for."""
    value, error, df = jackknife(frame, statistic)
    alpha = 1 - level
    low, high = ends(value, error, df, alpha / 2)
    right = frame["probability_all"].gt(0.5).eq(frame["label"].eq("all"))
    groups = frame.groupby("group")
    order = pd.DataFrame({"share": -right.groupby(frame["group"]).mean(), "size": -groups.size()})
    order["class"] = groups["label"].first().eq("all")
    bad = list(order[order["share"] > -1].sort_values(["share", "size", "class"], kind="stable").index)
    for perfect in (
        [bad[: i + 1] for i in range(len(bad))] + [[g] for g in bad] + [[h for h in bad if h != g] for g in bad]
    ):
        if of_hits:
            corrected = frame["probability_all"].mask(frame["group"].isin(perfect), frame["label"].eq("all") * 1.0)
            low = min(low, ends(*jackknife(frame.assign(probability_all=corrected), statistic), alpha / 2)[0])
    unseen = value * (alpha / 2) ** (1 / frame["group"].nunique())
    if unseen < low:
        low, high = unseen, ends(value, error, df, alpha)[1]
    return value, low, high, error, df


@settings(max_examples=8, deadline=None)
@given(
    st.integers(0, 1000),
    st.lists(st.integers(4, 15), min_size=5, max_size=6),
    st.lists(st.integers(4, 15), min_size=5, max_size=6),
)
def test_intervals_equal_a_plain_version(seed, positives, negatives):
    frame = clustered((positives, negatives), ["one"], seed=seed)
    share = frame["label"].eq("all").mean()
    statistics = {
        # Class shares are held: accuracy is the recalls' mean at the shares of the whole data.
        "accuracy": lambda f: share * recalls(f)["all"] + (1 - share) * recalls(f)["hem"],
        "balanced_accuracy": lambda f: (recalls(f)["all"] + recalls(f)["hem"]) / 2,
        "auroc": lambda f: sk.roc_auc_score(f["label"] == "all", f["probability_all"]),
    }
    for name, statistic in statistics.items():
        value, low, high, error, df = by_hand(frame, statistic, name != "auroc")
        df = df if error > 1e-10 else np.nan
        row = one(frame, name)
        got = [row["value"], row["low"], row["high"], row["standard_error"], row["degrees_of_freedom"]]
        assert got == pytest.approx([value, low, high, error, df], rel=1e-9, abs=1e-12, nan_ok=True), name


def test_a_class_alone_takes_its_degrees_of_freedom_from_its_own_groups():
    frame = clustered(SMALL, ["one"])
    kish = {name: sum(sizes) ** 2 / sum(n * n for n in sizes) - 1 for name, sizes in zip("01", SMALL, strict=True)}
    assert one(frame, "sensitivity")["degrees_of_freedom"] == pytest.approx(kish["0"])
    assert one(frame, "specificity")["degrees_of_freedom"] == pytest.approx(kish["1"])


def test_without_subjects_accuracy_has_the_textbook_error_and_the_unit_says_so():
    frame = clustered(SMALL, ["one"]).drop(columns="group")
    row = one(frame, "sensitivity")
    n = sum(SMALL[0])
    assert row["standard_error"] == pytest.approx(np.sqrt(row["value"] * (1 - row["value"]) / (n - 1)))
    assert row["unit"] == "image"
    assert row["low"] < row["value"] < row["high"]
    assert row["estimand"] == "these fitted models on new images"
    assert pd.isna(row["groups"])


def test_images_as_independent_give_far_narrower_intervals():
    frame = clustered(backbones=["one"], correlation=0.3)
    grouped, images = one(frame, "accuracy"), one(frame.drop(columns="group"), "accuracy")
    assert grouped["high"] - grouped["low"] > 3 * (images["high"] - images["low"])


def test_subjects_serve_where_there_are_no_groups():
    frame = clustered(SMALL, ["one"])
    renamed = frame.rename(columns={"group": "subject"})
    pd.testing.assert_frame_equal(evaluate(frame), evaluate(renamed))


def test_fewer_than_five_groups_of_a_class_get_no_interval_and_the_reason():
    frame = clustered(((5, 9, 12, 30, 8), (7, 3, 25, 11)), ["one"])
    table = evaluate(frame).set_index("metric")
    assert table.loc["accuracy", "reason"] == "fewer than 5 groups: 4 of class hem (1 missing)"
    assert np.isnan(table.loc["accuracy", ["low", "high", "standard_error"]].astype(float)).all()
    assert not np.isnan(table.loc["accuracy", "value"])
    # Sensitivity depends on the other class alone.
    assert table.loc["sensitivity", "reason"] == ""
    assert table.loc["specificity", "reason"] == "fewer than 5 groups: 4 of class hem (1 missing)"


def test_a_constant_has_no_spread():
    frame = clustered(SMALL, ["one"])
    frame["probability_all"], frame["probability_hem"] = 0.7, 0.3
    for name, value in {"auroc": 0.5, "balanced_accuracy": 0.5, "sensitivity": 1.0, "specificity": 0.0}.items():
        row = one(frame, name)
        assert (row["low"], row["value"], row["high"], row["standard_error"]) == (value, value, value, 0.0), name


def test_seeds_are_averaged_before_groups_are_left_out():
    frame = clustered(SMALL, ["one"], seeds=(3, 7, 8))
    row = one(frame, "balanced_accuracy", estimand="models")
    parts = [one(frame[frame["seed"] == seed], "balanced_accuracy")["value"] for seed in (3, 7, 8)]
    assert row["value"] == pytest.approx(np.mean(parts))
    assert row["seed_sd"] == pytest.approx(np.std(parts, ddof=1))
    assert row["seeds"] == 3
    mean = jackknife(frame, lambda f: (recalls(f)["all"] + recalls(f)["hem"]) / 2)
    assert row["standard_error"] == pytest.approx(mean[1])
    assert row["images"] == sum(map(sum, SMALL))


def test_the_procedure_has_the_spread_between_seeds_on_top():
    frame = clustered(SMALL, ["one"], seeds=(0, 1, 2))
    models, procedure = one(frame, "loss", estimand="models"), one(frame, "loss")
    added = models["standard_error"] ** 2 + models["seed_sd"] ** 2 / 3
    assert procedure["standard_error"] == pytest.approx(added**0.5)
    parts = models["standard_error"] ** 4 / models["degrees_of_freedom"] + (models["seed_sd"] ** 2 / 3) ** 2 / 2
    assert procedure["degrees_of_freedom"] == pytest.approx(added**2 / parts)
    assert procedure["estimand"] == "the learning procedure: a mean over seeds, on new groups"
    alone = one(frame[frame["seed"] == 0], "loss", estimand="procedure")
    assert np.isnan(alone["low"])
    assert "one seed" in alone["reason"]


def test_folds_of_one_seed_are_one_set_of_predictions():
    frame = clustered(SMALL, ["one"])
    folded = frame.assign(fold=pd.factorize(frame["group"])[0] % 3)
    # Folds share training images: Nadeau and Bengio's factor for three of them.
    errors = [one(part, "accuracy")["standard_error"] for part in (folded, frame)]
    assert errors[0] ** 2 == pytest.approx(errors[1] ** 2 * (1 + 3 / 2))
    assert one(folded, "auroc")["value"] != one(frame, "auroc")["value"]


def test_a_group_of_several_classes_is_of_the_stratum_of_most_of_its_images():
    frame = clustered(SMALL, ["one"])
    frame["group"] = np.random.default_rng(0).integers(0, 12, len(frame))
    (model,) = models_of(validated_predictions(frame))
    resampling = resampling_of([model])
    most = frame.groupby("group")["label"].agg(lambda labels: labels.eq("all").mean() > 0.5)
    assert resampling.stratum.tolist() == most[[int(name) for name in model.units]].astype(int).tolist()
    assert resampling.groups_per_class == (12, 12)
    # Of one class all groups that have it are one stratum.
    right = frame["probability_all"].gt(0.5).eq(frame["label"].eq("all"))
    own = frame["label"].eq("all")
    sizes = frame[own].groupby("group").size().to_numpy()
    row = one(frame, "sensitivity")
    assert row["value"] == pytest.approx(right[own].mean())
    assert row["degrees_of_freedom"] == pytest.approx(sizes.sum() ** 2 / (sizes**2).sum() - 1)


def test_very_many_images_are_left_out_in_blocks_and_tell_the_same():
    frame = clustered(((3000,), (2000,)), ["one"], correlation=0.0).drop(columns="group")
    (model,) = models_of(validated_predictions(frame))
    assert len(resampling_of([model]).stratum) == 400
    row = one(frame, "accuracy")
    textbook = np.sqrt(row["value"] * (1 - row["value"]) / 5000)
    assert row["standard_error"] == pytest.approx(textbook, rel=0.1)
    shuffled = frame.sample(frac=1, random_state=1)
    assert one(shuffled, "accuracy")["standard_error"] == pytest.approx(row["standard_error"])


def test_leaving_out_holds_the_class_shares():
    (model,) = models_of(validated_predictions(clustered(SMALL, ["one"])))
    resampling = resampling_of([model])
    found = values(model.runs[0], resampling.weights[1:], ["prevalence"])["prevalence"]
    assert found == pytest.approx(np.full(11, sum(SMALL[0]) / sum(map(sum, SMALL))))
    assert ((resampling.weights[1:] == 0).sum(axis=1) == 1).all()


def test_a_higher_level_is_wider_and_every_interval_holds_its_value():
    frame = clustered(SMALL, ["one"])
    narrow, wide = (evaluate(frame, level=level) for level in (0.8, 0.99))
    given = narrow["low"].notna()
    assert set(narrow["metric"][~given]) == {"prevalence", "ece"}
    assert (wide["low"][given] < narrow["low"][given]).all()
    assert (narrow["low"][given] < narrow["value"][given]).all()
    assert (narrow["value"][given] < narrow["high"][given]).all()
    assert tuple(narrow["metric"]) == METRICS


def test_the_order_of_rows_does_not_matter():
    frame = clustered(SMALL, ["one", "other"], seeds=(0, 1))
    shuffled = frame.sample(frac=1, random_state=0)
    one_way = evaluate(frame).sort_values(["backbone", "metric"], ignore_index=True)
    other_way = evaluate(shuffled).sort_values(["backbone", "metric"], ignore_index=True)
    for column in ("value", "low", "high", "standard_error"):
        np.testing.assert_allclose(one_way[column], other_way[column], rtol=1e-6)


def test_quartiles_of_a_measure_are_evaluated_by_themselves():
    frame = clustered(SMALL, ["one", "other"])
    areas = pd.Series(np.random.default_rng(0).normal(30_000, 8_000, len(frame)), index=frame["sample"])
    areas = areas[~areas.index.duplicated()]
    frame["cell_area"] = frame["sample"].map(areas)
    table = evaluate(frame, metrics="accuracy", by="cell_area")
    assert list(table.columns[:3]) == ["cell_area", "backbone", "metric"]
    assert len(table) == 8
    edges = np.quantile(areas, [0, 0.25, 0.5, 0.75, 1])
    first = frame[(frame["backbone"] == "one") & (frame["cell_area"] <= edges[1])]
    right = first["probability_all"].gt(0.5).eq(first["label"].eq("all"))
    assert table["value"].iloc[0] == pytest.approx(right.mean())
    assert table["images"].iloc[:2].tolist() == [len(first)] * 2
    # Quartiles of images: a backbone with more seeds, on large cells only, does not move them.
    large = frame[(frame["backbone"] == "other") & (frame["cell_area"] > edges[3])]
    more = pd.concat([frame.assign(seed=0), *(large.assign(backbone="third", seed=seed) for seed in range(5))])
    assert set(table["cell_area"]) == set(evaluate(more, metrics="accuracy", by="cell_area")["cell_area"])
    named = evaluate(
        frame.assign(stain=np.where(frame["cell_area"] > edges[2], "b", "a")), metrics="accuracy", by="stain"
    )
    assert list(named["stain"]) == ["a", "a", "b", "b"]


def test_repeated_cells_count_once_if_asked():
    frame = clustered(SMALL, ["one"], seeds=(0, 1))
    frame["same_cell"] = frame["sample"].map({"s0": "x", "s1": "x", "s7": "y", "s9": "y", "s11": "y"})
    once = drop_repeated_cells(frame)
    assert len(once) == len(frame) - 6
    assert not once["sample"].isin(["s1", "s9", "s11"]).any()
    assert one(frame, "accuracy", unique_cells=True)["images"] == sum(map(sum, SMALL)) - 3
    with pytest.raises(DataError, match="need a column same_cell"):
        drop_repeated_cells(frame.drop(columns="same_cell"))


def test_repeated_cells_count_once_in_each_repeat():
    """Mutant 14: another draw of the folds predicts every cell again, and both count."""
    frame = clustered(SMALL, backbones=("net",))
    frame["same_cell"] = frame["sample"].map({"s0": "x", "s1": "x"})
    twice = pd.concat([frame.assign(repeat=0), frame.assign(repeat=1)])
    once = drop_repeated_cells(twice)
    assert once.groupby("repeat")["sample"].count().tolist() == [len(frame) - 1] * 2
    assert one(twice, "accuracy", unique_cells=True)["seeds"] == 2


def test_of_two_classes_both_are_needed_where_a_metric_weighs_them():
    """20.3: with no image of a class, balanced accuracy is the recall of the other and gets no interval."""
    frame = clustered(SMALL, ["one"])
    table = evaluate(frame[frame["label"] == "all"]).set_index("metric")
    for name in ("balanced_accuracy", "balanced_loss", "macro_f1", "weighted_f1"):
        assert table.loc[name, "reason"] == "fewer than 5 groups: 0 of class hem (5 missing)"
        assert np.isnan(table.loc[name, "low"])
    assert np.isfinite(table.loc["sensitivity", "low"])


def test_a_part_with_one_class_only_gets_an_interval_of_that_class():
    frame = clustered(SMALL, ["one"])
    table = evaluate(frame, metrics=["accuracy", "auroc"], by="label").set_index(["label", "metric"])
    assert table.loc[("all", "accuracy"), "standard_error"] == pytest.approx(
        one(frame, "sensitivity")["standard_error"]
    )
    assert table.loc[("hem", "auroc"), "reason"] == "no image of class all"


def test_seeds_that_have_predicted_different_images_are_noted():
    frame = clustered(SMALL, ["one"], seeds=(0, 1))
    short = frame[~((frame["seed"] == 1) & frame["sample"].isin(["s1", "s2"]))]
    assert one(short, "accuracy")["reason"] == "the seeds have predicted different images: 136, 134"
    assert one(short, "accuracy")["images"] == 136
    assert one(frame, "accuracy")["reason"] == ""


def test_a_baseline_has_no_seeds_to_spread():
    frame = clustered(SMALL, ["one"]).assign(kind="baseline", seed=pd.NA)
    models, procedure = one(frame, "accuracy"), one(frame, "accuracy", estimand="procedure")
    assert procedure["low"] == models["low"]


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"metrics": "acc"}, r"metric must be one of.*'acc'"),
        ({"level": 95}, "level must be a number"),
        ({"level": 0.2}, "level must be a number"),
        ({"estimand": "truth"}, "'models', 'procedure'"),
        ({"by": "area"}, "no column 'area'"),
    ],
)
def test_settings_out_of_range_are_refused(settings, says):
    with pytest.raises(SettingsError, match=says):
        evaluate(clustered(SMALL, ["one"]), **settings)


def test_a_column_of_the_result_is_none_to_split_by():
    with pytest.raises(SettingsError, match="column 'value' of its own"):
        evaluate(clustered(SMALL, ["one"]).assign(value=1), by="value")


def test_spreads_add_by_satterthwaite():
    total = Spread(2.0, 5.0) + Spread(1.0, 3.0)
    assert total.variance == 3.0
    assert total.df == pytest.approx(9 / (4 / 5 + 1 / 3))
    assert (Spread(0.0, np.inf) + Spread(1.0, 3.0)).df == pytest.approx(3.0)
