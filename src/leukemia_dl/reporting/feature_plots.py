"""A map of features, coloured by class, patient or site."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import pandas as pd

from leukemia_dl.checks import choice, import_extra
from leukemia_dl.errors import DataError
from leukemia_dl.evaluation.probe import feature_values
from leukemia_dl.models import Explanation
from leukemia_dl.reporting.plots import BASELINE_COLOUR, add_legend, finished, label_axes, looks_of, new_figure
from leukemia_dl.text import counted

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_MOST_NAMES = 10


def plot_features(
    features: pd.DataFrame, colour: str, method: Literal["pca", "umap"] = "pca", title: str = ""
) -> Figure:
    """Return a map of features in two dimensions: a dot per image, coloured by a column.

    Args:
        features: A row per image, as for `leukemia_dl.evaluation.probe`.
        colour: The column of colours, such as "label", "subject" or "site"; its most frequent values have a colour,
            up to ten entries of the legend, and the others are grey.
        method: "pca", two principal components of the standardised features, or "umap" (needs the extra `umap`).
        title: Stands above the figure.

    Raises:
        SettingsError: For another method, or if umap-learn is not installed.
        DataError: If there is no such column, or fewer than two images or features, or all are equal or not finite.
    """
    from sklearn.decomposition import PCA
    from sklearn.preprocessing import StandardScaler

    x = feature_values(features, colour)
    if min(x.shape) < 2 or not x.std(axis=0).any():
        raise DataError(f"A map needs two images and two features, not all equal. Received: {x.shape}.")
    x = StandardScaler().fit_transform(x)
    if choice("method", method, ("pca", "umap")) == "pca":
        pca = PCA(2, random_state=0)
        places, shares = pca.fit_transform(x), pca.explained_variance_ratio_
        names = [f"Principal component {i} ({share:.0%} of variance)" for i, share in enumerate(shares, start=1)]
    else:
        umap = import_extra("umap", "umap").UMAP(random_state=0, n_jobs=1)
        places, names = umap.fit_transform(x), ["UMAP 1", "UMAP 2"]
    values = features[colour].astype(object).reset_index(drop=True).map(str, na_action="ignore")
    counts = values.value_counts()
    shown = sorted(counts.index[: _MOST_NAMES - (len(counts) + values.isna().any() > _MOST_NAMES)])
    others = counted(len(counts) - len(shown), "other value") if len(counts) > len(shown) else "not known"
    values, looks = values.where(values.isin(shown), others), looks_of(shown) | {others: {"color": BASELINE_COLOUR}}
    figure = new_figure(6.5, 5.6)
    axes = figure.subplots()
    for name, look in looks.items():
        if len(there := places[values == name]):
            label, size = f"{name} ({len(there):,})", 14 if len(x) < 2_000 else 5
            axes.scatter(there[:, 0], there[:, 1], s=size, alpha=0.7, lw=0, label=label, **look)
    label_axes(axes, xlabel=names[0], ylabel=names[1])
    add_legend(axes, 3)
    return finished(figure, title, f"{counted(len(x), 'image')}, colours: {colour}")


def plot_explanations(explanation: Explanation, title: str = "", columns: int = 4) -> Figure:
    """Return the images of a `Classifier.explain` with their maps: dark where a pixel does not count.

    Above each stand its class with the probability, and the share of the map on the cell.

    Args:
        explanation: The maps.
        title: Stands above the figure.
        columns: Images in a row.
    """
    count = len(explanation.maps)
    rows, columns = -(-count // columns), min(columns, count)
    figure = new_figure(2.2 * columns, 2.6 * rows + 0.5)
    for place, (image, one) in enumerate(zip(explanation.images, explanation.maps, strict=True), start=1):
        axes = figure.add_subplot(rows, columns, place)
        axes.imshow(image)
        axes.imshow(one, cmap="inferno", alpha=0.55, vmin=0, vmax=1)
        facts = explanation.checks.iloc[place - 1]
        text = f"{facts['class']} {facts['probability']:.2f}\non the cell {facts['inside']:.0%}"
        axes.set_title(text, fontsize="small")
        axes.set_axis_off()
    return finished(figure, title, f"{counted(count, 'image')}; bright pixels count most for the class")
