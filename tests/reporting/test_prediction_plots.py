"""Plots of predictions, read back from the drawn objects."""

import numpy as np
import pandas as pd
import pytest

import leukemia_dl as ldl
from leukemia_dl.errors import DataError, SettingsError
from leukemia_dl.evaluation import evaluate, group_table, net_benefit, roc_curves
from leukemia_dl.reporting import (
    plot_confusion,
    plot_cost,
    plot_errors_by_size,
    plot_net_benefit,
    plot_precision_recall,
    plot_reliability,
    plot_roc,
    plot_subjects,
)
from predictions import clustered

SMALL = ((8, 9, 10, 11, 12, 20), (7, 8, 9, 10, 30))
FRAME = clustered(SMALL, seeds=(0, 1)).assign(kind="backbone")
BASELINE = clustered(SMALL, backbones=("baseline",), distance=0.3).assign(kind="baseline")
ALL = pd.concat([FRAME, BASELINE.assign(seed=None)]).astype({"seed": "Int64"})
OF_FRAME = (plot_roc, plot_precision_recall, plot_confusion, plot_reliability, plot_subjects)


def titles(figure):
    return [axes.get_title() for axes in figure.axes if axes.get_title()]


def test_decision_curves_are_those_of_net_benefit_beside_all_and_none():
    figure = plot_net_benefit(ALL)
    lines = {line.get_label(): line for line in figure.axes[0].lines}
    assert list(lines) == ["one", "other", "baseline", "all", "none"]
    curves = net_benefit(ALL).set_index("backbone")
    for name, line in lines.items():
        np.testing.assert_allclose(line.get_ydata(), curves.loc[name, "y"])
    assert (lines["none"].get_ydata() == 0).all()


def test_roc_draws_curve_band_and_area_of_each():
    figure = plot_roc(ALL, "T")
    assert titles(figure) == ["one", "other", "baseline"]
    curves = roc_curves(ALL).set_index("backbone")
    first = figure.axes[0]
    np.testing.assert_allclose(first.lines[2].get_ydata(), curves.loc["one", "y"])
    band = first.collections[0].get_paths()[0].vertices[:, 1]
    assert band.max() == pytest.approx(curves.loc["one", "high"].max())
    assert band.min() == pytest.approx(curves.loc["one", "low"].min())
    area = evaluate(ALL, metrics="auroc").set_index("backbone").loc["one"]
    assert first.texts[0].get_text() == f"{area['value']:.3f}\n[{area['low']:.3f}, {area['high']:.3f}]"
    assert figure.axes[2].lines[2].get_color() != first.lines[2].get_color()
    assert figure.get_suptitle() == "T"


def test_precision_recall_shows_the_share_of_the_positive_class():
    figure = plot_precision_recall(ALL)
    val = ALL[ALL["label"] == "all"].assign(side="val")
    figure = plot_precision_recall(pd.concat([ALL, val]))
    share = (FRAME["label"] == "all").mean()
    assert [line.get_ydata()[0] for line in figure.axes[0].lines if line.get_linestyle() == ":"] == [share]


def test_confusion_has_recalls_on_its_diagonal():
    figure = plot_confusion(ALL)
    written = [text.get_text() for text in figure.axes[1].texts]
    found = evaluate(ALL, metrics=["sensitivity", "specificity"]).set_index(["backbone", "metric"])["value"]
    assert written[0] == f"{found['other', 'specificity']:.2f}"
    assert written[3] == f"{found['other', 'sensitivity']:.2f}"
    rows = np.array(figure.axes[0].images[0].get_array())
    np.testing.assert_allclose(rows.sum(axis=1), 1)


def test_a_class_that_does_not_occur_has_no_shares():
    figure = plot_confusion(FRAME[FRAME["label"] == "all"])
    assert [text.get_text() for text in figure.axes[0].texts][:2] == ["none", "none"]


def test_reliability_draws_bins_with_intervals():
    figure = plot_reliability(ALL)
    points = figure.axes[0].lines[1]
    assert len(points.get_xdata()) == len(figure.axes[0].patches) == 10
    assert sum(bar.get_height() for bar in figure.axes[0].patches) == pytest.approx(1)


def test_subjects_are_a_dot_each_as_large_as_they_have_images():
    figure = plot_subjects(ALL)
    dots = figure.axes[0].collections
    assert sum(len(part.get_offsets()) for part in dots) == 3 * 11
    table = group_table(ALL)
    drawn = np.sort(np.concatenate([part.get_offsets()[:, 0] for part in dots]))
    np.testing.assert_allclose(drawn, np.sort(1 - table["error_share"]), atol=1e-12)
    assert [text.get_text() for text in figure.axes[0].get_legend().get_texts()] == ["hem", "all"]
    with pytest.raises(DataError, match="Nothing is known of subjects"):
        plot_subjects(ALL.drop(columns="group"))


