"""Predictions averaged over nets, as those of one more backbone."""

import pandas as pd

from leukemia_dl.errors import DataError
from leukemia_dl.evaluation.predictions import PREFIX, class_names_of, validated_predictions
from leukemia_dl.text import counted

_OF_IMAGE = ("subject", "group", "same_cell", "label")


def ensembles(frame: pd.DataFrame) -> pd.DataFrame:
    """Return predictions averaged over the nets of each backbone, and over those of all backbones.

    An image is predicted by the nets that have it on the side `val` or `test`, of which none was trained on it. These
    are all seeds of a fold, or of all folds if the frame is of a data set from elsewhere (`Benchmark.predict_on`). Join
    the result to `frame` for `evaluate`, `compare` and `leaderboard`, which correct only comparisons of backbones.

    Args:
        frame: Predictions as of `Benchmark.predictions`, with the column `sample`.

    Returns:
        A row per protocol, fold, side and image; `kind` is "ensemble", `backbone` such as "cnn (mean of 3 nets)" or
        "all (mean of 15 nets)". No rows where there is one net only.

    Raises:
        DataError: If images are not named.
    """
    frame = validated_predictions(frame)
    if "sample" not in frame:
        raise DataError("An ensemble is of predictions of the same images: they need a column sample that names them.")
    nets = frame[frame["kind"] == "backbone"]
    own = ("test_dataset",) if "test_dataset" in nets else ("repeat", "fold")
    keys = [name for name in ("protocol", *own, "side") if name in nets] + ["sample"]
    parts = [*nets.groupby("backbone", sort=False)]
    parts += [("all", nets)] if len(parts) > 1 else []
    found = [_mean(str(name), rows, keys) for name, rows in parts]
    return pd.concat(found, ignore_index=True) if found else nets


def _mean(name: str, rows: pd.DataFrame, keys: list[str]) -> pd.DataFrame:
    groups = rows.groupby(keys, dropna=False, sort=False)
    columns = [PREFIX + label for label in class_names_of(rows)]
    table = groups[columns].mean().join(groups[[column for column in _OF_IMAGE if column in rows]].first())
    count = int(groups.size().max()) if len(rows) else 0
    table = table.assign(backbone=f"{name} (mean of {counted(count, 'net')})", kind="ensemble").reset_index()
    return table[[column for column in rows if column in table]].iloc[: len(table) * (count > 1)]
