"""Intervals over groups of subjects by the delete-one-group jackknife; docs/explanation/intervals.md says why.

Strata are classes; a group is in the class of most of its images. Class shares stay fixed: where a group is left out,
the others of its class are weighted up. The variance per class (Efron and Stein 1981; Rust and Rao 1996, JKn),

    v_c = (m_c - 1) / m_c * sum over groups g of c of (theta_(-g) - mean of theta_(-.))^2,

is summed over classes. A t quantile is taken at Satterthwaite's degrees of freedom, (sum v_c)^2 / sum(v_c^2 / d_c),
where d_c = (sum n_g)^2 / sum n_g^2 - 1. This is Kish's effective number of groups, less one: groups of 9 and of 1,074
images do not carry equal information. Ends are Wilson's for values between two bounds, and on the log scale for losses.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from leukemia_dl.evaluation.metrics import CLIP, Floats, Ints, Metric, Run
from leukemia_dl.evaluation.predictions import FEWEST_EFFECTIVE, FEWEST_GROUPS, Model

_MOST_UNITS = 400  # with more, blocks of them are left out: one of very many images gives no better variance
_MOST_STEPS, _SMALLEST_DF, _ROUNDING = 64, 1e-2, 1e-12
SHARES_OF_HITS = ("accuracy", "sensitivity", "specificity")  # shares of images that are predicted rightly


@dataclass(frozen=True, eq=False)
class Spread:
    """Variance of an estimate and the degrees of freedom of that variance; of several estimates, arrays of them."""

    variance: Any
    df: Any

    def __add__(self, other: Spread) -> Spread:
        """Return the spread of a sum of independent parts (Satterthwaite 1946)."""
        variance = np.asarray(self.variance + other.variance)
        parts = np.asarray(self.variance**2 / self.df + other.variance**2 / other.df)
        df = np.divide(variance**2, parts, out=np.full(variance.shape, np.inf), where=parts > 0)
        return Spread(variance[()], df[()])


NO_SPREAD = Spread(0.0, np.inf)


@dataclass(frozen=True, eq=False)
class Resampling:
    """The blocks that are left out one at a time, and their strata.

    A block is one unit, or several where there are very many: `block` (units,) is the block of each. `stratum`
    (blocks,) is the class of most images of each block. `images`, `hits` and `said` (blocks, classes) are numbers of
    images by class, of those predicted correctly, and of images by predicted class, as means over runs.
    `groups_per_class` (classes,) is in how many units each class occurs, and `folds` the number of folds of a run.
    """

    block: Ints
    stratum: Ints
    images: Floats
    hits: Floats
    said: Floats
    groups_per_class: tuple[int, ...]
    folds: int

    @cached_property
    def weights(self) -> Floats:
        """Weights (1 + blocks, blocks): of all blocks; then without each, the others of its stratum weighted up."""
        sizes = self.images.sum(axis=1)
        totals = np.bincount(self.stratum, sizes)[self.stratum]
        rest = totals - sizes
        up = np.divide(totals, rest, out=np.ones_like(totals), where=rest > 0)
        weights = np.where(self.stratum[:, None] == self.stratum[None, :], up[:, None], 1.0)
        np.fill_diagonal(weights, 0.0)
        return np.concatenate([np.ones((1, len(weights))), weights])

    def in_blocks(self, model: Model) -> tuple[Run, ...]:
        """Return a model's runs with blocks as their units."""
        return tuple(replace(run, unit=self.block[run.unit]) for run in model.runs)

    def informative(self, metric: Metric) -> Floats:
        """Return how many images of each block (blocks,) a metric is about."""
        if metric.name == "patient_accuracy":  # in which each counts once
            return np.asarray(np.sign(self.images.sum(axis=1)))
        return np.asarray(self.images.sum(axis=1) if metric.classes is None else self.images[:, metric.classes])

    def spread(self, left_out: Floats, metric: Metric) -> Spread:
        """Return variance and degrees of freedom from estimates without each block (..., blocks).

        The models of k folds share training images. Leaving out test groups does not show the variance of that, so that
        the variance is multiplied by 1 + k / (k - 1) (Nadeau and Bengio 2003).
        """
        total, about = NO_SPREAD, self.informative(metric)
        # Where one class counts, a few images of it in a group of another class make no stratum of their own.
        strata = self.stratum if metric.classes is None else np.zeros_like(self.stratum)
        for stratum in np.unique(strata):
            inside = (strata == stratum) & (about > 0)
            if not (count := int(inside.sum())):
                continue
            sizes = about[inside]
            around = left_out[..., inside] - left_out[..., inside].mean(axis=-1, keepdims=True)
            # Rounding errors of a constant are no spread.
            around = np.where(np.abs(around) < _ROUNDING * (1 + np.abs(left_out[..., inside])), 0.0, around)
            variance = (count - 1) / count * (around**2).sum(axis=-1)
            total = total + Spread(variance, max(effective_number(sizes) - 1, _SMALLEST_DF))
        inflation = 1 + self.folds / (self.folds - 1) if self.folds > 1 else 1.0
        return Spread(total.variance * inflation, total.df)

    def clustering(self, left_out: Floats, metric: Metric) -> dict[str, float]:
        """Return the design effect of clustering on the variance of a share, and the intraclass correlation from it.

        By Kish's formula the effect is 1 + (sum n^2 / sum n - 1) * icc.
        """
        if metric.name not in SHARES_OF_HITS:
            return {}
        inside = slice(None) if metric.classes is None else [metric.classes]
        about, right = self.images[:, inside], self.hits[:, inside]
        totals, sizes = about.sum(axis=0), about.sum(axis=1)
        recalls = np.divide(right.sum(axis=0), totals, out=np.zeros_like(totals), where=totals > 0)
        alone, apart = (totals * recalls * (1 - recalls)).sum() / totals.sum() ** 2, (sizes**2).sum() / sizes.sum() - 1
        if not alone > 0 or not apart > 0:
            return {}
        effect = float(replace(self, folds=1).spread(left_out, metric).variance / alone)
        return {"design_effect": effect, "icc": (effect - 1) / apart}

    def guarded_value(self, code: int, alpha: float, prevalence: float | None) -> float:
        """Return the predictive value of a class at the lowest recall of the other one that `interval` allows for."""
        totals, groups = self.images.sum(axis=0), np.maximum((self.images > 0).sum(axis=0), 1)
        recalls = np.divide(self.hits.sum(axis=0), totals, out=np.ones_like(totals), where=totals > 0)
        share = totals[1] / totals.sum() if prevalence is None else prevalence
        shares = np.array([1 - share, share])
        false = (1 - recalls[1 - code] * alpha ** (1 / groups[1 - code])) * shares[1 - code]
        return float(recalls[code] * shares[code] / max(recalls[code] * shares[code] + false, 1e-300))

    def too_few(self, metric: Metric, class_names: tuple[str, ...], unit: str) -> str:
        """Return why a metric gets no interval: too few units in a class that it depends on; "" if it gets one."""
        needed = range(len(class_names)) if metric.classes is None else [metric.classes]
        count = self.groups_per_class
        # With more than two classes a metric is about those that occur; means over images need no second class.
        least = int(len(class_names) > 2 or metric.name in ("accuracy", "patient_accuracy", "loss", "brier", "ece"))
        few = [
            f"{count[c]} of class {class_names[c]} ({FEWEST_GROUPS - count[c]} missing)"
            for c in needed
            if least <= count[c] < FEWEST_GROUPS
        ]
        if few:
            return f"fewer than {FEWEST_GROUPS} {unit}s: {', '.join(few)}"
        sizes = np.sign(self.images) if metric.name == "patient_accuracy" else self.images
        effective = {class_names[c]: effective_number(sizes[:, c]) for c in needed if count[c]}
        owned = [f"{number:.1f} of class {name}" for name, number in effective.items() if number < FEWEST_EFFECTIVE]
        return f"effective number of {unit}s below {FEWEST_EFFECTIVE:g}: {', '.join(owned)}" if owned else ""

    def with_fewer_errors(self, metric: Metric) -> tuple[Floats, Spread]:
        """Return values and spreads of a metric of hits: for these predictions, then for some with fewer errors.

        The latter are without the errors of some of the best blocks, of one block, or of all blocks but one. They are
        there so that one more error, although it may lower the variance, hardly ever makes an interval tighter.
        """
        about = self.images.copy()
        if metric.classes is not None:
            about[:, np.arange(about.shape[1]) != metric.classes] = 0.0
        errors = about - np.minimum(self.hits, about)
        sizes, wrong = about.sum(axis=1), errors.sum(axis=1)
        order = np.lexsort((self.stratum, -sizes, wrong / np.maximum(sizes, 1e-300)))
        order = order[wrong[order] > 0]
        order = order[np.unique(np.linspace(0, max(len(order) - 1, 0), min(len(order), _MOST_STEPS)).astype(int))]
        one = np.eye(len(about))[order]
        kept = [np.ones((1, len(about))), 1 - np.cumsum(one, axis=0), one, 1 - one]
        nested = about - np.concatenate(kept)[:, :, None] * errors
        hits, images = self.weights @ nested, self.weights @ about
        with np.errstate(invalid="ignore", divide="ignore"):
            recalls = metric.name == "balanced_accuracy"
            found = np.nanmean(hits / images, axis=-1) if recalls else hits.sum(axis=-1) / images.sum(axis=-1)
        return found[:, 0], self.spread(found[:, 1:], metric)


