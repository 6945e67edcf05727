"""Labels that the predictions of nets which did not see the image contradict, by confident learning."""

import numpy as np
import pandas as pd

from leukemia_dl.checks import choice, import_extra
from leukemia_dl.errors import DataError
from leukemia_dl.evaluation import predictions
from leukemia_dl.evaluation.predictions import PREFIX, class_names_of, validated_predictions


def label_doubts(frame: pd.DataFrame, unit: str = "image", side: str = "test") -> pd.DataFrame:
    """Return the images of one side, those first whose label is most doubtful (Northcutt et al. 2021).

    An image is judged by the mean probabilities of all nets that have it on this side, none of which was trained on it.
    With patients on both sides of a split a net may repeat a wrong label that it has learned from the same patient. The
    judgement is by cleanlab (extra `doubts`). A doubt is a reason to look at an image, not a correction.

    Args:
        frame: Predictions as of `Benchmark.predictions`, with `sample`, of one protocol. Cross-validation judges every
            image of a data set, a single split those of its test side only.
        unit: "image", or "patient" for a row per patient.
        side: Which rows of the column `side`.

    Returns:
        A row per image: `sample`, its `subject`, `group` and `same_cell` if known, `label`, `likely` (the most probable
        class), `quality` (the label's mean probability among the classes with images); `doubtful` (whether confident
        learning takes the label as wrong) and `nets` (their number). Or a row per patient: `images`, `doubtful` (their
        number), `share` of these, and mean `quality`, the patient with the largest share first.

    Raises:
        SettingsError: If cleanlab is missing, or `unit` is another one.
        DataError: For frames that `evaluate` refuses, unnamed images, labels of one class, or unknown patients.
    """
    choice("unit", unit, ("image", "patient"))
    filters, rank = import_extra("cleanlab.filter", "doubts"), import_extra("cleanlab.rank", "doubts")
    frame = validated_predictions(frame)
    rows = predictions.select_side(frame[frame["kind"] == "backbone"], side)
    if "sample" not in rows:
        raise DataError("The predictions need a column sample that names their images.")
    predictions.models_of(rows, side)  # checks
    names = class_names_of(rows)
    groups = rows.groupby("sample", sort=False)
    facts = [name for name in ("subject", "group", "same_cell", "label") if name in rows]
    table = groups[facts].first()
    means = groups[[PREFIX + name for name in names]].mean()
    labels, probabilities = predictions.arrays_of(means.join(table["label"]))
    if len(np.unique(labels)) < 2:
        raise DataError("Labels of one class only cannot be doubted: there is nothing that they could be instead.")
    # Classes without an image cannot be what a label should have been.
    there = np.unique(labels)
    codes, among = np.searchsorted(there, labels), probabilities[:, there]
    among = among / np.maximum(among.sum(axis=1, keepdims=True), 1e-12)
    table["likely"] = np.array(names, dtype=object)[there[among.argmax(axis=1)]]
    table["quality"] = rank.get_label_quality_scores(codes, among)
    table["doubtful"] = filters.find_label_issues(codes, among, n_jobs=1)
    table = table.assign(nets=groups.size()).reset_index()
    if unit == "image":
        return table.sort_values(["quality", "sample"], kind="stable", ignore_index=True)
    known = predictions.unit_column(rows)
    if known is None:
        raise DataError("Nothing is known of patients: the predictions need a column group or subject.")
    by_patient = table.groupby(known)
    result = pd.DataFrame({"images": by_patient.size(), "doubtful": by_patient["doubtful"].sum()})
    result = result.assign(share=result["doubtful"] / result["images"], quality=by_patient["quality"].mean())
    return result.sort_values(["share", "quality"], ascending=[False, True], kind="stable").reset_index()
