"""The data in the plots of a benchmark, read back from the drawn objects; test_appearance looks at their pictures."""

import io
import warnings

import numpy as np
import pandas as pd
import pytest
from matplotlib.font_manager import findfont
from matplotlib.ft2font import FT2Font

import grids
import leukemia_dl as ldl
import stores
from leukemia_dl.errors import DataError, SettingsError
from leukemia_dl.reporting import (
    plot_comparison,
    plot_inflation,
    plot_learning_curves,
    plot_samples,
    write_pictures,
)

RESULTS = pd.DataFrame(
    {
        "backbone": ["cnn", "cnn", "majority", "broken"],
        "accuracy": [0.8, 0.9, 0.6, np.nan],
        "balanced_accuracy": [0.7, 0.8, 0.5, np.nan],
        "loss": [0.4, 0.6, 0.65, np.nan],
        "recipe": ["quick", "quick", None, "quick"],
        "status": ["ok", "ok", "ok", "failed"],
    }
)
HISTORY = pd.DataFrame(
    {
        "trial": ["a", "a", "b", "b"],
        "backbone": ["cnn", "cnn", "vgg16", "vgg16"],
        "epoch": [1, 2, 1, 2],
        "loss": [0.7, 0.5, 0.7, 0.69],
        "accuracy": [0.5, 0.8, 0.5, 0.5],
        "val_loss": [0.7, 0.6, 0.7, 0.7],
        "val_accuracy": [0.5, 0.7, 0.5, 0.5],
    }
)

INFLATION = pd.DataFrame(
    {
        "backbone": ["vgg16", "cnn", "cell_size", "apart"],
        "kind": ["backbone", "backbone", "baseline", "backbone"],
        "metric": "balanced_accuracy",
        "honest": "kfold",
        "leaky": "random",
        "value_honest": [0.75, 0.8, 0.7, np.nan],
        "value_leaky": [0.95, 0.78, 0.7, np.nan],
        "difference": [0.2, -0.02, 0.0, np.nan],
        "low": [0.1, -0.1, np.nan, np.nan],
        "high": [0.3, 0.06, np.nan, np.nan],
        "unit": "group",
        "images": [30, 30, 28, 0],
        "reason": ["", "", "fewer than 5 groups", "no image in common"],
    }
)


def test_comparison_draws_the_mean_and_each_trial():
    figure = plot_comparison(RESULTS, title="T")
    assert [axes.get_xlabel() for axes in figure.axes] == [
        "Accuracy",
        "Balanced accuracy",
        "Loss (cross-entropy, nats)",
    ]
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["majority", "cnn"]
    assert [bar.get_width() for bar in figure.axes[0].patches] == pytest.approx([0.6, 0.85])
    (dots,) = figure.axes[2].lines
    assert sorted(zip(dots.get_ydata(), dots.get_xdata(), strict=True)) == [(0, 0.65), (1, 0.4), (1, 0.6)]
    assert figure.axes[0].patches[0].get_facecolor() != figure.axes[0].patches[1].get_facecolor()
    with pytest.raises(DataError, match="No finished trial"):
        plot_comparison(RESULTS[RESULTS["status"] == "failed"])


def test_tables_without_a_column_are_refused_by_its_name():
    for table, plot, missing in (
        (RESULTS, plot_comparison, "recipe"),
        (HISTORY, plot_learning_curves, "val_loss"),
        (INFLATION, plot_inflation, "unit"),
    ):
        with pytest.raises(DataError, match=rf"no column .{missing}.. Its columns: "):
            plot(table.drop(columns=missing))
    with pytest.raises(DataError, match=r"no column .acuracy.. Its columns: backbone, accuracy"):
        plot_comparison(RESULTS, ["acuracy"])


def test_learning_curves_draw_train_and_validation_of_every_trial():
    figure = plot_learning_curves(HISTORY)
    assert len(figure.axes) == 4
    lines = figure.axes[0].lines
    assert [line.get_label() for line in lines] == ["train", "validation"]
    assert list(lines[0].get_ydata()) == [0.5, 0.8]
    assert list(lines[1].get_ydata()) == [0.5, 0.7]
    assert "val 0.700 / 0.600" in figure.axes[0].get_title()
    with pytest.raises(DataError, match="no net was trained"):
        plot_learning_curves(HISTORY[:0])


def test_where_the_first_phase_ends_is_a_dotted_line():
    phases = HISTORY.assign(phase=["head", "full", "full", "full"])
    figure = plot_learning_curves(phases)
    for column, expected in ((0, [1.5]), (1, [])):
        for row in (0, 1):
            lines = figure.axes[2 * row + column].lines
            assert [line.get_xdata()[0] for line in lines if line.get_linestyle() == ":"] == expected
    assert "dotted" in figure.get_supxlabel()
    assert "dotted" not in plot_learning_curves(HISTORY).get_supxlabel()


