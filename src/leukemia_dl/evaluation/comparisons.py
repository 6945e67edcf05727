"""`compare`: which backbones differ, on paired predictions of the same images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from leukemia_dl.errors import DataError, SettingsError
from leukemia_dl.evaluation.evaluate import ONE_SEED, Estimand, Estimates, check_settings, estimand_in_words
from leukemia_dl.evaluation.image_level import delong_test, mcnemar_test
from leukemia_dl.evaluation.intervals import Spread, resampling_of
from leukemia_dl.evaluation.metrics import metric as find_metric
from leukemia_dl.evaluation.predictions import Floats, Model, class_names_of, models_of, validated_predictions

__all__ = ["UNCORRECTED", "compare", "compare_pair", "comparison_in_words", "holm", "sign_flip_test"]

UNCORRECTED = ", without correction for multiple comparisons"
_FLIPS, _SIGNS_AT_ONCE = 20_000, 5_000_000
_POWER = 0.8
_COLUMNS = (
    "first", "second", "metric", "value_first", "value_second", "difference", "low", "high", "unit", "standard_error",
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
    results are seen; pairs with a baseline, and metrics in `descriptive`, have no corrected p. For accuracy
    `p_sign_flip` is the share of all ways to swap the two backbones within whole groups whose difference is as large
    (20,000 drawn ways with more than 14 groups), over means of the seeds.

    Where subjects are unknown, images are taken as independent (`unit` is "image"), and `p` is McNemar's exact test for
    accuracy, DeLong's for AUROC. If patients have several images, these find differences six to nine times in ten where
    there are none.

    Args:
        frame: The prediction frame, see `evaluate`.
        metric: The primary metric.
        backbones: Which ones; None for all. Fewer pairs are corrected less: choose before the results are seen.
        descriptive: Further metrics.
        level: Of the intervals; `1 - level` is the significance level of the sentences.
        estimand: "models" or "procedure", see `evaluate`.
        side: Which rows of the column `side`.

    Returns:
        A row per pair and metric: `first, second, metric, value_first, value_second, difference, low, high, unit,
        standard_error, degrees_of_freedom, p, p_holm, p_sign_flip, test, detectable` (the difference that would be
        detected with a power of 80%), `images, groups, seeds, role` ("confirmatory" or "descriptive"), `estimand,
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
    frame = validated_predictions(frame)
    primary, class_names = find_metric(metric).name, class_names_of(frame)
    further = [descriptive] if isinstance(descriptive, str) else list(descriptive or ())
    names = [primary, *(find_metric(name).name for name in further if name != primary)]
    check_settings(level, estimand)
    models = models_of(frame, side, backbones)
    if len(models) < 2:
        raise SettingsError(f"A comparison needs two backbones. The frame has: {models[0].name}.")
    pairs = list(combinations(models, 2))
    found = [compare_pair(*pair, names, class_names, level, estimand) for pair in pairs]
    rows = [of_pair[place] for place in range(len(names)) for of_pair in found]
    confirmatory = [
        row
        for row, pair in zip(rows, pairs * len(names), strict=True)
        if row["metric"] == primary and all(one.kind == "backbone" for one in pair) and not np.isnan(row["p"])
    ]
    for row, corrected in zip(confirmatory, holm([row["p"] for row in confirmatory]), strict=True):
        row |= {"p_holm": corrected, "role": "confirmatory"}
    for row, pair in zip(rows, pairs * len(names), strict=True):
        row["sentence"] = _sentence(row, pair, level, len(confirmatory))
    return pd.DataFrame(rows, columns=_COLUMNS).astype({"groups": "Int64"})


def holm(p: Sequence[float]) -> list[float]:
    """Return p values corrected for their number (Holm 1979)."""
    values = np.asarray(p, dtype=np.float64)
    order = np.argsort(values, kind="stable")
    stepped = np.maximum.accumulate(values[order] * np.arange(len(values), 0, -1))
    result = np.empty_like(values)
    result[order] = np.minimum(stepped, 1.0)
    return [float(value) for value in result]


def sign_flip_test(differences: Floats, seed: int = 0) -> float:
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


def compare_pair(
    first: Model, second: Model, names: Sequence[str], class_names: tuple[str, ...], level: float, estimand: str
) -> list[dict[str, Any]]:
    """Return the rows of `compare` of two models, one per metric, without their sentences."""
    if not first.named:
        raise DataError("A comparison is of the same images: the predictions need a column sample that names them.")
    left_out, first, second = _on_common_images(first, second)
    facts: dict[str, Any] = {
        "first": first.name, "second": second.name, "unit": first.unit, "test": "", "role": "descriptive",
        "images": len(first.runs[0].samples), "groups": len(first.units) if first.by_group else pd.NA,
        "seeds": f"{len(first.runs)}, {len(second.runs)}", "estimand": estimand_in_words(estimand, first.unit),
    }  # fmt: skip
    facts |= dict.fromkeys(("value_first", "value_second", "difference", "p", "p_holm", "p_sign_flip"), np.nan)
    if not facts["images"]:
        return [facts | {"metric": name, "reason": "no image in common"} for name in names]
    facts["reason"] = f"{left_out} images are left out that not all runs have" if left_out else ""
    resampling = resampling_of([first, second])
    both = [Estimates(model, resampling, names) for model in (first, second)]
    rows = []
    for name in names:
        values, seeds = [one.value(name) for one in both], [one.between_seeds(name) for one in both]
        row = facts | {"metric": name, "value_first": values[0], "value_second": values[1]}
        row["difference"] = values[0] - values[1]
        gaps = both[0].left_out[name] - both[1].left_out[name]
        why = resampling.too_few(find_metric(name), class_names, first.unit)
        if not why and np.isnan([row["difference"], *gaps]).any():
            why = "not defined for both, or not without one of the groups"
        if not why and estimand == "procedure" and None in seeds:
            why = ONE_SEED
        if why:
            rows.append(row | {"reason": "; ".join(filter(None, [why, row["reason"]]))})
            continue
        added = [seed for seed in seeds if seed is not None] if estimand == "procedure" else []
        row |= _test(row["difference"], sum(added, resampling.spread(gaps)), level)
        row["test"] = f"the jackknife over {first.unit}s" + ", spread between seeds included" * bool(added)
        row |= {} if first.by_group else _image_level(first, second, name)
        if name == "accuracy" and first.by_group:
            row["p_sign_flip"] = sign_flip_test(_hits_per_unit(first) - _hits_per_unit(second))
        rows.append(row)
    return rows


def _on_common_images(first: Model, second: Model) -> tuple[int, Model, Model]:
    """Return how many images not all runs have, and two models without these, with one coding of units."""
    runs = [*first.runs, *second.runs]
    common = set(runs[0].samples).intersection(*(run.samples for run in runs[1:]))
    names: dict[str, int] = {}

    def recoded(model: Model) -> Model:
        parts = []
        for run in model.runs:
            kept = run.at(np.array([sample in common for sample in run.samples]))
            units = [names.setdefault(model.units[code], len(names)) for code in kept.unit]
            parts.append(replace(kept, unit=np.array(units, np.int64)))
        return replace(model, runs=tuple(parts))

    models = [recoded(model) for model in (first, second)]
    one, other = (replace(model, units=tuple(names)) for model in models)
    return len(set().union(*(run.samples for run in runs))) - len(common), one, other


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


def _hits_per_unit(model: Model) -> Floats:
    """Return the number of images of each unit that are predicted rightly, means over seeds."""
    count = len(model.units)
    hits = [np.bincount(run.unit, run.predicted == run.labels, count) for run in model.runs]
    return np.asarray(np.mean(hits, axis=0))


def _image_level(first: Model, second: Model, name: str) -> dict[str, Any]:
    """Return the textbook's test of one run against another, where there is one."""
    one, other = first.runs[0], second.runs[0]
    if len(first.runs) > 1 or len(second.runs) > 1:
        return {}
    place = {sample: row for row, sample in enumerate(other.samples)}
    other = other.at(np.array([place[sample] for sample in one.samples]))
    if name == "accuracy":
        p = mcnemar_test(one.predicted == one.labels, other.predicted == other.labels)
        return {"p": p, "test": "McNemar's exact test"}
    if name == "auroc" and one.probabilities.shape[1] == 2 and len({*one.fold, *other.fold}) == 1:
        p = delong_test(one.labels, one.probabilities[:, 1], other.probabilities[:, 1])
        return {"p": p, "test": "DeLong's test"}
    return {}