def effective_number(sizes: NDArray[Any]) -> float:
    """Return Kish's effective number of groups of these sizes: of equally large groups with the same variance."""
    return float(sizes.sum() ** 2 / max((sizes**2).sum(), 1e-300))


def resampling_of(models: list[Model]) -> Resampling:
    """Return the blocks to leave out for models whose runs share one coding of units."""
    runs = [run for model in models for run in model.runs]
    units, classes = len(models[0].units), runs[0].probabilities.shape[1]
    counts = np.zeros((3, units, classes))
    for run in runs:
        right = run.predicted == run.labels
        for place, (column, weight) in enumerate(((run.labels, None), (run.labels, right), (run.predicted, None))):
            summed = np.bincount(run.unit * classes + column, weight, units * classes)
            counts[place] += summed.reshape(units, classes) / len(runs)
    stratum = np.unique(counts[0].argmax(axis=1), return_inverse=True)[1]
    block, first, random = np.arange(units), 0, np.random.default_rng(0)  # so that the order of images does not matter
    if units > _MOST_UNITS:
        for code in range(int(stratum.max()) + 1):
            inside = random.permutation(np.flatnonzero(stratum == code))
            count = min(len(inside), max(_MOST_UNITS * len(inside) // units, FEWEST_GROUPS))
            block[inside] = first + np.arange(len(inside)) * count // len(inside)
            first += count
        stratum = stratum[np.unique(block, return_index=True)[1]]
    tables = np.zeros((3, len(stratum), classes))
    np.add.at(tables.swapaxes(0, 1), block, counts.swapaxes(0, 1))
    groups, folds = tuple(int(n) for n in (counts[0] > 0).sum(axis=0)), max(len(np.unique(run.fold)) for run in runs)
    return Resampling(block, stratum.astype(np.int64), tables[0], tables[1], tables[2], groups, folds)


def interval(
    metric: Metric, value: float, left_out: Floats, resampling: Resampling, level: float, seeds: Spread = NO_SPREAD,
    prevalence: float | None = None,
) -> tuple[float, float, Spread]:  # fmt: skip
    """Return the interval of a value on its metric's scale, NaN where the data do not bound it, and its spread.

    `left_out` are the estimates without each block (blocks,), `seeds` is the spread that seeds add, and `prevalence`
    that of a predictive value, None for that of the images.

    For a share, the end on the side of the errors is the farther of two: the jackknife's, and one that allows for a
    share q of all patients being wrong as wholes. With a probability of (1 - q)^m none of them is among the m groups.
    This is 1 - level for a metric of one class, and half of it for others (Clopper and Pearson 1934, for no success in
    m trials). Where the second is farther, the other end is that of a one-sided interval.
    """
    spread, alpha, mirrored = resampling.spread(left_out, metric) + seeds, 1 - level, metric.better == "low"
    lowest, width = metric.lowest, metric.highest - metric.lowest
    if metric.scale != "share":
        reach = float(stats.t.ppf(1 - alpha / 2, spread.df) * np.sqrt(spread.variance)) if spread.variance else 0.0
        ends = np.array([value - reach, value + reach])
        if metric.scale == "log":  # the upper end may lie beyond the largest possible loss
            ends = value * np.exp(np.array([-1, 1]) * min(reach / value, 700.0)) if value else np.full(2, np.nan)
            ends = ends if ends[1] <= -np.log(CLIP) else np.full(2, np.nan)
        return float(ends[0]), float(ends[1]), spread
    share = abs((value - (metric.highest if mirrored else lowest)) / width)
    of_share = Spread(spread.variance / width**2, spread.df)
    # A predictive value is about the groups with such predictions, although it varies with the others too.
    of_value = resampling.said[:, int(metric.name == "ppv")] if metric.name in ("ppv", "npv") else None
    about = resampling.informative(metric) if of_value is None else of_value
    groups = int(np.isin(resampling.block, np.flatnonzero(about)).sum())
    low, high = _ends(share, of_share, alpha / 2)
    if share == 0:
        high = 1 - (alpha / 2) ** (1 / groups)
    # If all images of several classes get one predicted class, a value does not depend on the patients.
    constant = np.count_nonzero(resampling.said.sum(axis=0)) == 1 < np.count_nonzero(resampling.images.sum(axis=0))
    if metric.better == "":
        low = (alpha / 2) ** (1 / groups) if share == 1 else low
    elif constant and not spread.variance and (share < 1 or metric.name not in ("auroc", "auprc")):
        high = low = share
    else:
        if metric.name in (*SHARES_OF_HITS, "balanced_accuracy"):
            values, spreads = resampling.with_fewer_errors(metric)
            low = min(low, *_ends(values, spreads, alpha / 2)[0])
        guard = share * (alpha / 2 if metric.classes is None else alpha) ** (1 / groups)
        if of_value is not None:  # the false calls come from the other class
            guard = min(guard, resampling.guarded_value(int(metric.name == "ppv"), alpha, prevalence))
        if guard < low:
            low, high = guard, max(_ends(share, of_share, alpha)[1], share)
    ends = lowest + width * (1 - np.array([high, low]) if mirrored else np.array([low, high]))
    return float(ends[0]), float(ends[1]), spread


def _ends(share: Any, spread: Spread, tail: float) -> tuple[Any, Any]:
    """Return where `tail` of the distribution lies below, and above, of shares: Wilson's interval (1927).

    It is that of as many independent images as have this variance, with a t quantile.
    """
    share, variance = np.asarray(share), np.asarray(spread.variance)
    inside = (share > 0) & (share < 1) & (variance > 0)
    safe = np.where(inside, share, 0.5)
    ratio = stats.t.ppf(1 - tail, np.where(inside, spread.df, 1.0)) ** 2 * variance / (safe * (1 - safe))
    reach = np.sqrt(ratio * safe * (1 - safe) + ratio**2 / 4)
    ends = (safe + ratio / 2 + np.multiply.outer([-1, 1], reach)) / (1 + ratio)
    return tuple(np.where(inside, ends, share))