def test_samples_show_the_pixels_as_they_are():
    images = np.random.default_rng(0).integers(0, 256, (5, 8, 8, 3), dtype=np.uint8)
    figure = plot_samples(images, list("abcde"), columns=3)
    shown = [axes for axes in figure.axes if axes.images]
    assert [axes.get_title() for axes in shown] == list("abcde")
    for axes, image in zip(shown, images, strict=True):
        np.testing.assert_array_equal(axes.images[0].get_array(), image)


@pytest.mark.parametrize(("images", "labels"), [(0, 0), (0, 1), (3, 2), (3, 4)])
def test_samples_are_some_with_a_label_each(images, labels):
    with pytest.raises(DataError, match=f"Received: {images} images and {labels} labels"):
        plot_samples(np.zeros((images, 4, 4, 3), np.uint8), ["a"] * labels)


def test_a_name_with_markup_is_text():
    for name in ("<script>", "$x_$", "a$b"):
        figure = plot_comparison(RESULTS.replace({"backbone": {"cnn": name}}), title=name)
        figure.savefig(io.BytesIO(), format="png")
        assert name in [label.get_text() for label in figure.axes[0].get_yticklabels()]
        plot_samples(np.zeros((1, 4, 4, 3), np.uint8), [name], title=name).savefig(io.BytesIO(), format="png")
        plot_learning_curves(HISTORY.assign(backbone=name), title=name).savefig(io.BytesIO(), format="png")


def test_no_mean_is_taken_over_protocols():
    both = pd.concat([RESULTS.assign(protocol="kfold"), RESULTS.assign(protocol="random", accuracy=0.95)])
    figure = plot_comparison(both)
    names = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert names == ["cnn [random]", "majority [random]", "majority [kfold]", "cnn [kfold]"]  # from below
    assert [bar.get_width() for bar in figure.axes[0].patches] == pytest.approx([0.95, 0.95, 0.6, 0.85])
    assert "compare within one" in figure.get_supxlabel()
    one = plot_comparison(RESULTS.assign(protocol="kfold"))
    assert [label.get_text() for label in one.axes[0].get_yticklabels()] == ["majority", "cnn"]
    assert "compare within one" not in one.get_supxlabel()
    curves = pd.concat([HISTORY.assign(protocol="kfold"), HISTORY.assign(protocol="random", trial="c")])
    figure = plot_learning_curves(curves)
    titles = [axes.get_title().partition("\n")[0] for axes in figure.axes[:4]]
    assert titles == ["cnn [kfold]", "vgg16 [kfold]", "cnn [random]", "vgg16 [random]"]


def test_intervals_of_one_of_two_protocols_are_drawn_in_its_rows():
    both = pd.concat([RESULTS.assign(protocol="kfold"), RESULTS.assign(protocol="random", accuracy=0.95)])
    row = {"backbone": "cnn", "metric": "accuracy", "value": 0.86, "low": 0.8, "high": 0.9, "unit": "group"}
    figure = plot_comparison(both, ["accuracy"], intervals=pd.DataFrame([row | {"protocol": "kfold"}]))
    assert [bar.get_width() for bar in figure.axes[0].patches] == pytest.approx([0.95, 0.95, 0.6, 0.86])
    loss = row | {"metric": "loss", "value": 0.45, "low": 0.4, "high": 0.5}
    figure = plot_comparison(RESULTS, ["accuracy", "loss"], intervals=pd.DataFrame([row, loss]))
    assert [axes.patches[1].get_width() for axes in figure.axes[:2]] == pytest.approx([0.86, 0.45])


def test_inflation_draws_both_values_and_their_difference():
    figure = plot_inflation(INFLATION, title="Synthetic cells, not real ones")
    left, right = figure.axes
    assert [label.get_text() for label in left.get_yticklabels()] == ["cell_size", "cnn", "vgg16"]  # from below
    points = {line.get_label(): list(line.get_xdata()) for line in left.lines}
    assert points == {"kfold": [0.7, 0.8, 0.75], "random": [0.7, 0.78, 0.95]}
    (joined,) = left.collections
    assert [sorted(path[:, 0]) for path in joined.get_segments()] == [[0.7, 0.7], [0.78, 0.8], [0.75, 0.95]]
    zero, *differences = right.lines
    assert list(zero.get_xdata()) == [0, 0]
    assert [float(line.get_xdata()[0]) for line in differences] == [0.0, -0.02, 0.2]
    (intervals,) = right.collections
    drawn = [list(path[:, 0]) for path in intervals.get_segments() if np.isfinite(path).all() and len(path)]
    assert drawn == [[-0.1, 0.06], [0.1, 0.3]]
    assert [text.get_text() for text in right.texts] == ["+0.000", "-0.020", "+0.200"]
    assert differences[0].get_color() != differences[1].get_color()  # a baseline recedes
    title = figure.get_suptitle()
    assert title.startswith("Synthetic cells, not real ones\nBalanced accuracy under random, beside kfold")
    assert "On the 28 to 30 images that both have predicted" in figure.get_supxlabel()
    assert "interval over groups" in figure.get_supxlabel()
    figure.savefig(io.BytesIO(), format="png")


