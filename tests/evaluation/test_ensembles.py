"""Averaged predictions: means over the nets that predict an image, joined to a frame like one more backbone."""

import numpy as np
import pandas as pd
import pytest

import leukemia_dl as ldl
from leukemia_dl import evaluation
from leukemia_dl.errors import DataError
from predictions import clustered

SIZES = ((5, 9, 12, 30, 8, 20), (7, 3, 25, 11, 6, 9))
COLUMNS = ["probability_hem", "probability_all"]


def frame(seeds=(0, 1, 2)):
    table = clustered(SIZES, ["cnn", "vgg16"], seeds).assign(kind="backbone", side="test", protocol="kfold")
    return table.assign(fold=table["group"].str[1:].astype(int) % 3)


def test_an_image_gets_the_mean_of_the_nets_that_predict_it():
    nets = frame()
    found = evaluation.ensembles(nets)
    names = ["cnn (mean of 3 nets)", "vgg16 (mean of 3 nets)", "all (mean of 6 nets)"]
    assert list(found["backbone"].unique()) == names
    assert set(found["kind"]) == {"ensemble"}
    averaged = [nets[nets["backbone"] == "cnn"], nets[nets["backbone"] == "vgg16"], nets]
    for name, rows in zip(names, averaged, strict=True):
        mean = rows.groupby("sample")[COLUMNS].mean()
        own = found[found["backbone"] == name].set_index("sample")
        np.testing.assert_allclose(own.loc[mean.index, COLUMNS], mean, atol=1e-12)
        facts = rows.groupby("sample")[["label", "group", "fold"]].first()
        pd.testing.assert_frame_equal(own.loc[facts.index, ["label", "group", "fold"]], facts, check_dtype=False)


def test_joined_to_the_frame_it_has_rows_and_no_rank():
    nets = frame()
    joined = pd.concat([nets, evaluation.ensembles(nets)], ignore_index=True)
    board = ldl.leaderboard(joined, "auroc").set_index("backbone")
    assert board.loc["all (mean of 6 nets)", "kind"] == "ensemble"
    assert board["rank"].notna().sum() == 2
    averaged = evaluation.ensembles(nets).query("backbone == 'all (mean of 6 nets)'")
    (expected,) = ldl.evaluate(averaged, metrics="auroc")["value"]
    assert board.loc["all (mean of 6 nets)", "auroc"] == pytest.approx(expected)
    pairs = ldl.compare(joined, "auroc")
    assert (pairs["role"] == "confirmatory").sum() == 1


def test_folds_are_averaged_only_for_images_from_elsewhere():
    nets = frame(seeds=(0,))
    assert len(evaluation.ensembles(nets[nets["backbone"] == "cnn"])) == 0
    both = [nets.assign(fold=fold, repeat=fold, test_dataset="other") for fold in (0, 1)]
    both[1][COLUMNS] = both[1][COLUMNS[::-1]].to_numpy()
    found = evaluation.ensembles(pd.concat(both))
    assert found["backbone"].str.contains("mean of 2 nets").any()
    np.testing.assert_allclose(found[COLUMNS], 0.5)
    assert not found.duplicated(["backbone", "sample"]).any()


def test_each_repeat_has_its_own_mean():
    """Folds go on from one repeat to the next, so every image is in two of them."""
    nets = pd.concat([frame().assign(repeat=0), frame().assign(repeat=1, fold=lambda rows: rows["fold"] + 3)])
    found = evaluation.ensembles(nets)
    assert found["backbone"].str.contains(r"mean of [36] nets").all()
    board = ldl.leaderboard(pd.concat([nets, found], ignore_index=True), "auroc")
    assert set(board["kind"]) == {"backbone", "ensemble"}


def test_baselines_are_no_part_of_it_and_names_are_needed():
    nets = frame()
    floor = nets[nets["backbone"] == "cnn"].assign(backbone="cell_size", kind="baseline", seed=np.nan)
    pd.testing.assert_frame_equal(evaluation.ensembles(pd.concat([nets, floor])), evaluation.ensembles(nets))
    with pytest.raises(DataError, match="need a column sample"):
        evaluation.ensembles(nets.drop(columns="sample"))


def test_joined_to_the_frame_it_changes_no_other_row():
    nets = frame()
    joined = pd.concat([nets, evaluation.ensembles(nets)], ignore_index=True)
    own, both = ldl.evaluate(nets), ldl.evaluate(joined)
    pd.testing.assert_frame_equal(both[both["backbone"].isin(["cnn", "vgg16"])].reset_index(drop=True), own)
    means = both[both["backbone"].str.contains("mean of")]
    assert own["estimand"].str.contains("procedure").all()
    assert means["estimand"].str.contains("models").all()
    assert means.loc[means["metric"] == "accuracy", "low"].notna().all()
    pairs, all_pairs = ldl.compare(nets), ldl.compare(joined)
    confirmatory = all_pairs[all_pairs["role"] == "confirmatory"].reset_index(drop=True)
    pd.testing.assert_frame_equal(confirmatory, pairs)
    assert all_pairs["p"].notna().all()
