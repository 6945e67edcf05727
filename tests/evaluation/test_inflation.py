"""What a leaky protocol adds: against `compare` on a frame renamed by hand, and against a difference that is known."""

import numpy as np
import pandas as pd
import pytest

import leukemia_dl as ldl
from leukemia_dl import evaluation
from leukemia_dl.errors import DataError, SettingsError, UnknownNameError
from leukemia_dl.evaluation import compare, evaluate, inflation
from predictions import clustered

SMALL = ((5, 9, 12, 30, 8, 20), (7, 3, 25, 11, 6))


def frames(backbones=("vgg16", "cnn"), seeds=(0, 1)):
    """Predictions under two protocols: by folds of all images, and on one side of about half of them, with a floor."""
    honest = clustered(SMALL, backbones, seeds).assign(protocol="kfold", kind="backbone")
    honest["fold"] = honest["group"].str[1:].astype(int) % 3
    leaky = clustered(SMALL, backbones, seeds, distance=3.0, seed=1).assign(protocol="random", kind="backbone")
    leaky = leaky.assign(fold=np.nan)[leaky["sample"].str[1:].astype(int) % 2 == 0]
    floors = [
        clustered(SMALL, ["cell_size"], seed=5).assign(kind="baseline", seed=np.nan, protocol=protocol, fold=np.nan)
        for protocol in ("kfold", "random")
    ]
    return pd.concat([honest, leaky, *floors], ignore_index=True)


def test_it_is_compare_on_a_frame_that_is_renamed_by_hand():
    frame = frames()
    for metric in ("accuracy", "auroc", "loss"):
        table = inflation(frame, "kfold", "random", metric).set_index("backbone")
        assert list(table.index) == ["vgg16", "cnn", "cell_size"]
        assert list(table["kind"]) == ["backbone", "backbone", "baseline"]
        for name, row in table.iterrows():
            mine = frame[frame["backbone"] == name]
            renamed = mine.assign(backbone=mine["protocol"].map({"kfold": "second", "random": "first"}))
            (expected,) = compare(renamed.drop(columns="protocol"), metric, backbones=["first", "second"]).to_dict(
                "records"
            )
            assert (row["honest"], row["leaky"], row["metric"]) == ("kfold", "random", metric)
            assert row["value_leaky"] == expected["value_first"]
            assert row["value_honest"] == expected["value_second"]
            for column in ("difference", "low", "high", "p", "images", "groups", "reason"):
                assert row[column] == expected[column], column
            assert row["difference"] == row["value_leaky"] - row["value_honest"]
            assert row["low"] < row["difference"] < row["high"] or name == "cell_size"
            assert row["images"] == (68 if name != "cell_size" else 136)
    floor = table.loc["cell_size"]
    assert (floor["difference"], floor["low"], floor["high"], floor["p"]) == (0, 0, 0, 1)


def test_a_difference_that_is_known():
    """Right in every image by leaking; honestly wrong in a known share of each group."""
    frame = clustered(SMALL, ["cnn"], distance=0.0).assign(protocol="random")
    truth = frame["label"] == "all"
    number = frame.groupby("group").cumcount()
    honest = frame.assign(protocol="official_clean")
    for part, wrong in ((frame, number < 0), (honest, number < 2)):
        part["probability_all"] = np.where(truth ^ wrong, 0.9, 0.1)
        part["probability_hem"] = 1 - part["probability_all"]
    (row,) = inflation(pd.concat([honest, frame]), "official_clean", "random").to_dict("records")
    assert (row["value_leaky"], row["value_honest"]) == (1.0, pytest.approx(1 - 22 / 136))
    assert row["difference"] == pytest.approx(22 / 136)
    # The jackknife by its definition, class by class: two wrong of each group, the class's images as many as before.
    sizes = {label: np.array(s, float) for label, s in zip(("all", "hem"), SMALL, strict=True)}
    variance = 0.0
    for s in sizes.values():
        others = sum(2 * len(o) for o in sizes.values() if o is not s)
        left_out = [(2 * (len(s) - 1) * s.sum() / (s.sum() - size) + others) / 136 for size in s]
        variance += (len(s) - 1) * np.var(left_out)
    (compared,) = compare(pd.concat([frame.assign(backbone="leaky"), honest]).drop(columns="protocol")).to_dict(
        "records"
    )
    assert compared["standard_error"] == pytest.approx(variance**0.5)
    assert (row["low"], row["high"]) == (compared["low"], compared["high"])
    assert row["low"] < 22 / 136 < row["high"]
    assert row["sentence"] == (
        "On 136 images of 11 groups of patients, accuracy is 1.000 for cnn [random] and 0.838 for "
        f"cnn [official_clean]: a difference of +0.162 (95% interval of this pair alone {row['low']:+.3f} to "
        f"{row['high']:+.3f}; p {'= ' + format(row['p'], '.3f') if row['p'] >= 0.001 else '< 0.001'} by the "
        "jackknife over groups), without correction for multiple comparisons."
    )


