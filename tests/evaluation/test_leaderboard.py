import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import log_loss, roc_auc_score

from leukemia_dl.errors import DataError, SettingsError
from leukemia_dl.evaluation import compare, evaluate, leaderboard

HEM, ALL = "probability_hem", "probability_all"
BEST = "best of {} on this side: its value is optimistic"
FEW = "fewer than 5 groups: 4 of class hem (1 missing), 4 of class all (1 missing)"
AGAINST = f"not testable against the others, {FEW}"
COLUMNS = ["rank", "rank_high", "backbone", "kind", "accuracy", "low", "high", "unit", "better_than", "trials"]
COLUMNS += [
    "seeds",
    "images",
    "groups",
    "parameters",
    "fit_seconds",
    "images_per_second",
    "changes",
    "estimand",
    "flags",
]


def rows_of(backbone, skill, random=0, folds=(0,), seeds=(0,), kind="backbone"):
    """Test predictions of 96 images in 12 groups, six of each class; every third group is of one fold."""
    parts = []
    labels, groups = np.repeat(np.arange(12) % 2, 8), np.repeat(np.arange(12), 8)
    for seed in seeds:
        noise = np.random.default_rng([random, seed or 0]).normal(0, 1, 96)
        positive = 1 / (1 + np.exp(-(skill * (2 * labels - 1) + noise)))
        part = pd.DataFrame({"backbone": backbone, "kind": kind, "seed": seed, "fold": groups % 3, "side": "test"})
        part = part.assign(sample=[f"s{i}" for i in range(96)], group=groups, label=np.array(["hem", "all"])[labels])
        parts.append(part.assign(**{HEM: 1 - positive, ALL: positive}))
    rows = pd.concat(parts, ignore_index=True)
    return rows if folds == (0,) else rows[rows["fold"].isin(folds)]


def joined(*parts):
    return pd.concat(parts, ignore_index=True)


def value_by_hand(rows, metric):
    """The mean over seeds, by scikit-learn; AUROC is the mean over folds, weighted by pairs."""
    found = []
    for _, part in rows.groupby("seed", dropna=False):
        truth = (part["label"] == "all").to_numpy()
        if metric == "accuracy":
            found.append(((part[ALL] > part[HEM]).to_numpy() == truth).mean())
        elif metric == "loss":
            found.append(log_loss(truth, part[ALL]))
        else:
            folds = [fold for _, fold in part.groupby("fold")]
            pairs = [(fold["label"] == "all").sum() * (fold["label"] == "hem").sum() for fold in folds]
            areas = [roc_auc_score(fold["label"] == "all", fold[ALL]) for fold in folds]
            found.append(np.average(areas, weights=pairs))
    return np.mean(found)


def better_by_hand(frame, metric, level):
    """Pairs (better, worse) of `compare`: after Holm's correction where there is one."""
    found = set()
    for row in compare(frame, metric, level=level).to_dict("records"):
        p = row["p"] if np.isnan(row["p_holm"]) else row["p_holm"]
        if p <= 1 - level:
            first_is_better = (row["difference"] > 0) != (metric == "loss")
            found.add((row["first"], row["second"]) if first_is_better else (row["second"], row["first"]))
    return found


@settings(max_examples=25)
@given(
    st.lists(st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.5]), min_size=2, max_size=4),
    st.integers(0, 1000),
    st.sampled_from(["accuracy", "loss", "auroc"]),
    st.sampled_from([0.5, 0.95]),
    st.sampled_from([(0,), (0, 1)]),
)
def test_order_ranks_and_better_than_follow_from_values_and_comparisons(skills, random, metric, level, seeds):
    nets = [rows_of(f"n{i}", skill, random + i, seeds=seeds) for i, skill in enumerate(skills)]
    frame = joined(nets.pop().assign(kind="baseline", backbone="floor"), *nets)
    board, better = leaderboard(frame, metric, level=level), better_by_hand(frame, metric, level)
    by_hand = {name: value_by_hand(rows, metric) for name, rows in frame.groupby("backbone")}
    order = sorted(by_hand, key=lambda name: by_hand[name], reverse=metric != "loss")
    assert board["backbone"].tolist() == order
    assert board[metric].tolist() == pytest.approx([by_hand[name] for name in order])
    for row in board.to_dict("records"):
        name = row["backbone"]
        wins = {worse for winner, worse in better if winner == name}
        assert set(filter(None, row["better_than"].split(", "))) == wins
        assert pd.isna(row["rank"]) == (name == "floor")
        assert row["kind"] == ("baseline" if name == "floor" else "backbone")
        assert (row["trials"], row["seeds"]) == (3 * len(seeds), len(seeds))
        assert (row["images"], row["groups"]) == (96, 12)
    ranked = [name for name in order if name != "floor"]
    lowest = [1 + sum((other, name) in better for other in ranked) for name in ranked]
    highest = [len(ranked) - sum((name, other) in better for other in ranked) for name in ranked]
    # A lower value never has a better rank.
    assert board["rank"].dropna().tolist() == [min(lowest[place:]) for place in range(len(ranked))]
    assert board["rank_high"].dropna().tolist() == [max(highest[: place + 1]) for place in range(len(ranked))]