def _sentence(row: dict[str, Any], pair: tuple[Model, Model], level: float, pairs: int) -> str:
    """Return the sentence of a row of `compare`."""
    shown = f"is {row['value_first']:.3f} for {row['first']} and {row['value_second']:.3f} for {row['second']}"
    seeds = {model.name: len(model.runs) for model in pair if model.kind != "baseline"}
    corrected, at_level, remark = not np.isnan(row["p_holm"]), f"at the {100 * (1 - level):.3g}% level", ""
    if corrected and pairs > 1:
        remark = f", {_p_in_words(row['p_holm']).removeprefix('= ')} after Holm's correction for {pairs} pairs"
    verdict, better = "", find_metric(row["metric"]).better
    if not corrected:
        verdict = UNCORRECTED
    elif row["p_holm"] > 1 - level:
        verdict = f", not significant {at_level}; a difference of {row['detectable']:.3f} would be detected with a "
        verdict += f"power of {_POWER:.0%}"
    elif better:
        name = row["first"] if (row["difference"] > 0) == (better == "high") else row["second"]
        verdict = f": {name} is better {at_level}"
    return comparison_in_words(row, level, shown, seeds, "interval of this pair alone", remark, verdict)


def comparison_in_words(
    row: dict[str, Any],
    level: float,
    shown: str,
    seeds: dict[str, int],
    interval: str = "interval",
    remark: str = "",
    verdict: str = "",
) -> str:
    """Return a row of `compare_pair` as a sentence; where nothing could be tested the reason comes first."""
    if not row["images"]:
        return f"Not testable: {row['first']} and {row['second']} have no image in common."
    counts = [f"{count} seed{'s' * (count > 1)} of {name}" for name, count in seeds.items()]
    if len(seeds) == 2 and len(set(seeds.values())) == 1:
        counts = [f"{row['seeds'].split(',')[0]} seeds each"]
    where = f"On {row['images']:,} images" + f" of {row['groups']} groups of patients" * (row["unit"] == "group")
    where += f", {' and '.join(counts)}" if set(seeds.values()) - {1} else ""
    text = f"{where}, {row['metric'].replace('_', ' ').replace('auroc', 'AUROC')} {shown}"
    if np.isnan(row["p"]):
        return f"Not testable, {row['reason']}. {text}."
    text += (
        f": a difference of {row['difference']:+.3f} ({100 * level:g}% {interval} {row['low']:+.3f} to "
        f"{row['high']:+.3f}; p {_p_in_words(row['p'])} by {row['test']}{remark}){verdict}."
    )
    remark = " Images are taken as independent, which makes such results too certain."
    return text + ("" if row["unit"] == "group" else remark)


def _p_in_words(p: float) -> str:
    """Return a p value with its relation, such as "= 0.030"."""
    return "< 0.001" if p < 0.001 else "= 1" if p > 0.9995 else f"= {p:.3f}"
