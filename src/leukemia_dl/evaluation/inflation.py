"""`inflation`: what a protocol that leaks adds to each backbone's figures, on the same images."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from leukemia_dl.errors import DataError, SettingsError, unknown_name_error
from leukemia_dl.evaluation.comparisons import compare, p_in_words, seeds_in_words
from leukemia_dl.evaluation.evaluate import Estimand
from leukemia_dl.evaluation.metrics import metric as find_metric
from leukemia_dl.evaluation.predictions import class_names_of, models_of, protocols_of, select_side, tidy

__all__ = ["inflation"]

_TAKEN = ("low", "high", "low_image_level", "high_image_level", "p", "images", "groups")


def inflation(
    frame: pd.DataFrame,
    honest: str,
    leaky: str,
    metric: str = "accuracy",
    *,
    level: float = 0.95,
    estimand: Estimand = "models",
    side: str = "test",
) -> pd.DataFrame:
    """Return by how much each backbone looks better under a protocol that lets patients leak.

    A backbone's nets of both protocols are compared as `compare` does with two backbones: on the images that all of
    them have predicted, by the jackknife over groups. The differences are descriptive: they are not corrected for their
    number, and more than the leak may be in them, since the nets of two protocols were trained on other images, and on
    more or fewer of them. Baselines, which can remember no patient, show how much of it that is.

    Args:
        frame: The prediction frame of a benchmark with both protocols, such as
            `Benchmark(dataset, protocol=["kfold", "random"], allow_leakage=True)`.
        honest: The protocol that keeps patients apart.
        leaky: The one that does not.
        metric: The one metric.
        level: Of the intervals.
        estimand: "models" or "procedure", see `evaluate`.
        side: Which rows of the column `side`.

    Returns:
        A row per backbone and baseline that both protocols have: `backbone, kind, metric, honest, leaky` (names of the
        protocols), `value_honest, value_leaky, difference` (leaky - honest), its interval `low, high` (or
        `low_image_level, high_image_level`, where nothing is known of subjects), `p, images, groups, seeds` (of the
        honest, of the leaky), `sentence, reason`.

    Raises:
        UnknownNameError: If a protocol is not in the frame.
        SettingsError: If both are the same, or the metric does not exist.
        DataError: If the frame is not one of predictions, or no backbone is there under both.
    """
    what = find_metric(metric).name
    class_names_of(frame)
    known = protocols_of(frame)
    if not known:
        raise DataError(
            "To compare two protocols, the predictions need a column protocol, as Benchmark.predictions() has it. "
            f"Received: {', '.join(map(str, frame))}."
        )
    for name in (honest, leaky):
        if name not in known:
            raise unknown_name_error("protocol", name, known, "These are the protocols that the predictions are of.")
    if honest == leaky:
        raise SettingsError(f"Name two protocols, the honest one first. Received: {honest!r} twice.")
    parts = {name: select_side(tidy(frame[frame["protocol"].astype(str) == name]), side) for name in (leaky, honest)}
    kinds = {name: part.groupby("backbone", sort=False)["kind"].first() for name, part in parts.items()}
    names = [name for name in kinds[honest].index if name in kinds[leaky].index]
    if not names:
        raise DataError(
            f"No backbone has predictions of the side {side!r} under both protocols. {honest}: "
            f"{', '.join(kinds[honest].index)}; {leaky}: {', '.join(kinds[leaky].index)}."
        )
    both = pd.concat(
        [part.assign(backbone=[f"{one} [{name}]" for one in part["backbone"]]) for name, part in parts.items()],
        ignore_index=True,
    ).drop(columns="protocol")
    models_of(both, side)  # checks, so that what is wrong is said of the whole frame
    rows: list[dict[str, Any]] = []
    for name in names:
        pair = both[both["backbone"].isin([f"{name} [{leaky}]", f"{name} [{honest}]"])]
        (found,) = compare(pair, what, level=level, estimand=estimand, side=side).to_dict("records")
        row = {"backbone": name, "kind": kinds[honest][name], "metric": what, "honest": honest, "leaky": leaky}
        row |= {"value_honest": found["value_second"], "value_leaky": found["value_first"]}
        row |= {"difference": found["difference"]} | {key: found[key] for key in _TAKEN if key in found}
        row |= {"seeds": ", ".join(reversed(found["seeds"].split(", ")))}
        rows.append(row | {"sentence": _sentence(row, found, level, estimand), "reason": found["reason"]})
    return pd.DataFrame(rows).astype({"groups": "Int64"})


def _sentence(row: dict[str, Any], found: dict[Any, Any], level: float, estimand: str) -> str:
    """Return what a paper could print."""
    title = row["metric"].replace("_", " ").replace("auroc", "AUROC")
    protocols = f"{row['leaky']} and {row['honest']}"
    if not row["images"]:
        return f"{row['backbone']} has no image that was predicted under both protocols, {protocols}."
    by_group = "low" in row
    where = f"On {row['images']:,} images" + (f" of {row['groups']} groups of patients" if by_group else "")
    where += seeds_in_words(dict(zip((row["honest"], row["leaky"]), map(int, row["seeds"].split(", ")), strict=True)))
    text = (
        f"{where}, {title} of {row['backbone']} is {row['value_leaky']:.3f} under the protocol {row['leaky']} and "
        f"{row['value_honest']:.3f} under {row['honest']}"
    )
    if np.isnan(row["difference"]):
        return f"{text}: {found['reason']}."
    text += f": a difference of {row['difference']:+.3f}"
    if np.isnan(row["p"]):
        return f"{text}, of which no interval can be given: {found['reason']}."
    low, high = (row[end if by_group else f"{end}_image_level"] for end in ("low", "high"))
    p = f"{p_in_words(row['p'])} by {found['test']}" + (
        ", spread between seeds included" if estimand == "procedure" else ""
    )
    text += f" ({100 * level:g}% interval {low:+.3f} to {high:+.3f}; p {p}; descriptive)."
    return text if by_group else text + " Images are taken as independent, which makes such results too certain."
