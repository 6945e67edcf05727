"""Paired comparisons on the same images: of backbones (`compare`), and of protocols (`inflation`)."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from leukemia_dl.errors import DataError, SettingsError, unknown_name_error
from leukemia_dl.evaluation import predictions
from leukemia_dl.evaluation.evaluate import ESTIMANDS, ONE_SEED, Estimand, Estimates, check_settings, chosen_estimand
from leukemia_dl.evaluation.intervals import Spread, resampling_of
from leukemia_dl.evaluation.metrics import metric as find_metric
from leukemia_dl.evaluation.predictions import Model, class_names_of, select_side, validated_predictions

_POWER = 0.8
_Row = dict[Any, Any]
_OF_PROTOCOLS = (
    "backbone", "kind", "metric", "honest", "leaky", "value_honest", "value_leaky", "difference", "low", "high", "unit",
    "p", "images", "groups", "seeds", "sentence", "reason",
)  # fmt: skip


def compare(
    frame: pd.DataFrame, metric: str = "accuracy", *, backbones: str | Sequence[str] | None = None,
    descriptive: str | Sequence[str] = (), level: float = 0.95, estimand: Estimand | None = None, side: str = "test",
) -> pd.DataFrame:  # fmt: skip
    """Compare every pair of backbones on the images that both have predicted.

    The difference `first - second` gets the same jackknife as a single value, on the linear scale, and its t test.
    Holm's correction is over all pairs of backbones for the primary metric; pairs with a baseline, and further metrics,
    have no corrected p. Where subjects are unknown, images are taken as independent (`unit` is "image"): differences
    that are not there are then found far too often (docs/explanation/intervals.md).

    Choose the primary `metric`, and the `backbones` (None for all; fewer pairs are corrected less), before the results
    are seen; `descriptive` names further metrics. `frame`, `level`, `estimand` and `side` are those of `evaluate`;
    `1 - level` is the significance level. Fewer than two backbones are a SettingsError.

    Returns:
        A row per pair and metric. `detectable` is the difference that would be detected with a power of 80% after
        Bonferroni's correction; `role` is "confirmatory" or "descriptive", `sentence` the row in words.

    Examples:
        >>> import pandas as pd
        >>> import leukemia_dl as ldl
        >>> frame = pd.DataFrame({"sample": [*range(40)] * 2, "label": (["hem"] * 20 + ["all"] * 20) * 2})
        >>> frame["group"] = "P" + (frame["sample"] // 2).astype(str)
        >>> frame["backbone"] = ["cnn"] * 40 + ["vgg16"] * 40
        >>> frame["probability_hem"] = [0.8] * 14 + [0.3] * 22 + [0.6] * 4 + [0.7] * 17 + [0.2] * 19 + [0.9] * 4
        >>> frame["probability_all"] = 1 - frame["probability_hem"]
        >>> ldl.compare(frame)[["first", "second", "difference", "p"]].round(3).to_dict("records")
        [{'first': 'cnn', 'second': 'vgg16', 'difference': -0.075, 'p': 0.193}]
    """
    frame = validated_predictions(frame)
    further = [descriptive] if isinstance(descriptive, str) else list(descriptive)
    names = list(dict.fromkeys(find_metric(name).name for name in (metric, *further)))
    check_settings(level, estimand)
    models = predictions.models_of(frame, side, backbones)
    if len(models) < 2:
        raise SettingsError(f"A comparison needs two backbones. The frame has: {models[0].name}.")
    pairs = list(combinations(models, 2))
    about = chosen_estimand(estimand, models)
    tables = [_compare_pair(*pair, names, class_names_of(frame), level, about) for pair in pairs]
    found = [(row, pair) for rows in zip(*tables, strict=True) for row, pair in zip(rows, pairs, strict=True)]
    primary = [row for row, pair in found if row["metric"] == metric and {one.kind for one in pair} == {"backbone"}]
    confirmatory = [row for row in primary if not np.isnan(row["p"])]
    for row, corrected in zip(confirmatory, holm([row["p"] for row in confirmatory]), strict=True):
        row |= {"p_holm": corrected, "role": "confirmatory"}
    for row, pair in found:
        row["detectable"] = _detectable(row, level, len(confirmatory) if row["role"] == "confirmatory" else 1)
        row["sentence"] = _sentence(row, pair, level, len(confirmatory))
    return pd.DataFrame([row for row, _ in found]).astype({"groups": "Int64"})


def inflation(
    frame: pd.DataFrame, honest: str, leaky: str, metric: str = "accuracy", *, level: float = 0.95,
    estimand: Estimand | None = None, side: str = "test",
) -> pd.DataFrame:  # fmt: skip
    """Return by how much each backbone looks better under a protocol with leakage of patients.

    A backbone's nets of both protocols are compared as `compare` does with two backbones: on the images that all of
    them have predicted. The differences are not corrected for their number, and leakage need not be their only cause.

    `frame` has the predictions of two protocols: `honest` keeps patients apart, `leaky` does not. `metric`, `level`,
    `estimand` and `side` are those of `compare`.

    Returns:
        A row per backbone and baseline that both protocols have; `difference` is leaky - honest, `low, high`
        its interval, and `seeds` are those of honest and leaky nets.

    Raises:
        UnknownNameError, SettingsError, DataError: If a protocol is not there, both are one, or share no backbone.
    """
    name, class_names = find_metric(metric).name, class_names_of(frame)
    known = [*dict.fromkeys(map(str, frame.get("protocol", ())))]
    check_settings(level, estimand)
    if missing := [protocol for protocol in (honest, leaky) if protocol not in known]:
        raise unknown_name_error("protocol", missing[0], known, "The column protocol has these.")
    if honest == leaky:
        raise SettingsError(f"Name two protocols, the honest one first. Received: {honest!r} twice.")
    parts = {}
    for protocol in (leaky, honest):
        own = validated_predictions(frame[frame["protocol"].astype(str) == protocol])
        parts[protocol] = select_side(own, side).drop(columns="protocol")
    of_both = [one for one in parts[honest]["backbone"].unique() if one in set(parts[leaky]["backbone"])]
    if not of_both:
        there = [f"{protocol}: {', '.join(parts[protocol]['backbone'].unique())}" for protocol in (honest, leaky)]
        raise DataError(f"No backbone has predictions of the side {side!r} under both protocols. {'; '.join(there)}.")
    marked = [rows.assign(backbone=rows["backbone"] + f" [{protocol}]") for protocol, rows in parts.items()]
    both = validated_predictions(pd.concat(marked))  # a sample has one label in both
    models = {model.name: model for model in predictions.models_of(both, side)}
    about, rows = chosen_estimand(estimand, list(models.values())), []
    for backbone in of_both:
        first, second = models[f"{backbone} [{leaky}]"], models[f"{backbone} [{honest}]"]
        (row,) = _compare_pair(first, second, [name], class_names, level, about)
        row |= {"backbone": backbone, "kind": second.kind, "honest": honest, "leaky": leaky}
        row |= {"value_leaky": row["value_first"], "value_honest": row["value_second"]}
        row["seeds"] = f"{len(second.runs)}, {len(first.runs)}"
        rows.append(row | {"sentence": _sentence(row, (first, second), level)})
    return pd.DataFrame(rows, columns=_OF_PROTOCOLS).astype({"groups": "Int64"})


def _compare_pair(
    first: Model, second: Model, names: Sequence[str], class_names: tuple[str, ...], level: float, estimand: str
) -> list[_Row]:
    """Return the rows of `compare` of two models, one per metric, without their sentences."""
    if not first.named:
        raise DataError("A comparison is of the same images: the predictions need a column sample that names them.")
    left_out, first, second = _on_common_images(first, second)
    facts: _Row = {
        "first": first.name, "second": second.name, "metric": "",
        **dict.fromkeys(("value_first", "value_second", "difference", "low", "high"), np.nan), "unit": first.unit,
        **dict.fromkeys(("standard_error", "degrees_of_freedom", "p", "p_holm"), np.nan), "test": "",
        "detectable": np.nan, "images": len(first.runs[0].samples),
        "groups": len(first.units) if first.unit == "group" else pd.NA,
        "seeds": f"{len(first.runs)}, {len(second.runs)}", "role": "descriptive",
        "estimand": ESTIMANDS[estimand].format(first.unit), "sentence": "", "reason": "",
    }  # fmt: skip
    if not facts["images"]:
        return [facts | {"metric": name, "reason": "no image in common"} for name in names]
    facts["reason"] = f"{left_out} images are left out that not all runs have" * (left_out > 0)
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
        row |= _t_test(row["difference"], sum(added, resampling.spread(gaps, find_metric(name))), level)
        row["test"] = f"the jackknife over {first.unit}s" + ", spread between seeds included" * bool(added)
        rows.append(row)
    return rows


def _on_common_images(first: Model, second: Model) -> tuple[int, Model, Model]:
    """Return how many images not all runs have, and two models without these, with one coding of units."""
    runs = [*first.runs, *second.runs]
    common = set(runs[0].samples).intersection(*(run.samples for run in runs[1:]))
    kept = [run.at(np.array([sample in common for sample in run.samples])) for run in runs]
    owners = [first] * len(first.runs) + [second] * len(second.runs)
    names = [np.array(model.units, object)[run.unit] for model, run in zip(owners, kept, strict=True)]
    codes, units = pd.factorize(np.concatenate(names))
    parts = np.split(codes.astype(np.int64), np.cumsum([len(run.samples) for run in kept])[:-1])
    recoded = [replace(run, unit=part) for run, part in zip(kept, parts, strict=True)]
    left_out = len(set().union(*(run.samples for run in runs))) - len(common)
    one = replace(first, runs=tuple(recoded[: len(first.runs)]), units=tuple(units))
    return left_out, one, replace(second, runs=tuple(recoded[len(first.runs) :]), units=tuple(units))


def _t_test(difference: float, spread: Spread, level: float) -> _Row:
    error = spread.variance**0.5
    if error == 0 and difference != 0:
        return {"standard_error": 0.0, "reason": "every group has the same difference: nothing is known of its spread"}
    if error == 0:
        return {"low": 0.0, "high": 0.0, "standard_error": 0.0, "p": 1.0}
    quantile = float(stats.t.ppf((1 + level) / 2, spread.df))
    return {
        "low": difference - quantile * error, "high": difference + quantile * error, "standard_error": error,
        "degrees_of_freedom": spread.df, "p": float(2 * stats.t.sf(abs(difference) / error, spread.df)),
    }  # fmt: skip


def _detectable(row: _Row, level: float, pairs: int) -> float:
    """Return the difference that would be significant with a power of 80% after the correction for so many pairs."""
    df = row["degrees_of_freedom"]  # NaN where nothing varies
    return float((stats.t.ppf(1 - (1 - level) / (2 * pairs), df) + stats.t.ppf(_POWER, df)) * row["standard_error"])


def holm(p: Sequence[float]) -> list[float]:
    """Return p values corrected for their number (Holm 1979)."""
    values = np.asarray(p, dtype=np.float64)
    order = np.argsort(values, kind="stable")
    stepped = np.maximum.accumulate(values[order] * np.arange(len(values), 0, -1))
    return [float(value) for value in np.minimum(stepped, 1.0)[np.argsort(order)]]


def _sentence(row: _Row, pair: tuple[Model, Model], level: float, corrected_for: int = 0) -> str:
    if not row["images"]:
        return f"Not testable: {row['first']} and {row['second']} have no image in common."
    text = f"On {row['images']:,} images" + f" of {row['groups']} groups of patients" * bool(row["unit"] == "group")
    if row["unit"] == "group" and row["images"] == row["groups"]:
        text = f"On {row['images']:,} patients, each predicted as a whole"
    seeds = {model.name: len(model.runs) for model in pair if model.kind != "baseline"}
    if len(seeds) == 2 and len(set(seeds.values())) == 1 and pair[0].runs[1:]:
        text += f", {len(pair[0].runs)} seeds each"
    elif set(seeds.values()) - {1}:
        text += ", " + " and ".join(f"{count} seed{'s' * (count > 1)} of {name}" for name, count in seeds.items())
    text += f", {row['metric'].replace('_', ' ').replace('auroc', 'AUROC')} is {row['value_first']:.3f} for "
    text += f"{row['first']} and {row['value_second']:.3f} for {row['second']}"
    if np.isnan(row["p"]):
        return f"Not testable, {row['reason']}. {text}."
    corrected, at_level = row["p_holm"], f"at the {100 * (1 - level):.3g}% level"
    remark, verdict = "", ", without correction for multiple comparisons" if np.isnan(corrected) else ""
    if corrected_for > 1 and not verdict:
        remark = f", {_p_in_words(corrected).removeprefix('= ')} after Holm's correction for {corrected_for} pairs"
    counts = " and ".join(dict.fromkeys(map(str, seeds.values())))
    about = f"the procedure over {counts} seeds" if "procedure" in row["estimand"] else "these fitted models"
    if not row["difference"] and not row["standard_error"]:
        verdict = f": of {about}, both are equal in every {row['unit']}"
    elif corrected > 1 - level:
        power = f"a difference of {row['detectable']:.3f} would be detected with a power of {_POWER:.0%}"
        verdict = f", not significant {at_level} for {about}; {power}"
    elif not verdict and (winner := winner_of(row, level)):
        verdict = f": of {about}, {winner} is better {at_level}"
    text += f": a difference of {row['difference']:+.3f} ({100 * level:g}% interval of this pair alone "
    text += f"{row['low']:+.3f} to {row['high']:+.3f}; p {_p_in_words(row['p'])} by {row['test']}{remark}){verdict}."
    caution = " Images are taken as independent, which makes such results too certain."
    return text + caution * bool(row["unit"] == "image")


def winner_of(row: _Row, level: float) -> str:
    """Return the name that is better at a level, after Holm's correction where there is one; "" if none is."""
    p, better = row["p"] if np.isnan(row["p_holm"]) else row["p_holm"], find_metric(row["metric"]).better
    if not better or not p <= 1 - level or not row["difference"]:
        return ""
    return str(row["first" if (row["difference"] > 0) == (better == "high") else "second"])


def _p_in_words(p: float) -> str:
    return "< 0.001" if p < 0.001 else "= 1" if p > 0.9995 else f"= {p:.3f}"