def test_what_cannot_be_told_apart_shares_a_rank_and_the_next_one_is_skipped():
    twin = rows_of("twin", 0.6, 2)
    frame = joined(rows_of("weak", 0.0, 3), twin, twin.assign(backbone="other"), rows_of("strong", 3.0, 1))
    board = leaderboard(frame.assign(fold=0))
    assert list(board) == COLUMNS
    ranks = [[1, 1, "strong"], [2, 3, "twin"], [2, 3, "other"], [4, 4, "weak"]]
    assert board[["rank", "rank_high", "backbone"]].to_numpy().tolist() == ranks
    assert board["better_than"].tolist() == ["weak, twin, other", "weak", "weak", ""]
    assert board["flags"].tolist() == [BEST.format(4), "", "", ""]
    assert board["rank"].dtype == "Int64"


def test_less_loss_is_better_and_may_turn_the_order_of_accuracy_round():
    bold = rows_of("bold", 1.0, 5)
    right = (bold[ALL] > 0.5) == (bold["label"] == "all")
    timid = bold.assign(backbone="timid", **{ALL: 0.5 + (bold[ALL] - 0.5) / 50})
    timid.loc[right & (bold.index % 8 == 0), ALL] = 0.5 - (timid[ALL] - 0.5) / 50
    frame = joined(*(part.assign(**{HEM: 1 - part[ALL]}) for part in (timid, bold.assign(**{ALL: bold[ALL].round()}))))
    assert leaderboard(frame)["backbone"].tolist() == ["bold", "timid"]
    by_loss = leaderboard(frame, "loss")
    assert by_loss["backbone"].tolist() == ["timid", "bold"]
    assert by_loss["loss"].is_monotonic_increasing
    assert by_loss["better_than"].tolist() == ["bold", ""]
    assert by_loss["rank"].tolist() == [1, 2]
    assert by_loss["flags"].tolist() == [BEST.format(2), ""]


def test_a_baseline_takes_no_rank_and_moves_none():
    nets = joined(rows_of("a", 0.9, 1), rows_of("b", 0.0, 2))
    floor = rows_of("size", 4.0, 3, kind="baseline", seeds=(None,))
    board = leaderboard(joined(floor, nets)).set_index("backbone")
    assert board.index.tolist() == ["size", "a", "b"]
    assert board["rank"].tolist() == [pd.NA, 1, 2]
    assert board["kind"].tolist() == ["baseline", "backbone", "backbone"]
    assert board["better_than"].tolist() == ["a, b", "b", ""]
    assert board["flags"].tolist() == ["", BEST.format(2), ""]
    assert board.loc[["a", "b"], "rank"].tolist() == leaderboard(nets)["rank"].tolist()


def test_an_incomplete_grid_is_flagged():
    folds = joined(rows_of("whole", 2.0), rows_of("part", 0.5, 1, folds=(0, 2)), rows_of("floor", 0.2, kind="baseline"))
    board = leaderboard(folds).set_index("backbone")
    assert board["flags"].to_dict() == {
        "whole": f"{AGAINST}; 32 images are left out that not all runs have",
        "part": f"{FEW}; 64 of 96 images; incomplete: 2 of 3 trials",
        "floor": "",
    }
    assert board["rank"].isna().all()
    assert board["trials"].to_dict() == {"whole": 3, "part": 2, "floor": 3}
    seeds = joined(rows_of("whole", 2.0, seeds=(0, 1)), rows_of("part", 0.5, 1), rows_of("floor", 0.2, kind="baseline"))
    board = leaderboard(seeds).set_index("backbone")
    assert board.loc["part", ["flags", "trials", "seeds"]].tolist() == ["incomplete: 3 of 6 trials", 3, 1]
    assert board.loc["whole", ["flags", "trials", "seeds"]].tolist() == [BEST.format(2), 6, 2]
    assert board.loc["floor", "flags"] == ""


