"""Benchmark: backbones, folds and seeds on one data set, with baselines, as one DataFrame."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd

from leukemia_dl import errors
from leukemia_dl.benchmark import plan, records
from leukemia_dl.benchmark.baselines import BASELINES, measure_cells
from leukemia_dl.benchmark.best import best_net
from leukemia_dl.benchmark.executors import choose_executor
from leukemia_dl.benchmark.external import ExternalTest, Labels
from leukemia_dl.benchmark.grid_runner import GridRunner
from leukemia_dl.benchmark.records import Record
from leukemia_dl.benchmark.run_files import StoredRun, read_settings, run_of, settings_text, write_run
from leukemia_dl.benchmark.store import Store
from leukemia_dl.benchmark.trial_runner import feature_frame
from leukemia_dl.checks import choice, flag, real_number
from leukemia_dl.datasets import Dataset
from leukemia_dl.datasets.splits import default_protocol
from leukemia_dl.identity import plain_number, whole_numbers
from leukemia_dl.models.backbones import names_of
from leukemia_dl.preprocess import Pipeline
from leukemia_dl.training.backends import ComputeConfig
from leukemia_dl.training.callbacks import CallbackFactory, load_factory
from leukemia_dl.training.recipe import Recipe

AnyPath = str | Path
DEFAULT_BACKBONES = ("vgg16", "resnet50", "inception_v3", "xception", "cnn")
_log = logging.getLogger(__name__)


class Benchmark:
    """A comparison of backbones on one data set. Everything is checked on creation, before a pixel is read.

    Args:
        dataset: The images. Images without a label are left out.
        backbones: Names of backbones, or specs, which are registered; by default the five built-in architectures.
        recipe: Name of a preset, or a `Recipe`.
        protocol: How the data set is split, see `leukemia_dl.make_splits`, or several; None to choose by the data.
        folds: Which folds are the test side in turn; None for the protocol's own default, "all" for all.
        n_folds: How many folds the protocol "kfold" draws; None for 5, or 3 where patients are few.
        n_repeats: How many times "kfold" draws its folds; fold numbers go on from one time to the next.
        shots: Patients of each class to train on, such as [1, 5, 25, None], drawn by each seed; None for all. Images
            where patients are unknown. Each number is a protocol of its own, such as "kfold-5shot".
        primary_metric: Metric by which the report ranks and compares, chosen before the run; None for balanced
            accuracy where the largest class has 1.5 times the images of the smallest or more, else accuracy.
        seeds: One trial per seed, each with its own weights, order and augmentation.
        baselines: Baselines to compare with: "majority", "cell_size", "cell_colour".
        store: Folder for the results, which `run` makes; "runs/<dataset>-<recipe>" by default.
        pipeline: From file to pixels, or a function from an image size to one; None for `Dataset.default_pipeline`.
        allow_leakage: Needed for the protocol "random".
        save_models: Keep each trained net in the store, as `model.keras`.
        device: "auto" for the first GPU, else the CPU; "cpu", "gpu" or "gpu:1".
        threads: Threads of one operation on a CPU; None for all cores. Results equal to the bit need equal threads.
        callbacks: A function of a `FitContext`, its name "module:function", or a list for executor="in-process".

    Raises:
        SettingsError, UnknownNameError, SplitError: For a value, name or protocol that cannot be used.

    Attributes:
        planned, dataset, splits, store: Its `Plan`, the labelled images, their splits and the `Store`.
    """

    def __init__(
        self, dataset: Dataset, backbones: Sequence[Any] | None = None, *, recipe: str | Recipe = "quick",
        protocol: str | Sequence[str] | None = None, folds: Sequence[int] | Literal["all"] | None = None,
        n_folds: int | None = None, n_repeats: int = 1, shots: Sequence[int | None] = (None,),
        primary_metric: str | None = None, seeds: Sequence[int] = (0,), baselines: Sequence[str] = BASELINES,
        store: AnyPath | None = None, pipeline: Pipeline | Callable[[int], Pipeline] | None = None,
        allow_leakage: bool = False, save_models: bool = True, device: str = "auto", threads: int | None = None,
        callbacks: CallbackFactory | Sequence[Any] | str | None = None,
    ) -> None:  # fmt: skip
        if not isinstance(dataset, Dataset):
            raise errors.SettingsError(f"Benchmark takes a Dataset, such as Dataset.load(...). Received: {dataset!r}.")
        recipe = recipe if isinstance(recipe, Recipe) else Recipe.preset(recipe)
        names = plan.unique("backbones", DEFAULT_BACKBONES if backbones is None else names_of(backbones))
        baselines = plan.unique("baselines", baselines, least=0)
        if unknown := [name for name in baselines if name not in BASELINES]:
            raise errors.unknown_name_error("baseline", unknown[0], BASELINES)
        seeds = plan.unique("seeds", seeds, number=True)
        flag("save_models", save_models)
        labelled, compute = dataset.subset(dataset.labels >= 0), ComputeConfig(device, threads)
        nets = [plan.planned_net(name, recipe, pipeline, labelled) for name in names]
        callbacks = recipe.callbacks if callbacks is None else callbacks
        if callbacks is not None:
            load_factory(callbacks)
        protocol = default_protocol(labelled) if protocol is None else protocol
        protocols = plan.unique("protocol", (protocol,) if isinstance(protocol, str) else protocol)
        primary_metric, shots = plan.primary_metric(labelled, primary_metric), plan.checked_shots(shots)
        splits = plan.splits_of(labelled, protocols, folds, n_folds, n_repeats, allow_leakage, shots, seeds)
        self.planned = plan.Plan(
            dataset=labelled, source=dataset.source, recipe=recipe, backbones=names, baselines=baselines,
            protocols=protocols, folds=whole_numbers(folds) or folds, n_folds=plain_number(n_folds),
            n_repeats=plain_number(n_repeats), shots=shots, allow_leakage=allow_leakage, seeds=seeds, splits=splits,
            compute=compute, callbacks=callbacks, save_models=save_models, primary_metric=primary_metric,
            trials=plan.planned_trials(labelled, splits, nets, seeds, baselines),
        )  # fmt: skip
        self.dataset, self.splits = labelled, splits
        self.store = Store(Path("runs") / f"{dataset.info.name}-{recipe.name}" if store is None else store)

    def plan(self) -> pd.DataFrame:
        """Return a row per trial, before anything runs: backbone, protocol, fold, seed, status, trial, digest.

        `status` is "ok" or "not_applicable", which are not run again; "failed"; "no model" for one whose net is wanted
        and is not there; or "to do". `trial` is the name of its folder.
        """
        found = {record.trial.folder: record.status for record in self._records(arrays=False)}
        rows = []
        for trial in (planned.trial for planned in self.planned.trials):
            status: str = found.get(trial.folder, "to do")
            if status == "ok" and trial.pipeline is not None and self.planned.save_models:
                status = "ok" if self.store.has_model(trial) else "no model"
            row = {name: getattr(trial, name) for name in ("backbone", "protocol", "fold", "seed")}
            rows.append(row | {"status": status, "trial": trial.folder, "digest": trial.digest})
        return pd.DataFrame(rows).astype({"fold": "Int64", "seed": "Int64"})

    def run(
        self, *, existing: Literal["reuse", "rerun"] = "reuse", on_error: Literal["continue", "raise"] = "continue",
        executor: Any = "auto", workers: int | None = None, time_limit: float | None = None, shard: str | None = None,
        show_progress: bool = True,
    ) -> pd.DataFrame:  # fmt: skip
        """Run every trial that the store does not hold yet, and return the result frame, see `results`.

        Args:
            existing: "reuse" finished trials of the store, or "rerun" all. Failed ones are always run again.
            on_error: "continue" with the next trial, the failed one being a row with its error; or "raise".
            executor: "in-process"; "processes", one per backbone, whose crash costs one trial; "auto", the latter from
                two trials on; "ray", "ray:ADDRESS"; an executor of `leukemia_dl.benchmark`; or anything with `submit`.
            workers: How many processes at a time; by default one per GPU, or one, which keeps all cores busy.
            time_limit: Seconds of a trial, after which it is a failed row; the next run goes on from its last epoch.
            shard: "i/n": only the i-th of n parts of the grid, for as many jobs on one store.
            show_progress: A bar on a terminal, plain lines elsewhere, both on standard error.

        Raises:
            SettingsError, StoreError, ImageError, BackendError: If an argument, store, image or device cannot be used.
            KeyboardInterrupt: After Ctrl-C: once to let running trials finish their epoch, twice to stop at once.
        """
        choice("existing", existing, ("reuse", "rerun"))
        choice("on_error", on_error, ("continue", "raise"))
        time_limit = None if time_limit is None else real_number("time_limit", time_limit, 0, math.inf, "()")
        trials = self.planned.part(shard)
        chosen = choose_executor(executor, workers, sum(planned.spec is not None for planned in trials))
        self.store.create()
        write_run(self.planned, self.store)
        how = (chosen, existing, on_error, time_limit, show_progress)
        try:
            GridRunner(self.planned, self.store, trials, *how).run()
        finally:
            frame = self.store.export([planned.trial.folder for planned in self.planned.trials])
        return frame

    def results(self) -> pd.DataFrame:
        """Return a row per finished trial in the store, in the order of the grid.

        `backbone, accuracy, loss` come first, then the other metrics (NaN where undefined), then the data, split,
        recipe and device, and `exception`, `message` and `traceback`, a file of the store, of a failed trial.
        """
        return records.result_frame(self._records(arrays=False))

    def timings(self) -> pd.DataFrame:
        """Return a row per finished trial: seconds, memory, machine and versions."""
        return records.timing_frame(self._records(arrays=False))

    def histories(self) -> pd.DataFrame:
        """Return the learning curves: a row per trial and epoch, with trial, backbone, protocol, fold and seed."""
        return records.history_frame(self._records())

    def predictions(self, *, cell_area: bool = False) -> pd.DataFrame:
        """Return a row per trial and sample of the val and test sides.

        Columns: trial, backbone, kind ("backbone", "baseline", "tta" over symmetries), protocol, fold, seed,
        sample, subject, group, same_cell, side ("val", "test"), label (class name) and a `probability_<class>` each.
        `cell_area` adds the area of the cell in pixels of the file; NaN where an image shows no single cell.
        """
        frame = records.prediction_frame(self._records(), self.dataset.class_names, self.dataset.table)
        if cell_area and len(frame):
            samples = self.dataset.table["sample"]
            cells = measure_cells(self.dataset, np.flatnonzero(samples.isin(frame["sample"])))
            area = np.where(cells.single_cell, np.exp(cells.size[:, 0]), np.nan)
            areas = frame["sample"].map(dict(zip(samples, area, strict=True))).astype(float)
            frame.insert(list(frame).index("side"), "cell_area", areas)
        return frame

    def features(self, backbone: str, show_progress: bool = True) -> pd.DataFrame:
        """Return a row per image of the splits: the data set's columns, and `feature_0` and so on, float32.

        They are those of a frozen `backbone`, from the cache where a run left them; `show_progress` is as in `run`.
        Raises SettingsError if the recipe trains the backbone, UnknownNameError if there is none of this name.
        """
        return feature_frame(self.planned, backbone, show_progress)

    def best(self, metric: str | None = None, protocol: str | None = None) -> pd.Series:
        """Return the net that is best on val, which `leukemia_dl.load_classifier` takes.

        The backbone is the one with the best mean of `metric` over its trials, the net its best trial; None for the
        primary metric of the benchmark. The test side chooses nothing: it gives the backbone's value `test`, with the
        interval `low, high`, and `not_worse`, the backbones that are not significantly worse, of which a warning says
        so. `protocol` is needed if there are several. `path` is the file of the net, None if it was not kept.

        Raises DataError if no net was trained, or none has a value on val.
        """
        return best_net(self.stored(), metric, protocol)

    def predict_on(self, other: Dataset, label_map: Labels | None = None, show_progress: bool = True) -> pd.DataFrame:
        """Return the prediction frame of all trained nets, and baselines, on `other`, a data set from elsewhere.

        `label_map` leads from its labels to classes of this one, or to None to leave them out. The net of every fold
        predicts every image, and the column `repeat` says so. Rows of kind "ensemble" are means over the nets of a
        backbone, and over all nets. Progress is shown if `show_progress`.

        Raises:
            DataError, StoreError, ImageError: For a label that is no class; a store without trials; a damaged image.
        """
        test = ExternalTest(self.planned, self.store, other, label_map, show_progress)
        found = list(test.records())
        for record in (record for record in found if record.status == "failed"):
            _log.warning("%s is left out: %s", record.trial.folder, record.error)
        return test.predictions(found)

    def evaluate_on(self, other: Dataset, label_map: Labels | None = None, show_progress: bool = True) -> pd.DataFrame:
        """Return the result frame of `other`; `label_map`, `show_progress` and errors as for `predict_on`.

        Baselines are fitted again, on each training side. Columns that are not known of another data set are NA.
        `leaked_files` counts the images that are, byte for byte, on the train side; `flags` says so, and whether
        patients are unknown and images differ. A net that is not in the store is a row with status "failed". The
        last rows are of means over the nets of a backbone, and over all nets.
        """
        test = ExternalTest(self.planned, self.store, other, label_map, show_progress)
        return test.results(list(test.records()))

    def stored(self) -> StoredRun:
        """Return this benchmark as reports read it: its settings, grid and samples, and the records in its store."""
        return run_of(self.planned, self.store)

    def to_toml(self, path: AnyPath | None = None) -> str:
        """Return the settings as TOML, which `Benchmark.from_toml` reads, and write them to `path` if there is one."""
        text = settings_text(self.planned, self.store)
        if path is not None:
            Store(Path(path).parent).write_files({Path(path).name: text})
        return text

    @classmethod
    def from_toml(
        cls, path: AnyPath, *, dataset: Dataset | None = None, root: AnyPath | None = None, store: AnyPath | None = None
    ) -> Benchmark:
        """Return the benchmark that the file `path`, of `to_toml` or a store, describes.

        `dataset` is needed if it was not made by `Dataset.load`; `root` says where it lies here, and `store` where the
        results do, if not where the file says.

        Raises:
            SettingsError, DataError: If the file cannot be repeated here, or the data set is another one.
        """
        try:
            found, arguments = read_settings(Path(path), dataset, root)
            return cls(found, **(arguments if store is None else {**arguments, "store": store}))
        except errors.LeukemiaDLError:
            raise
        except (AttributeError, LookupError, TypeError, ValueError) as error:  # a value is missing, or of another type
            raise errors.SettingsError(f"{path} is no file of to_toml: {type(error).__name__}: {error}.") from error

    def _records(self, arrays: bool = True) -> Iterator[Record]:
        return self.store.records([planned.trial.folder for planned in self.planned.trials], arrays)
