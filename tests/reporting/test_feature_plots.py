"""The map of features: where its dots are, how many names its legend has, and what it needs."""

import sys

import numpy as np
import pandas as pd
import pytest

from leukemia_dl.errors import DataError, SettingsError
from leukemia_dl.reporting import plot_features

X = np.random.default_rng(3).normal(size=(60, 4)) * [1, 10, 100, 1000]
FRAME = pd.DataFrame(X).add_prefix("feature_").assign(label=["all", "hem"] * 30, subject=[i // 4 for i in range(60)])


def entries(figure):
    return [text.get_text() for text in figure.axes[0].get_legend().get_texts()]


def test_dots_are_the_principal_components_of_standardised_features():
    figure = plot_features(FRAME, "label", title="T")
    assert entries(figure) == ["all (30)", "hem (30)"]
    scaled = (X - X.mean(axis=0)) / X.std(axis=0)
    left, sizes, _ = np.linalg.svd(scaled, full_matrices=False)
    expected = np.abs(left[:, :2] * sizes[:2])
    drawn = [dots.get_offsets() for dots in figure.axes[0].collections]
    np.testing.assert_allclose(np.abs(drawn[0]), expected[::2], rtol=1e-6)
    np.testing.assert_allclose(np.abs(drawn[1]), expected[1::2], rtol=1e-6)
    share = sizes**2 / (sizes**2).sum()
    assert figure.axes[0].get_xlabel() == f"Principal component 1 ({share[0]:.0%} of variance)"


@pytest.mark.parametrize(
    ("values", "number", "last"),
    [
        (FRAME["subject"], 10, "6 other values (24)"),
        (FRAME["subject"] % 10, 10, "9 (4)"),
        ((FRAME["subject"] % 10).mask(FRAME["subject"] > 13), 10, "1 other value (8)"),
        (FRAME["label"].mask(FRAME["subject"] > 13), 3, "not known (4)"),
    ],
)
def test_the_legend_has_at_most_ten_entries_and_counts_the_rest(values, number, last):
    figure = plot_features(FRAME.assign(subject=values), "subject")
    found = entries(figure)
    assert (len(found), found[-1]) == (number, last)
    assert sum(len(dots.get_offsets()) for dots in figure.axes[0].collections) == 60


@pytest.mark.parametrize("frame", [FRAME[["feature_0", "label"]], FRAME[:1], FRAME[:0], FRAME * [0, 0, 0, 0, 1, 1]])
def test_a_map_needs_two_images_and_two_features_that_differ(frame):
    with pytest.raises(DataError, match="A map needs two images and two features, not all equal"):
        plot_features(frame, "label")


def test_umap_is_optional(monkeypatch):
    monkeypatch.setitem(sys.modules, "umap", None)
    with pytest.raises(SettingsError, match=r"pip install 'leukemia-dl\[umap\]'"):
        plot_features(FRAME, "label", "umap")


def test_umap_places_every_image_in_the_same_place_again():
    pytest.importorskip("umap")
    one, other = (plot_features(FRAME, "label", "umap").axes[0] for _ in range(2))
    np.testing.assert_array_equal(one.collections[0].get_offsets(), other.collections[0].get_offsets())
    assert one.get_xlabel() == "UMAP 1"


def test_what_cannot_be_drawn_is_refused():
    with pytest.raises(SettingsError, match="method must be one of 'pca', 'umap'"):
        plot_features(FRAME, "label", "tsne")
    with pytest.raises(DataError, match="'site' of: label, subject"):
        plot_features(FRAME, "site")