def test_failed_trials_are_counted_beside_the_other_flags():
    frame = joined(rows_of("a", 2.0), rows_of("b", 0.5, 1, folds=(0, 1)), rows_of("c", 0.0, 2))
    states = {"a": ["ok"] * 3 + ["failed"] * 2, "b": ["ok", "ok", "failed"], "c": ["ok", "not_applicable", "ok"]}
    rows = [{"backbone": name, "status": status} for name, several in states.items() for status in several]
    board = leaderboard(frame, results=pd.DataFrame(rows)).set_index("backbone")
    assert board["flags"].to_dict() == {
        "a": f"2 failed; {BEST.format(2)}",
        "b": f"{FEW}; 64 of 96 images; incomplete: 2 of 3 trials; 1 failed",
        "c": "",
    }
    assert board["rank"].fillna(0).to_dict() == {"a": 1, "b": 0, "c": 2}


def test_costs_are_taken_from_results_and_timings():
    frame = joined(rows_of("a", 2.0), rows_of("b", 0.5, 1), rows_of("floor", 0.0, 2, kind="baseline"))
    results = pd.DataFrame(
        {"backbone": ["a", "a", "b", "floor"], "status": "ok", "parameters": [7, 7, 2**40 + 1, None]}
    )
    timings = pd.DataFrame({"backbone": ["a", "a", "a", "floor"], "fit_seconds": [1.0, 2.0, 6.0, 0.5]})
    timings["predict_images_per_second"] = [100.0, 10.0, 40.0, np.nan]
    costs = ["parameters", "fit_seconds", "images_per_second"]
    board = leaderboard(frame, results=results.astype({"parameters": "Int64"}), timings=timings).set_index("backbone")
    assert board["parameters"].dtype == "Int64"
    assert board["parameters"].fillna(-1).to_dict() == {"a": 7, "b": 2**40 + 1, "floor": -1}
    assert board["fit_seconds"].tolist() == pytest.approx([3.0, np.nan, 0.5], nan_ok=True)
    assert board["images_per_second"].tolist() == pytest.approx([40.0, np.nan, np.nan], nan_ok=True)
    for nothing in ({}, {"results": results.iloc[:0], "timings": timings.iloc[:0]}, {"results": pd.DataFrame()}):
        assert leaderboard(frame, **nothing)[costs].isna().all(axis=None)


def test_one_backbone_alone_is_first_and_best_of_nothing():
    alone = leaderboard(rows_of("a", 1.0).drop(columns=["backbone", "kind", "seed", "fold", "side"]))
    shown = ["rank", "backbone", "better_than", "flags"]
    assert alone[shown].to_numpy().tolist() == [[1, "model", "", ""]]
    assert alone[["kind", "trials"]].to_numpy().tolist() == [["backbone", 1]]
    with_floor = leaderboard(joined(rows_of("a", 2.0), rows_of("floor", 0.0, 1, kind="baseline")))
    assert with_floor[shown].to_numpy().tolist() == [[1, "a", "floor", ""], [pd.NA, "floor", "", ""]]


@pytest.mark.parametrize("estimand", ["models", "procedure"])
def test_values_and_intervals_are_those_of_evaluate(estimand):
    frame = joined(rows_of("a", 1.0, seeds=(0, 1)), rows_of("b", 0.5, 1))
    frame = joined(frame, frame.assign(side="val", **{HEM: 0.5, ALL: 0.5}))
    asked = {"level": 0.9, "estimand": estimand}
    expected = evaluate(frame, metrics="auroc", **asked).rename(columns={"value": "auroc"})
    board = leaderboard(frame, "auroc", **asked)
    shown = ["backbone", "auroc", "low", "high", "seeds", "images", "groups", "estimand"]
    pd.testing.assert_frame_equal(board[shown], expected[shown])
    assert board["low"].isna().tolist() == [False, estimand == "procedure"]
    assert leaderboard(frame, "auroc", side="val")["auroc"].tolist() == [0.5, 0.5]
    one_seed = "one seed: nothing is known of the spread between seeds"
    incomplete = "incomplete: 3 of 6 trials"
    assert board["flags"][1] == (incomplete if estimand == "models" else f"{one_seed}; {incomplete}")


def test_without_subjects_the_unit_says_that_intervals_are_of_images():
    frame = joined(rows_of("a", 2.0), rows_of("b", 0.0, 1)).drop(columns="group")
    board = leaderboard(frame)
    assert list(board) == COLUMNS
    assert set(board["unit"]) == {"image"}
    assert board["groups"].isna().all()
    assert (board["low"] < board["accuracy"]).all()
    assert board["better_than"].tolist() == ["b", ""]


def test_what_cannot_be_shown_is_refused():
    with pytest.raises(SettingsError, match=r"metric must be one of.*'accuraccy'"):
        leaderboard(rows_of("a", 1.0), "accuraccy")
    with pytest.raises(DataError, match="no predictions of the side 'val'"):
        leaderboard(rows_of("a", 1.0), side="val")
    with pytest.raises(DataError, match="column label"):
        leaderboard(rows_of("a", 1.0).drop(columns="label"))


