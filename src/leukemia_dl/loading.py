"""Load trained nets: one by its file or folder, the best of a store, or all of a store as an ensemble."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from leukemia_dl.checks import choice
from leukemia_dl.errors import DataError
from leukemia_dl.models.classifier import Classifier, read_classifier
from leukemia_dl.models.ensemble import Ensemble

__all__ = ["load_classifier"]


def load_classifier(
    source: Any, which: Literal["best", "ensemble"] | None = None, *, metric: str | None = None,
    protocol: str | None = None,
) -> Classifier | Ensemble:  # fmt: skip
    """Return a trained net. Keras loads it with `safe_mode=True`.

    Args:
        source: A file that `Classifier.save` wrote, the folder of a trial or of a store, or `Benchmark.best()`.
        which: Of a store with several nets: "best" on val, or the "ensemble" of all, whose probabilities are averaged.
        metric: To choose the best by; None for the store's primary metric.
        protocol: Of a store with several, the one whose nets count.

    Raises:
        DataError: If there is none, several and `which` is not given, or a file is damaged or from elsewhere.
        UnknownNameError: If it was trained with a preprocessing step whose module is not imported.
        BackendError: If Keras has no backend here.
    """
    if which is None:
        place = source["path"] if isinstance(source, Mapping) or hasattr(source, "loc") else source
        if place is None:
            raise DataError(f"The net of {source['trial']} is not in the store: run with save_models=True.")
        return read_classifier(place)
    from leukemia_dl.benchmark.best import best_net, nets_of
    from leukemia_dl.benchmark.run_files import read_run

    run = read_run(Path(source))
    if choice("which", which, ("best", "ensemble")) == "best":
        return load_classifier(best_net(run, metric, protocol))
    trials = nets_of(run, protocol)["trial"].unique()
    there = [trial for trial in trials if run.store.has_model(trial)]
    if not there:
        raise DataError(f"{run.store.root} holds no trained net: run with save_models=True.")
    return Ensemble(tuple(read_classifier(run.store.folder(trial)) for trial in there))
