"""Results that others have published, as data: one CSV per data set, facts with their protocol and source."""

from importlib import resources

import pandas as pd

from leukemia_dl.errors import unknown_name_error


def published_results(dataset: str) -> pd.DataFrame:
    """Return results that others have published on a `dataset`, "c_nmc_2019"; UnknownNameError for others.

    Rows of different `protocol` or `scored_on` are answers to different questions: compare within one only.

    Returns:
        `protocol, scored_on, work, method, metric, value, source, note`. Protocols: "published_v1" (the published Keras
        comparison: trained on folds 0 and 1, scored on fold 2), "challenge" (the ISBI 2019 challenge's training images
        and test sets), "unclear". Figures above 0.95 that come from random splits of images are left out.
    """
    files = {file.name.removesuffix(".csv"): file for file in resources.files(__package__).iterdir()}
    known = [name for name, file in files.items() if file.name.endswith(".csv")]
    if dataset not in known:
        raise unknown_name_error("data set with published results", dataset, known)
    with files[dataset].open(encoding="utf-8") as file:
        return pd.read_csv(file, dtype={"value": float}, keep_default_na=False)