def test_backbones_that_have_finished_other_folds_are_flagged_and_not_refused():
    board = leaderboard(joined(rows_of("a", 1.0, folds=(0, 1)), rows_of("b", 0.5, 1, folds=(2,)))).set_index("backbone")
    assert board["rank"].isna().all()
    assert board.loc["a", "flags"] == f"{FEW}; incomplete: 2 of 3 trials"
    assert board.loc["b", "flags"].endswith("32 of 64 images; incomplete: 1 of 3 trials")


def test_without_samples_nothing_is_compared():
    board = leaderboard(joined(rows_of("a", 3.0), rows_of("b", 0.0, 1)).drop(columns="sample"))
    assert board["rank"].isna().all()
    assert board[["backbone", "better_than"]].to_numpy().tolist() == [["a", ""], ["b", ""]]
    assert board["flags"].tolist() == ["not compared: there is no column sample"] * 2


def test_backbones_may_be_named_by_numbers():
    board = leaderboard(joined(rows_of(18, 1.0), rows_of(50, 0.0, 1)))
    assert board["trials"].tolist() == [3, 3]


@pytest.mark.parametrize("metric", ["calibration_slope", "calibration_intercept", "prevalence"])
def test_where_nothing_is_better_or_worse_there_are_no_ranks(metric):
    board = leaderboard(joined(rows_of("a", 1.0), rows_of("b", 0.5, 1)), metric)
    assert board["rank"].isna().all()
    assert board["better_than"].tolist() == ["", ""]
    assert not board["flags"].str.contains("best of").any()


def test_an_undefined_value_has_no_rank_and_is_not_optimistic():
    frame = joined(rows_of("a", 1.0), rows_of("b", 0.5, 1)).assign(probability_third=0.0)
    board = leaderboard(frame, "sensitivity")
    assert board["rank"].isna().all()
    assert set(board["flags"]) == {"defined for two classes; with more see balanced_accuracy, macro_f1 and ece"}


def test_where_nothing_can_be_tested_there_is_no_rank_and_the_reason_comes_first():
    """20.3: fewer than five groups of a class give no rank and no `better_than`, however far apart the values are."""
    few = joined(rows_of("a", 3.0, folds=(0, 1)), rows_of("b", -3.0, 1, folds=(0, 1)))
    floor = rows_of("floor", 0.0, 2, folds=(0, 1), kind="baseline", seeds=(None,))
    board = leaderboard(joined(few, floor))
    assert board["accuracy"].tolist() == sorted(board["accuracy"], reverse=True)
    assert board["rank"].isna().all()
    assert board["better_than"].tolist() == ["", "", ""]
    assert board["flags"].tolist() == [FEW] * 3
    alone = leaderboard(rows_of("a", 3.0, folds=(0, 1)))
    assert alone[["rank", "flags"]].to_numpy().tolist() == [[pd.NA, FEW]]


def with_right(backbone, counts):
    """Predictions with so many right of the eight images of each group."""
    rows = rows_of(backbone, 0.0).assign(fold=0)
    right = rows.groupby("group").cumcount() < rows["group"].map(dict(enumerate(counts)))
    positive = np.where((rows["label"] == "all") == right, 0.9, 0.1)
    return rows.assign(**{HEM: 1 - positive, ALL: positive})


def test_no_lower_value_has_a_better_rank():
    """The best is better than the second, which is wrong once nearly everywhere, but not than an uncertain third."""
    best, often = with_right("best", [8] * 12), with_right("often", [7] * 10 + [8] * 2)
    board = leaderboard(joined(best, often, with_right("seldom", [0, 4] + [8] * 10)))
    assert board["better_than"].tolist() == ["often", "", ""]
    assert board[["backbone", "rank"]].to_numpy().tolist() == [["best", 1], ["often", 1], ["seldom", 1]]
    worst, often = with_right("worst", [4] * 12), with_right("often", [5] * 10 + [4] * 2)
    board = leaderboard(joined(worst, often, with_right("seldom", [8] * 3 + [4] * 9)))
    assert board["better_than"].tolist() == ["", "worst", ""]
    assert board[["backbone", "rank_high"]].to_numpy().tolist() == [["seldom", 3], ["often", 3], ["worst", 3]]


def test_a_difference_that_is_not_significant_after_holms_correction_is_no_better_place():
    frame = joined(with_right("a", [8] * 12), *(with_right(name, [5, 6, 7, 6, 7, 7] + [8] * 6) for name in "bc"))
    pair = compare(frame).iloc[0]
    assert pair["p"] < 0.05 < pair["p_holm"]
    board = leaderboard(frame)
    assert board["better_than"].tolist() == ["", "", ""]
    assert board[["rank", "rank_high"]].to_numpy().tolist() == [[1, 3]] * 3
