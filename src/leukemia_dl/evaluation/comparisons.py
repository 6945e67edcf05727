"""`compare`: which backbones differ, on paired predictions of the same images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any, get_args

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import stats

from leukemia_dl.checks import choice, real_number
from leukemia_dl.errors import DataError, SettingsError
from leukemia_dl.evaluation.evaluate import ESTIMANDS, Estimand, Estimates
from leukemia_dl.evaluation.image_level import delong_test, mcnemar_test
from leukemia_dl.evaluation.intervals import Resampling, Spread, resampling_of
from leukemia_dl.evaluation.metrics import metric as find_metric
from leukemia_dl.evaluation.predictions import Model, class_names_of, models_of, tidy

__all__ = ["UNCORRECTED", "compare", "holm", "p_in_words", "seeds_in_words", "sign_flip_test"]

UNCORRECTED = ", without correction for multiple comparisons"
_FLIPS, _SIGNS_AT_ONCE = 20_000, 5_000_000
_POWER = 0.8
_COLUMNS = (
    "first", "second", "metric", "value_first", "value_second", "difference", "low", "high", "standard_error",
    "degrees_of_freedom", "p", "p_holm", "p_sign_flip", "test", "detectable", "images", "groups", "seeds", "role",
    "estimand", "sentence", "reason",
)  # fmt: skip


def compare(
    frame: pd.DataFrame,
    metric: str = "accuracy",
    *,
    backbones: str | Sequence[str] | None = None,
    descriptive: str | Sequence[str] = (),
    level: float = 0.95,
    estimand: Estimand = "models",
    side: str = "test",
) -> pd.DataFrame:
    """Compare every pair of backbones on the images that both have predicted.

    The difference `first - second` gets the same jackknife as a single value, on the linear scale, and its t test.
    Holm's correction is over all pairs of backbones for the one primary metric, which is to be chosen before the
    results are seen; pairs with a baseline, and metrics in `descriptive`, are described without a corrected p. For
    accuracy `p_sign_flip` stands beside it: the share of all ways to swap the two backbones within whole groups whose
    difference is as large (20,000 drawn ways with more than 14 groups), over means of the seeds.

    Where nothing is known of subjects, images are taken as independent: the columns are `low_image_level` and
    `high_image_level`, and `p` is McNemar's exact test for accuracy, DeLong's for AUROC. If patients have several
    images these find differences six to nine times in ten where there are none.

    Args:
        frame: The prediction frame, see `evaluate`.
        metric: The primary metric.
        backbones: Which ones; None for all. Fewer pairs are corrected less: choose before the results are seen.
        descriptive: Further metrics.
        level: Of the intervals; `1 - level` is what a sentence calls a difference at.
        estimand: "models" or "procedure", see `evaluate`.
        side: Which rows of the column `side`.

    Returns:
        A row per pair and metric: `first, second, metric, value_first, value_second, difference, low, high,
        standard_error, degrees_of_freedom, p, p_holm, p_sign_flip, test, detectable` (the difference that would be
        detected with a power of 80 %), `images, groups, seeds, role` ("confirmatory" or "descriptive"), `estimand,
        sentence, reason`.

    Raises:
        DataError: If the frame is not one of predictions, or names no samples.
        SettingsError: If a metric or backbone does not exist, or there are fewer than two.

    Examples:
        >>> import pandas as pd
        >>> import leukemia_dl as ldl
        >>> frame = pd.DataFrame({"sample": range(40), "label": ["hem"] * 20 + ["all"] * 20})
        >>> frame["group"] = "P" + (frame["sample"] // 2).astype(str)
        >>> one = frame.assign(backbone="cnn", probability_hem=[0.8] * 14 + [0.3] * 6 + [0.4] * 16 + [0.6] * 4)
        >>> other = frame.assign(backbone="vgg16", probability_hem=[0.7] * 17 + [0.2] * 3 + [0.1] * 16 + [0.9] * 4)
        >>> both = pd.concat([one, other], ignore_index=True)
        >>> both["probability_all"] = 1 - both["probability_hem"]
        >>> print(ldl.compare(both)["sentence"][0])  # doctest: +NORMALIZE_WHITESPACE
        On 40 images of 20 groups of patients, accuracy is 0.750 for cnn and 0.825 for vgg16: a difference of -0.075
        (95% interval of this pair alone -0.196 to +0.046; p = 0.193 by the jackknife over groups), not significant
        at the 5% level; a difference of 0.168 would be detected with a power of 80%.
    """
    frame = tidy(frame)
    primary, class_names = find_metric(metric).name, class_names_of(frame)
    further = [descriptive] if isinstance(descriptive, str) else list(descriptive or ())
    names = [primary, *(find_metric(name).name for name in further if name != primary)]
    real_number("level", level, 0.5, 1, "[)")
    choice("estimand", estimand, get_args(Estimand))
    models = models_of(frame, side, backbones)
    if len(models) < 2:
        raise SettingsError(f"A comparison needs two backbones. The frame has: {models[0].name}.")
    if "sample" not in frame:
        raise DataError("A comparison is of the same images: the predictions need a column sample that names them.")
    pairs = [_paired(*pair) for pair in combinations(models, 2)]
    rows = [_row(pair, name, class_names, level, estimand) for name in names for pair in pairs]
    confirmatory = [
        row for row in rows if row["metric"] == primary and set(row["kinds"]) == {"backbone"} and not np.isnan(row["p"])
    ]
    for row, corrected in zip(confirmatory, holm([row["p"] for row in confirmatory]), strict=True):
        row |= {"p_holm": corrected, "role": "confirmatory"}
    for row in rows:
        row["sentence"] = _sentence(row, level, len(confirmatory), models[0].by_group, estimand)
    result = pd.DataFrame(rows)[list(_COLUMNS)]
    ends = {} if models[0].by_group else {"low": "low_image_level", "high": "high_image_level"}
    return result.rename(columns=ends).astype({"groups": "Int64"})


def holm(p: Sequence[float]) -> list[float]:
    """Return p values corrected for their number (Holm 1979)."""
    values = np.asarray(p, dtype=np.float64)
    order = np.argsort(values, kind="stable")
    stepped = np.maximum.accumulate(values[order] * np.arange(len(values), 0, -1))
    result = np.empty_like(values)
    result[order] = np.minimum(stepped, 1.0)
    return [float(value) for value in result]


def sign_flip_test(differences: NDArray[np.float64], seed: int = 0) -> float:
    """Return the two-sided p of a sum of differences of groups (groups,) under random signs.

    Exact for up to 14 groups, otherwise from 20,000 draws, with one added (Phipson and Smyth 2010). It asks whether
    swapping the two backbones within whole groups could make a sum as large.
    """
    differences = differences[differences != 0]
    if not len(differences):
        return 1.0
    observed = abs(float(differences.sum())) * (1 - 1e-12)
    if len(differences) <= 14:
        signs = 1 - 2 * ((np.arange(2 ** len(differences))[:, None] >> np.arange(len(differences))) & 1)
        return float((np.abs(signs @ differences) >= observed).mean())
    random, found = np.random.default_rng(seed), 0
    at_once = max(_SIGNS_AT_ONCE // len(differences), 1)
    for first in range(0, _FLIPS, at_once):
        signs = random.integers(0, 2, (min(at_once, _FLIPS - first), len(differences)), dtype=np.int8) * 2 - 1
        found += int((np.abs(signs @ differences) >= observed).sum())
    return (1 + found) / (1 + _FLIPS)


@dataclass(frozen=True, eq=False)
class _Pair:
    first: Model
    second: Model
    resampling: Resampling | None  # None: they have no image in common
    left_out: int


def _paired(first: Model, second: Model) -> _Pair:
    """Return two models on the images that all runs of both have, with one coding of units."""
    runs = [*first.runs, *second.runs]
    common = set(runs[0].samples).intersection(*(run.samples for run in runs[1:]))
    left_out = len(set().union(*(run.samples for run in runs))) - len(common)
    names: dict[str, int] = {}

    def recoded(model: Model) -> Model:
        parts = []
        for run in model.runs:
            keep = np.array([sample in common for sample in run.samples])
            units = [names.setdefault(model.units[code], len(names)) for code in run.unit[keep]]
            parts.append(replace(run.at(keep), unit=np.array(units, np.int64)))
        return replace(model, runs=tuple(parts))

    one, other = recoded(first), recoded(second)
    one, other = (replace(model, units=tuple(names)) for model in (one, other))
    return _Pair(one, other, resampling_of([one, other]) if common else None, left_out)


def _row(pair: _Pair, name: str, class_names: tuple[str, ...], level: float, estimand: str) -> dict[str, Any]:
    first, second, resampling = pair.first, pair.second, pair.resampling
    unit = "group" if first.by_group else "image"
    row = _blank(pair, name) | {"estimand": ESTIMANDS[estimand].format(units=unit + "s")}
    if resampling is None:
        return row
    found = [Estimates(model, resampling, [name]) for model in (first, second)]
    row |= {"value_first": found[0].value(name), "value_second": found[1].value(name)}
    row["difference"] = row["value_first"] - row["value_second"]
    row["reason"] = f"{pair.left_out} images are left out that not all runs have" if pair.left_out else ""
    why = resampling.too_few(find_metric(name), class_names, unit)
    left_out = found[0].left_out[name] - found[1].left_out[name]
    if not why and np.isnan([row["difference"], *left_out]).any():
        why = "not defined for both, or not without one of the groups"
    seeds = [one.between_seeds(name) for one in found]
    if not why and estimand == "procedure" and None in seeds:
        why = "one seed: nothing is known of the spread between seeds"
    if why:
        return row | {"reason": "; ".join(filter(None, [why, row["reason"]]))}
    spread = resampling.spread(left_out)
    if estimand == "procedure":
        spread = sum((seed for seed in seeds if seed is not None), spread)
    row |= _test(row["difference"], spread, level) | {"test": f"the jackknife over {unit}s"}
    if name == "accuracy":
        row["p_sign_flip"] = sign_flip_test(_per_unit_gain(pair)) if first.by_group else float("nan")
    return row if first.by_group else row | _image_level(pair, name)


def _blank(pair: _Pair, name: str) -> dict[str, Any]:
    first, second = pair.first, pair.second
    return dict.fromkeys(_COLUMNS, float("nan")) | {
        "first": first.name, "second": second.name, "kinds": (first.kind, second.kind), "metric": name, "test": "",
        "images": len(first.runs[0].samples), "groups": len(first.units) if first.by_group else pd.NA,
        "seeds": f"{len(first.runs)}, {len(second.runs)}", "role": "descriptive", "reason": "no image in common",
    }  # fmt: skip


def _test(difference: float, spread: Spread, level: float) -> dict[str, Any]:
    error = spread.variance**0.5
    if error == 0 and difference != 0:
        return {"standard_error": 0.0, "reason": "every group has the same difference: nothing is known of its spread"}
    if error == 0:
        return {"low": 0.0, "high": 0.0, "standard_error": 0.0, "p": 1.0, "detectable": 0.0}
    quantile = float(stats.t.ppf((1 + level) / 2, spread.df))
    return {
        "low": difference - quantile * error, "high": difference + quantile * error, "standard_error": error,
        "degrees_of_freedom": spread.df, "p": float(2 * stats.t.sf(abs(difference) / error, spread.df)),
        "detectable": (quantile + float(stats.t.ppf(_POWER, spread.df))) * error,
    }  # fmt: skip


def _per_unit_gain(pair: _Pair) -> NDArray[np.float64]:
    """Return per unit by how many images the first is right more often, means over seeds."""
    count, models = len(pair.first.units), (pair.first, pair.second)
    hits = [[np.bincount(run.unit, run.predicted == run.labels, count) for run in model.runs] for model in models]
    return np.asarray(np.mean(hits[0], axis=0) - np.mean(hits[1], axis=0))


def _image_level(pair: _Pair, name: str) -> dict[str, Any]:
    one, other = pair.first.runs[0], pair.second.runs[0]
    if len(pair.first.runs) > 1 or len(pair.second.runs) > 1:
        return {}
    place = {sample: row for row, sample in enumerate(other.samples)}
    order = np.array([place[sample] for sample in one.samples])
    if name == "accuracy":
        p = mcnemar_test(one.predicted == one.labels, (other.predicted == other.labels)[order])
        return {"p": p, "test": "McNemar's exact test"}
    if name == "auroc" and one.probabilities.shape[1] == 2 and len({*one.fold, *other.fold}) == 1:
        p = delong_test(one.labels, one.probabilities[:, 1], other.probabilities[order, 1])
        return {"p": p, "test": "DeLong's test"}
    return {}


def _sentence(row: dict[str, Any], level: float, pairs: int, by_group: bool, estimand: str) -> str:
    """Return the result of a comparison as a sentence; where nothing could be tested the reason comes first."""
    title = row["metric"].replace("_", " ").replace("auroc", "AUROC")
    where = f"On {row['images']:,} images" + (f" of {row['groups']} groups of patients" if by_group else "")
    runs = zip((row["first"], row["second"]), row["seeds"].split(", "), row["kinds"], strict=True)
    where += seeds_in_words({name: int(count) for name, count, kind in runs if kind != "baseline"})
    shown = f"{title} is {row['value_first']:.3f} for {row['first']} and {row['value_second']:.3f} for {row['second']}"
    if not row["images"]:
        return f"Not testable: {row['first']} and {row['second']} have no image in common."
    if np.isnan(row["p"]):
        return f"Not testable, {row['reason']}. {where}, {shown}."
    corrected = not np.isnan(row["p_holm"])
    p = f"p {p_in_words(row['p'])} by {row['test']}" + ", spread between seeds included" * (estimand == "procedure")
    if corrected and pairs > 1:
        p += f", {p_in_words(row['p_holm']).removeprefix('= ')} after Holm's correction for {pairs} pairs"
    text = (
        f"{where}, {shown}: a difference of {row['difference']:+.3f} ({100 * level:g}% interval of this pair alone "
        f"{row['low']:+.3f} to {row['high']:+.3f}; {p})"
    )
    if not corrected:
        text += UNCORRECTED
    elif row["p_holm"] > 1 - level:
        text += f", not significant at the {100 * (1 - level):.3g}% level; a difference of {row['detectable']:.3f} "
        text += f"would be detected with a power of {_POWER:.0%}"
    elif find_metric(row["metric"]).better:
        high = find_metric(row["metric"]).better == "high"
        better = row["first"] if (row["difference"] > 0) == high else row["second"]
        text += f": {better} is better at the {100 * (1 - level):.3g}% level"
    return text + (". Images are taken as independent, which makes such results too certain." if not by_group else ".")


def seeds_in_words(counts: Mapping[str, int]) -> str:
    """Return how many seeds two have, by their names, as a part of a sentence; "" where that is one."""
    numbers = set(counts.values())
    if numbers <= {1}:
        return ""
    if len(counts) == 2 and len(numbers) == 1:
        return f", {numbers.pop()} seeds each"
    return ", " + " and ".join(f"{count} seed{'s' * (count > 1)} of {name}" for name, count in counts.items())


def p_in_words(p: float) -> str:
    """Return a p value with its relation, such as "= 0.030"."""
    return "< 0.001" if p < 0.001 else "= 1" if p > 0.9995 else f"= {p:.3f}"