def test_cost_draws_known_costs_and_baselines_as_lines():
    timings = pd.DataFrame({"backbone": ["one", "other", "other"], "fit_seconds": [10.0, 30.0, 50.0]})
    board = ldl.leaderboard(ALL, timings=timings)
    figure = plot_cost(board)
    marks = {tuple(line.get_xdata()) for line in figure.axes[0].lines if line.get_marker() not in ("None", None)}
    assert marks == {(10.0,), (40.0,)}
    baseline = board.set_index("backbone").loc["baseline", "accuracy"]
    assert baseline in [line.get_ydata()[0] for line in figure.axes[0].lines if line.get_linestyle() == "--"]
    with pytest.raises(DataError, match="No cost to draw"):
        plot_cost(ldl.leaderboard(ALL))
    for price in (0.0, -1.0, np.inf, "much"):
        with pytest.raises(DataError, match="above 0"):
            plot_cost(board.assign(price=price), "price")
    with pytest.raises(DataError, match=r"no column .typo.. Its columns: rank, rank_high, backbone"):
        plot_cost(board, "typo")
    with pytest.raises(DataError, match=r"no column .low., .high., .fit_seconds."):
        plot_cost(board[["rank", "backbone", "kind", "accuracy"]])
    assert plot_cost(board.assign(price=1.0), "price").axes[0].get_xlabel() == "Price, log scale"
    mixed = plot_cost(board.assign(price=board["backbone"].map({"one": 0.0, "other": 2.0})), "price")
    assert [list(line.get_xdata()) for line in mixed.axes[0].lines if line.get_marker() != "None"] == [[2.0]]


def test_errors_by_size_are_those_of_quarters():
    random = np.random.default_rng(0)
    areas = {sample: random.uniform(100, 900) for sample in FRAME["sample"].unique()}
    frame = ALL.assign(cell_area=ALL["sample"].map(areas))
    figure = plot_errors_by_size(frame)
    found = evaluate(frame, metrics="accuracy", by="cell_area")
    one = found[found["backbone"] == "one"]
    np.testing.assert_allclose(figure.axes[0].lines[0].get_ydata(), 1 - one["value"])
    assert len(figure.axes[0].get_xticklabels()) == 4
    with pytest.raises(SettingsError, match=r"no column 'cell_area'"):
        plot_errors_by_size(ALL)


def test_axes_that_are_given_are_drawn_on():
    from matplotlib.figure import Figure

    figure = Figure()
    left, right = figure.subplots(1, 2)
    assert plot_subjects(ALL, ax=left) is figure
    timings = pd.DataFrame({"backbone": ["one"], "fit_seconds": [10.0]})
    assert plot_cost(ldl.leaderboard(ALL, timings=timings), ax=right) is figure
    assert left.collections
    assert right.lines
    assert figure.get_suptitle() == ""


def test_averaged_predictions_are_no_backbones_of_their_own():
    averaged = FRAME.assign(kind="tta", backbone=FRAME["backbone"] + "+tta")
    assert titles(plot_roc(pd.concat([FRAME, averaged]))) == ["one", "other"]


@pytest.mark.parametrize("plot", OF_FRAME)
def test_names_are_no_formulas_and_fifteen_classes_fit(plot, tmp_path):
    random = np.random.default_rng(0)
    names = ["$x_1$", "<script>", *(f"a long class name {i}" for i in range(13))]
    labels = random.integers(0, 15, 400)
    raw = random.random((400, 15)) + np.eye(15)[labels]
    shares = raw / raw.sum(axis=1, keepdims=True)
    frame = pd.DataFrame({f"probability_{name}": shares[:, code] for code, name in enumerate(names)})
    frame = frame.assign(
        label=[names[c] for c in labels], backbone="$\\frac$", group=[f"g{i % 40}" for i in range(400)]
    )
    plot(frame).savefig(tmp_path / "a.png")
    assert (tmp_path / "a.png").stat().st_size > 5_000


@pytest.mark.parametrize("plot", OF_FRAME)
def test_one_class_alone_draws_what_there_is(plot, tmp_path):
    figure = plot(FRAME[FRAME["label"] == "all"])
    figure.savefig(tmp_path / "a.png")
    if plot is plot_subjects:
        assert sum(len(part.get_offsets()) for part in figure.axes[0].collections) == 2 * len(SMALL[0])
        return
    assert titles(figure) == ["one", "other"]
    for axes in figure.axes:
        texts = [text.get_text() for text in axes.texts]
        if plot in (plot_roc, plot_precision_recall):
            assert texts == ["not defined"]
        elif plot is plot_confusion:
            assert [text == "none" for text in texts] == [True, True, False, False]
        else:
            assert (axes.lines[1].get_ydata() == 1).all()


def test_what_is_no_prediction_is_refused():
    for plot in OF_FRAME:
        with pytest.raises(DataError, match="Probabilities must be finite"):
            plot(ALL.assign(probability_all=-1.0))
