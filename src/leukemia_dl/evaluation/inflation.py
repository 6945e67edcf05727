"""`inflation`: the difference that a protocol with leakage makes to each backbone's figures, on the same images."""

from __future__ import annotations

import pandas as pd

from leukemia_dl.errors import DataError, SettingsError, unknown_name_error
from leukemia_dl.evaluation.comparisons import compare_pair, comparison_in_words
from leukemia_dl.evaluation.evaluate import Estimand, check_settings
from leukemia_dl.evaluation.metrics import metric as find_metric
from leukemia_dl.evaluation.predictions import (
    class_names_of,
    models_of,
    protocols_of,
    select_side,
    validated_predictions,
)

__all__ = ["inflation"]

_COLUMNS = (
    "backbone", "kind", "metric", "honest", "leaky", "value_honest", "value_leaky", "difference", "low", "high", "unit",
    "p", "images", "groups", "seeds", "sentence", "reason",
)  # fmt: skip


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
    """Return by how much each backbone looks better under a protocol with leakage of patients.

    A backbone's nets of both protocols are compared as `compare` does with two backbones: on the images that all of
    them have predicted, by the jackknife over groups. The differences are descriptive: they are not corrected for their
    number, and leakage need not be their only cause, since the nets of two protocols were trained on other images, and
    on more or fewer of them. Baselines, which cannot remember a patient, show the size of that.

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
        protocols), `value_honest, value_leaky, difference` (leaky - honest), its interval `low, high`, `unit` ("group",
        or "image" where subjects are unknown), `p, images, groups, seeds` (honest, leaky), `sentence, reason`.

    Raises:
        UnknownNameError: If a protocol is not in the frame.
        SettingsError: If both are the same, or the metric does not exist.
        DataError: If the frame is not one of predictions, or no backbone is there under both.
    """
    what, class_names, known = find_metric(metric).name, class_names_of(frame), protocols_of(frame)
    check_settings(level, estimand)
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
    parts, backbones = [], dict[str, list[str]]()
    for protocol in (leaky, honest):
        rows = select_side(validated_predictions(frame[frame["protocol"].astype(str) == protocol]), side)
        backbones[protocol] = list(dict.fromkeys(rows["backbone"]))
        parts.append(rows.assign(backbone=rows["backbone"] + f" [{protocol}]"))
    names = [name for name in backbones[honest] if name in backbones[leaky]]
    if not names:
        raise DataError(
            f"No backbone has predictions of the side {side!r} under both protocols. {honest}: "
            f"{', '.join(backbones[honest])}; {leaky}: {', '.join(backbones[leaky])}."
        )
    both = validated_predictions(pd.concat(parts).drop(columns="protocol"))  # a sample has one label in both
    models = {model.name: model for model in models_of(both, side)}
    table = []
    for name in names:
        pair = models[f"{name} [{leaky}]"], models[f"{name} [{honest}]"]
        (row,) = compare_pair(*pair, [what], class_names, level, estimand)
        seeds = {protocol: len(model.runs) for protocol, model in zip((honest, leaky), pair[::-1], strict=True)}
        values = {"value_leaky": row["value_first"], "value_honest": row["value_second"]}
        shown = f"of {name} is {row['value_first']:.3f} under the protocol {leaky} and "
        shown += f"{row['value_second']:.3f} under {honest}"
        row["sentence"] = comparison_in_words(row, level, shown, seeds, remark="; descriptive")
        row |= values | {"backbone": name, "kind": pair[1].kind, "honest": honest, "leaky": leaky}
        table.append(row | {"seeds": f"{seeds[honest]}, {seeds[leaky]}"})
    return pd.DataFrame(table, columns=_COLUMNS).astype({"groups": "Int64"})
