"""Intervals over groups of subjects by the delete-one-group jackknife; docs/explanation/intervals.md says why.

The jackknife is stratified by class (on C-NMC 2019 every group has one class) and holds the class shares: where a group
is left out, the others of its class are weighted up. Variance per class (Efron and Stein 1981; Rust and Rao 1996, JKn),

    v_c = (m_c - 1) / m_c * sum over groups g of c of (theta_(-g) - mean of theta_(-.))^2,

is summed over classes. A t quantile is taken at Satterthwaite's degrees of freedom, (sum v_c)^2 / sum(v_c^2 / d_c),
where d_c = (sum n_g)^2 / sum n_g^2 - 1: Kish's effective number of groups, less one, since groups of 9 and of 757
images do not carry equal information. The scale is the logit for values between two bounds, the log for losses.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from scipy import stats
from scipy.special import expit, logit

from leukemia_dl.evaluation.metrics import Floats, Ints, Metric, Run
from leukemia_dl.evaluation.predictions import FEWEST_GROUPS, Model

_MOST_UNITS = 400  # with more, blocks of them are left out: one of very many images gives no better variance
_SMALLEST_DF, _ROUNDING = 1e-2, 1e-12


@dataclass(frozen=True, eq=False)
class Spread:
    """Variance of an estimate and the degrees of freedom of that variance."""

    variance: float
    df: float

    def __add__(self, other: Spread) -> Spread:
        """Return the spread of a sum of independent parts (Satterthwaite 1946)."""
        variance = self.variance + other.variance
        parts = [part.variance**2 / part.df for part in (self, other) if part.variance > 0]
        return Spread(variance, variance**2 / sum(parts) if variance > 0 else self.df)


@dataclass(frozen=True, eq=False)
class Resampling:
    """The blocks that are left out one at a time, and their strata.

    A block is one unit, but for very many units: `block` (units,) is the block of each. `stratum` and `sizes` (numbers
    of images) are of each block (blocks,); `groups_per_class` (classes,) is in how many units each class occurs.
    """

    block: Ints
    stratum: Ints
    sizes: Floats
    groups_per_class: tuple[int, ...]

    @property
    def fewest(self) -> int:
        """Return the number of units of the class that has the fewest of those that occur."""
        return min(count for count in self.groups_per_class if count)

    @cached_property
    def leave_one_out(self) -> Floats:
        """Weights (blocks, blocks): one block is absent, the others of its stratum make up for its images."""
        totals = np.bincount(self.stratum, self.sizes)[self.stratum]
        rest = totals - self.sizes
        up = np.divide(totals, rest, out=np.ones_like(totals), where=rest > 0)
        weights = np.where(self.stratum[:, None] == self.stratum[None, :], up[:, None], 1.0)
        np.fill_diagonal(weights, 0.0)
        return weights

    def in_blocks(self, model: Model) -> tuple[Run, ...]:
        """Return a model's runs with blocks as their units."""
        return tuple(replace(run, unit=self.block[run.unit]) for run in model.runs)

    def spread(self, left_out: Floats) -> Spread:
        """Return variance and degrees of freedom from estimates without each block (blocks,)."""
        total = Spread(0.0, np.inf)
        for stratum in range(int(self.stratum.max()) + 1):
            inside = self.stratum == stratum
            count, sizes = int(inside.sum()), self.sizes[inside]
            around = left_out[inside] - left_out[inside].mean()
            # Rounding errors of a constant are no spread.
            around[np.abs(around) < _ROUNDING * (1 + np.abs(left_out[inside]))] = 0.0
            variance = (count - 1) / count * float((around**2).sum())
            effective = float(sizes.sum() ** 2 / (sizes**2).sum())
            total = total + Spread(variance, max(effective - 1, _SMALLEST_DF))
        return total

    def too_few(self, metric: Metric, class_names: tuple[str, ...], unit: str) -> str:
        """Return why a metric gets no interval: fewer than five units in a class that it depends on; "" if none."""
        needed = range(len(class_names)) if metric.classes is None else [metric.classes]
        count = self.groups_per_class
        # With more than two classes a metric is about those that occur; means over images need no second class.
        least = int(len(class_names) > 2 or metric.name in ("accuracy", "loss", "brier", "ece"))
        few = [f"{count[c]} of class {class_names[c]}" for c in needed if least <= count[c] < FEWEST_GROUPS]
        return f"fewer than {FEWEST_GROUPS} {unit}s: {', '.join(few)}" if few else ""


def resampling_of(models: list[Model]) -> Resampling:
    """Return the blocks to leave out for models whose runs share one coding of units.

    Strata are the classes if every unit has one class; otherwise there is one stratum.
    """
    runs = [run for model in models for run in model.runs]
    units, classes = len(models[0].units), runs[0].probabilities.shape[1]
    counts = np.zeros((units, classes))
    for run in runs:
        counts += np.bincount(run.unit * classes + run.labels, minlength=units * classes).reshape(units, classes)
    counts /= len(runs)
    pure = bool(((counts > 0).sum(axis=1) <= 1).all())
    stratum = np.unique(counts.argmax(axis=1), return_inverse=True)[1] if pure else np.zeros(units, np.int64)
    block, first, random = np.arange(units), 0, np.random.default_rng(0)  # so that the order of images has no say
    if units > _MOST_UNITS:
        for code in range(int(stratum.max()) + 1):
            inside = random.permutation(np.flatnonzero(stratum == code))
            count = min(len(inside), max(_MOST_UNITS * len(inside) // units, FEWEST_GROUPS))
            block[inside] = first + np.arange(len(inside)) * count // len(inside)
            first += count
        stratum = stratum[np.unique(block, return_index=True)[1]]
    sizes = np.bincount(block, counts.sum(axis=1)).astype(np.float64)
    return Resampling(block, stratum.astype(np.int64), sizes, tuple(int(n) for n in (counts > 0).sum(axis=0)))


def bounds(metric: Metric, value: float, spread: Spread, level: float, fewest: int) -> tuple[float, float]:
    """Return the interval of a value on its metric's scale.

    Where a value reaches its bound all units agree and the jackknife has no variance: the other end is then the exact
    one of `fewest` successes in `fewest` trials (Clopper and Pearson 1934), as if units were right or wrong as wholes.
    """
    lowest, highest, width = metric.lowest, metric.highest, metric.highest - metric.lowest
    if metric.scale == "logit" and value in (lowest, highest):
        reach = width * float((1 - level) / 2) ** (1 / fewest)
        return (lowest + reach, value) if value == highest else (value, highest - reach)
    error = float(np.sqrt(spread.variance))
    if metric.scale == "log" and value == 0:
        return float("nan"), float("nan")
    if error == 0:
        return value, value
    reach = float(stats.t.ppf((1 + level) / 2, spread.df)) * error
    if metric.scale == "linear":
        return value - reach, value + reach
    if metric.scale == "log":
        factor = float(np.exp(min(reach / value, 700.0)))
        return value / factor, value * factor
    share = (value - lowest) / width
    reach /= width * share * (1 - share)
    low, high = lowest + width * expit(logit(share) + np.array([-reach, reach]))
    return float(low), float(high)