def test_seeds_and_the_procedure():
    table = inflation(frames(seeds=(0, 1, 2)), "kfold", "random")
    assert list(table["seeds"]) == ["3, 3", "3, 3", "1, 1"]
    assert table["sentence"][0].startswith("On 68 images of 11 groups of patients, 3 seeds each, accuracy is")
    uneven = frames(seeds=(0, 1, 2))
    uneven = uneven[(uneven["protocol"] == "kfold") | (uneven["seed"] != 2)]
    assert inflation(uneven, "kfold", "random")["seeds"][0] == "3, 2"  # of the honest first, as the values
    assert (
        ", 2 seeds of vgg16 [random] and 3 seeds of vgg16 [kfold], accuracy"
        in inflation(uneven, "kfold", "random")["sentence"][0]
    )
    procedure = inflation(frames(seeds=(0, 1, 2)), "kfold", "random", estimand="procedure")
    assert (procedure["high"] - procedure["low"] >= table["high"] - table["low"]).all()
    assert "spread between seeds included" in procedure["sentence"][0]
    single = inflation(frames(seeds=(0,)), "kfold", "random", estimand="procedure")
    assert "one seed" in single["reason"][0]
    assert single["sentence"][0].startswith("Not testable, one seed: nothing is known of the spread between seeds")


def test_without_subjects_the_unit_says_so():
    table = inflation(frames(seeds=(0,)).drop(columns="group"), "kfold", "random")
    assert set(table["unit"]) == {"image"}
    assert (table["low"] <= table["difference"]).all()
    assert table["groups"].isna().all()
    assert (
        table["sentence"].str.endswith("Images are taken as independent, which makes such results too certain.").all()
    )
    assert "groups of patients" not in table["sentence"][0]


def test_a_backbone_that_only_one_protocol_has_is_left_out():
    frame = frames()
    alone = frame[(frame["protocol"] == "kfold") | (frame["backbone"] == "cnn")]
    assert list(inflation(alone, "kfold", "random")["backbone"]) == ["cnn"]
    apart = frame[(frame["protocol"] == "kfold") == (frame["backbone"] == "vgg16")]
    with pytest.raises(DataError, match=r"No backbone has predictions.*kfold: vgg16; random: cnn, cell_size\."):
        inflation(apart, "kfold", "random")


def test_images_that_are_not_the_same_are_a_row_that_says_so():
    frame = frames()
    frame.loc[(frame["protocol"] == "random") & (frame["backbone"] == "cnn"), "sample"] += "b"
    table = inflation(frame, "kfold", "random").set_index("backbone")
    assert np.isnan(table.loc["cnn", "difference"])
    assert table.loc["cnn", "reason"] == "no image in common"
    assert table.loc["cnn", "sentence"] == "Not testable: cnn [random] and cnn [kfold] have no image in common."
    assert np.isfinite(table.loc["vgg16", "difference"])


@pytest.mark.parametrize(
    ("arguments", "error", "says"),
    [
        (("kfold", "official"), UnknownNameError, "There is no protocol 'official'.*Known: kfold, random"),
        (("kfol", "random"), UnknownNameError, "Did you mean 'kfold'"),
        (("kfold", "kfold"), SettingsError, "two protocols, the honest one first. Received: 'kfold' twice"),
        (("kfold", "random", "speed"), SettingsError, r"metric must be one of.*'speed'"),
    ],
)
def test_what_cannot_be_compared_is_refused(arguments, error, says):
    with pytest.raises(error, match=says):
        inflation(frames(), *arguments)


def test_settings_and_frames_that_are_none():
    with pytest.raises(SettingsError, match="level must be"):
        inflation(frames(), "kfold", "random", level=95)
    with pytest.raises(SettingsError, match="'models', 'procedure'"):
        inflation(frames(), "kfold", "random", estimand="all")
    with pytest.raises(UnknownNameError, match=r"Known: none\. The column protocol has these"):
        inflation(frames().drop(columns="protocol"), "kfold", "random")
    with pytest.raises(DataError, match="has: test"):
        inflation(frames(), "kfold", "random", side="val")
    with pytest.raises(DataError, match="Expected a DataFrame"):
        inflation("predictions.csv", "kfold", "random")


@pytest.mark.parametrize(
    "ask",
    [
        evaluation.evaluate,
        evaluation.compare,
        evaluation.leaderboard,
        evaluation.patient_predictions,
        evaluation.group_table,
        evaluation.error_list,
        evaluation.calibrate,
        evaluation.accuracy_at_coverage,
        lambda frame: evaluation.operating_points(frame, sensitivity=0.9),
    ],
)
def test_everything_else_refuses_several_protocols_and_takes_one(ask):
    frame = frames()
    says = r"2 protocols: kfold, random\. Choose one, frame\[frame\[\"protocol\"\] == 'kfold'\], or .*inflation"
    with pytest.raises(DataError, match=says):
        ask(frame)


def test_one_protocol_is_evaluated_as_if_nothing_was_said():
    frame = frames()
    chosen = frame[frame["protocol"] == "kfold"]
    pd.testing.assert_frame_equal(evaluate(chosen), evaluate(chosen.drop(columns="protocol")))


def test_the_frame_may_come_from_a_file(tmp_path):
    frames().to_csv(tmp_path / "predictions.csv", index=False)
    again = pd.read_csv(tmp_path / "predictions.csv")
    pd.testing.assert_frame_equal(ldl.inflation(again, "kfold", "random"), inflation(frames(), "kfold", "random"))
