"""What the plots show, read back from the drawn objects; how they look was looked at."""

import io

import numpy as np
import pandas as pd
import pytest

from leukemia_dl.errors import DataError
from leukemia_dl.reporting import plot_comparison, plot_learning_curves, plot_samples

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


def test_comparison_draws_the_mean_and_each_trial():
    figure = plot_comparison(RESULTS, title="T")
    assert [axes.get_xlabel() for axes in figure.axes] == [
        "Accuracy",
        "Balanced accuracy",
        "Loss (cross-entropy, nats)",
    ]
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["majority", "cnn"]
    assert [bar.get_width() for bar in figure.axes[0].patches] == pytest.approx([0.6, 0.85])
    assert [list(line.get_xdata()) for line in figure.axes[2].lines] == [[0.65], [0.4, 0.6]]
    assert figure.axes[0].patches[0].get_facecolor() != figure.axes[0].patches[1].get_facecolor()
    with pytest.raises(DataError, match="No finished trial"):
        plot_comparison(RESULTS[RESULTS["status"] == "failed"])


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
    phases = HISTORY.assign(phase=["head", "all", "all", "all"])
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


def test_a_name_with_markup_is_text():
    for name in ("<script>", "$x_$", "a$b"):
        figure = plot_comparison(RESULTS.replace({"backbone": {"cnn": name}}), title=name)
        figure.savefig(io.BytesIO(), format="png")
        assert name in [label.get_text() for label in figure.axes[0].get_yticklabels()]
        plot_samples(np.zeros((1, 4, 4, 3), np.uint8), [name], title=name).savefig(io.BytesIO(), format="png")
        plot_learning_curves(HISTORY.assign(backbone=name), title=name).savefig(io.BytesIO(), format="png")