def test_inflation_without_subjects_or_differences():
    images = INFLATION.assign(unit="image")
    assert "taken as independent" in plot_inflation(images).get_supxlabel()
    assert plot_inflation(images).get_suptitle() == "Balanced accuracy under random, beside kfold on the same images"
    without = INFLATION[2:].assign(backbone=["cnn", "apart"])
    assert "no interval: fewer than 5 groups" in plot_inflation(without).get_supxlabel()
    for nothing in (INFLATION[3:], pd.DataFrame()):
        with pytest.raises(DataError, match="No difference to draw"):
            plot_inflation(nothing)
    for name in ("$x_$", "a$b"):
        marked = INFLATION.replace({"backbone": {"cnn": name}, "leaky": {"random": name}})
        plot_inflation(marked, title=name).savefig(io.BytesIO(), format="png")


def finished(root, store, *protocols):
    """Return a benchmark of some protocols on synthetic cells, with predictions drawn at random."""
    return stores.made_up(store, grids.dataset(root), ["cnn"], protocol=protocols, allow_leakage=True)


def test_pictures_of_a_protocol_that_leaks_and_one_that_does_not(synthetic_root, tmp_path):
    bench = finished(synthetic_root, tmp_path, "random", "official_clean")
    names = [path.name for path in write_pictures(bench)]
    assert names == ["samples.png", "comparison.png", "inflation.png", "learning_curves.png"]
    written = pd.read_csv(bench.store.root / "inflation.csv")
    # The honest one is found by what was verified of its splits, not by its place.
    expected = ldl.inflation(bench.predictions(), "official_clean", "random")
    assert list(written["backbone"]) == ["cnn", "majority", "cell_size", "cell_colour"]
    np.testing.assert_allclose(written["difference"], expected["difference"])
    assert set(written["honest"]) == {"official_clean"}
    predictions = pd.read_csv(bench.store.root / "predictions.csv")
    assert list(predictions)[:6] == ["trial", "backbone", "kind", "protocol", "fold", "seed"]
    assert list(bench.histories())[:5] == ["trial", "backbone", "protocol", "fold", "seed"]
    assert set(bench.histories()["protocol"]) == {"random", "official_clean"}


@pytest.mark.parametrize("protocols", [("official_clean", "holdout"), ("official_clean",)])
def test_no_inflation_where_no_protocol_leaks(synthetic_root, tmp_path, protocols):
    bench = finished(synthetic_root, tmp_path, *protocols)
    assert "inflation.png" not in [path.name for path in write_pictures(bench)]
    assert not (bench.store.root / "inflation.csv").exists()


def test_columns_of_a_grid_of_images():
    images = np.zeros((4, 4, 4, 3), np.uint8)
    assert len(plot_samples(images, list("abcd"), columns=10**6).axes) == 4
    for columns in (0, -1, 2.5, True, "6"):
        with pytest.raises(SettingsError, match="columns must be"):
            plot_samples(images, list("abcd"), columns=columns)


def drawn(names, path):
    figure = plot_samples(np.zeros((len(names), 2, 2, 3), np.uint8), names, title="".join(names))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figure.savefig(path)
    return figure


def test_an_installed_font_that_has_the_characters_is_used(tmp_path):
    """20.33: as Chinese names where the system has a Chinese font; here a sign of a font that matplotlib brings."""
    figure = drawn(["hem \u24b6"], tmp_path / "a.png")
    (family, *others) = figure.axes[0].title.get_fontfamily()
    assert family == "sans-serif"
    assert any(FT2Font(findfont(name)).get_char_index(0x24B6) for name in others)
    assert drawn(["hem", "Lymphozyt \u00e4"], tmp_path / "a.png").axes[0].title.get_fontfamily() == ["sans-serif"]


def test_a_character_without_a_font_is_drawn_as_a_box(tmp_path):
    figure = plot_samples(np.zeros((1, 2, 2, 3), np.uint8), ["\U00013000"])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        figure.savefig(tmp_path / "a.png")
    assert "missing from font" in str(caught[0].message)
