"""Benchmark: backbones, folds and seeds on one data set, with baselines, as one DataFrame."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd

from leukemia_dl.benchmark import plan
from leukemia_dl.benchmark.baselines import BASELINES, measure_cells
from leukemia_dl.benchmark.executors import choose_executor
from leukemia_dl.benchmark.external import ExternalTest, LabelMap
from leukemia_dl.benchmark.grid_runner import GridRunner
from leukemia_dl.benchmark.records import history_frame, prediction_frame, result_frame, timing_frame
from leukemia_dl.benchmark.run_files import StoredRun, read_settings, run_of, settings_text, write_run
from leukemia_dl.benchmark.store import Store
from leukemia_dl.benchmark.trial import Record
from leukemia_dl.checks import choice, flag, real_number
from leukemia_dl.datasets import Dataset
from leukemia_dl.datasets.splits import default_protocol
from leukemia_dl.errors import LeukemiaDLError, SettingsError, unknown_name_error
from leukemia_dl.identity import canonical_json, plain_number, whole_numbers
from leukemia_dl.models.registry import names_of
from leukemia_dl.preprocess import Pipeline
from leukemia_dl.training.backends import ComputeConfig
from leukemia_dl.training.callbacks import CallbackFactory, load_factory
from leukemia_dl.training.recipe import Recipe

__all__ = ["DEFAULT_BACKBONES", "Benchmark"]

DEFAULT_BACKBONES = ("vgg16", "resnet50", "inception_v3", "xception", "cnn")


class Benchmark:
    """A comparison of backbones on one data set.

    Everything is checked on creation, before a pixel is read; `run()` reuses the trials that the store already holds.

    Args:
        dataset: The images. Those without a label are left out.
        backbones: Names of backbones, or specs, which are registered; by default the five built-in architectures.
        recipe: Name of a preset, or a `Recipe`.
        protocol: How the data set is split, see `leukemia_dl.make_splits`; None for its official folds, else its given
            sides, else `kfold`. Several show how much a protocol with leakage adds (`leukemia_dl.inflation`).
        folds: Which folds are the test side in turn; None for the protocol's own default, "all" for all.
        n_folds: How many folds the protocol "kfold" draws; None for 5, or 3 where patients are few.
        seeds: One trial per seed, each with its own weights, order and augmentation.
        baselines: Baselines to compare with: "majority", "cell_size", "cell_colour".
        store: Folder for the results, which `run` makes; "runs/<dataset>-<recipe>" by default.
        pipeline: From file to pixels, or a function from an image size to a pipeline; by default the data set's canvas
            at absolute scale, resized. Steps such as `Reinhard()` are fitted per split, to its training images.
        allow_leakage: Needed for the protocol "random".
        save_models: Keep each trained net in the store, as `model.keras`.
        device: "auto" for the first GPU, else the CPU; "cpu", "gpu" or "gpu:1".
        threads: Threads of one operation on a CPU; None for all cores. Results equal to the bit need equal threads.
        callbacks: A function of a `FitContext` that makes Keras callbacks, its name as "module:function", or, for
            executor="in-process", a list.

    Raises:
        UnknownNameError: For a backbone, baseline, recipe or protocol that is not there.
        SettingsError: For a value that is not allowed, such as an image size below a backbone's minimum.
        SplitError: If the protocol cannot be applied to the data set.

    Attributes:
        planned: Its `Plan`: all settings, checked, and every trial.
        dataset, splits, store: The labelled images, the splits of all protocols, and the `Store`.

    Examples:
        >>> frame = ldl.Benchmark(ldl.Dataset.load("synthetic"), ["cnn"], store="runs/first").run()  # doctest: +SKIP
    """

    def __init__(
        self,
        dataset: Dataset,
        backbones: Sequence[Any] | None = None,
        *,
        recipe: str | Recipe = "quick",
        protocol: str | Sequence[str] | None = None,
        folds: Sequence[int] | Literal["all"] | None = None,
        n_folds: int | None = None,
        seeds: Sequence[int] = (0,),
        baselines: Sequence[str] = BASELINES,
        store: str | Path | None = None,
        pipeline: Pipeline | Callable[[int], Pipeline] | None = None,
        allow_leakage: bool = False,
        save_models: bool = True,
        device: str = "auto",
        threads: int | None = None,
        callbacks: CallbackFactory | Sequence[Any] | str | None = None,
    ) -> None:
        if not isinstance(dataset, Dataset) or not isinstance(recipe, (str, Recipe)):
            given = f"{type(dataset).__name__} and recipe={recipe!r}"
            raise SettingsError(f"Benchmark takes a Dataset, and a Recipe or the name of a preset. Received: {given}.")
        recipe = Recipe.preset(recipe) if isinstance(recipe, str) else recipe
        names = plan.unique("backbones", DEFAULT_BACKBONES if backbones is None else names_of(backbones))
        baselines = plan.unique("baselines", baselines, least=0)
        if unknown := [name for name in baselines if name not in BASELINES]:
            raise unknown_name_error("baseline", unknown[0], BASELINES)
        seeds, compute = plan.unique("seeds", seeds, number=True), ComputeConfig(device, threads)
        nets = [plan.planned_net(name, recipe, pipeline, dataset.info.canvas) for name in names]
        callbacks = recipe.callbacks if callbacks is None else callbacks
        load_factory(callbacks)
        labelled = dataset.subset(dataset.labels >= 0)
        protocol = default_protocol(labelled) if protocol is None else protocol
        protocols = plan.unique("protocol", (protocol,) if isinstance(protocol, str) else protocol)
        n_folds, listed = plain_number(n_folds), whole_numbers(folds)
        splits = plan.splits_of(labelled, protocols, folds, n_folds, allow_leakage)
        self.planned = plan.Plan(
            dataset=labelled,
            source=dataset.source,
            recipe=recipe,
            backbones=names,
            baselines=baselines,
            protocols=protocols,
            folds=folds if listed is None else listed,
            n_folds=n_folds,
            allow_leakage=allow_leakage,
            seeds=seeds,
            splits=splits,
            compute=compute,
            callbacks=callbacks,
            save_models=flag("save_models", save_models),
            trials=plan.planned_trials(labelled, splits, nets, seeds, baselines),
        )
        self.dataset, self.splits = labelled, splits
        self.store = Store(Path("runs") / f"{dataset.info.name}-{recipe.name}" if store is None else store)

    def __repr__(self) -> str:
        trials, name = len(self.planned.trials), self.dataset.info.name
        return f"Benchmark({name!r}, {list(self.planned.backbones)}, {trials} trials, store={str(self.store.root)!r})"

    def plan(self) -> pd.DataFrame:
        """Return a row per trial, before anything runs.

        Columns: backbone, protocol, fold, seed, `status` ("ok" and "not_applicable", which are not run again; "failed",
        "no model" for one whose net is wanted and is not there, and "to do"), `seconds` (how long earlier trials of
        this backbone and recipe in the store took on average; NaN where there are none), trial (its folder), digest.
        """
        records = {record.trial.digest: record for record in self._records(arrays=False)}
        rows = []
        for trial in (planned.trial for planned in self.planned.trials):
            record = records.get(trial.digest)
            row = {name: getattr(trial, name) for name in ("backbone", "protocol", "fold", "seed")}
            row |= {"status": self._status(record), "trial": trial.folder, "digest": trial.digest}
            took = record.timings["seconds"] if record is not None and record.status == "ok" else None
            rows.append(row | {"took": took, "recipe": canonical_json(trial.recipe)})
        frame = pd.DataFrame(rows).astype({"fold": "Int64", "seed": "Int64", "took": float})
        seconds = frame.groupby(["backbone", "recipe"])["took"].transform("mean")
        frame.insert(list(frame).index("trial"), "seconds", seconds)
        return frame.drop(columns=["took", "recipe"])

    def run(
        self,
        *,
        existing: Literal["reuse", "rerun"] = "reuse",
        on_error: Literal["continue", "raise"] = "continue",
        executor: Any = "auto",
        workers: int | None = None,
        time_limit: float | None = None,
        shard: str | None = None,
        show_progress: bool = True,
    ) -> pd.DataFrame:
        """Run every trial that the store does not hold yet, and return the result frame.

        Each trial is written as it ends. Ctrl-C once lets the running trials finish their epoch, twice stops at once;
        whatever ended a run, the next one goes on from there, and its results are the same.

        Args:
            existing: "reuse" finished trials of the store, or "rerun" all. Failed ones are always run again.
            on_error: "continue" with the next trial, the failed one being a row with its error; or "raise".
            executor: "in-process"; "processes", one per backbone, whose crash costs one trial; "auto", the latter from
                two trials on; "ray", "ray:ADDRESS"; a `SerialExecutor`, `ProcessExecutor` or `RayExecutor` of
                `leukemia_dl.benchmark`; or anything with `submit(function, argument)`.
            workers: How many processes at a time; by default one per GPU, or one, which keeps all cores busy.
            time_limit: Seconds of a trial, after which it is a failed row; it goes on from its last epoch when it is
                run again. In this process and by `submit` the limit is checked after each epoch.
            shard: "i/n": only the i-th of n parts of the grid, for as many jobs on one store.
            show_progress: A bar on a terminal, plain lines elsewhere, both on standard error.

        Returns:
            A row per trial that the store holds, see `results`.

        Raises:
            SettingsError: If an argument has a value that is not allowed.
            StoreError, ImageError, BackendError: If the store cannot be written, images cannot be decoded, or there is
                no such device.
            KeyboardInterrupt: After Ctrl-C.
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
            frame = self._export()
        return frame

    def results(self) -> pd.DataFrame:
        """Return the result frame from the records in the store: a row per finished trial, in the order of the grid.

        `backbone, accuracy, loss` come first, then the other metrics (float, NaN where undefined), then the data,
        split, recipe and device, and for a failed trial `exception`, `message` and `traceback`, the path of that file
        in the store: no column changes between equal runs.
        """
        return result_frame(self._records(arrays=False))

    def timings(self) -> pd.DataFrame:
        """Return a row per finished trial: seconds, memory, machine and versions."""
        return timing_frame(self._records(arrays=False))

    def predictions(self, *, cell_area: bool = False) -> pd.DataFrame:
        """Return the prediction frame: a row per trial and sample of the val and test sides.

        Columns: trial, backbone, kind ("backbone", "baseline", "tta" over symmetries), protocol, fold, seed,
        sample, subject, group, same_cell, side ("val", "test"), label (class name) and a `probability_<class>` each.
        `cell_area` adds the area of the cell in pixels of the file, which is read for it; NaN where an image shows no
        single cell.
        """
        frame = prediction_frame(self._records(), self.dataset.class_names, self.dataset.table)
        if cell_area and len(frame):
            samples = self.dataset.table["sample"]
            cells = measure_cells(self.dataset, np.flatnonzero(samples.isin(frame["sample"])))
            area = np.where(cells.single_cell, np.exp(cells.size[:, 0]), np.nan)
            areas = frame["sample"].map(dict(zip(samples, area, strict=True))).astype(float)
            frame.insert(list(frame).index("side"), "cell_area", areas)
        return frame

    def predict_on(self, other: Dataset, label_map: LabelMap | None = None, show_progress: bool = True) -> pd.DataFrame:
        """Return the prediction frame of all trained nets, and baselines, on `other`, a data set from elsewhere.

        `label_map` leads from its labels to classes of this one, or to None to leave them out. The net of every fold
        predicts every image; the fold stands in the column `repeat` too, so that `evaluate` takes each net as a run of
        its own. All rows are of the side "test". Progress is shown if `show_progress`.

        Raises:
            DataError, StoreError, ImageError: For a label that is no class; a store without trials; a damaged image.
        """
        return ExternalTest(self.planned, self.store, other, label_map, show_progress).predictions()

    def evaluate_on(
        self, other: Dataset, label_map: LabelMap | None = None, show_progress: bool = True
    ) -> pd.DataFrame:
        """Return the result frame of `other`; `label_map`, `show_progress` and errors as for `predict_on`.

        Baselines are fitted again, on each split's training side. Columns that are not known of another data set (its
        val side, shared cells and groups) are NA. `leaked_files` counts the images that are, byte for byte, on the
        train side; `flags` says so, and whether patients are unknown and how the images differ from the benchmark's. A
        net that is not in the store is a row with status "failed".
        """
        return ExternalTest(self.planned, self.store, other, label_map, show_progress).results()

    def histories(self) -> pd.DataFrame:
        """Return the learning curves: a row per trial and epoch, with trial, backbone, protocol, fold and seed."""
        return history_frame(self._records())

    def stored(self) -> StoredRun:
        """Return this benchmark as reports read it: its settings, grid and samples, and the records in its store."""
        return run_of(self.planned, self.store)

    def to_toml(self, path: str | Path | None = None) -> str:
        """Return the settings as TOML, which `Benchmark.from_toml` reads, and write them to `path` if there is one."""
        text = settings_text(self.planned, self.store)
        if path is not None:
            Store(Path(path).parent).write_file(Path(path).name, text)
        return text

    @classmethod
    def from_toml(
        cls,
        path: str | Path,
        *,
        dataset: Dataset | None = None,
        root: str | Path | None = None,
        store: str | Path | None = None,
    ) -> Benchmark:
        """Return the benchmark that `to_toml`, or a store's settings.toml, describes.

        Args:
            path: The file.
            dataset: The data set; None to load it as the file says. Needed if it was not made by `Dataset.load`.
            root: Where the data set lies here; None for where it was.
            store: Folder for the results; None for that of the file.

        Raises:
            SettingsError, DataError: If the file cannot be repeated here, or the data set is another one.
        """
        try:
            found, arguments = read_settings(Path(path), dataset, root)
            return cls(found, **(arguments if store is None else {**arguments, "store": store}))
        except LeukemiaDLError:
            raise
        except (AttributeError, LookupError, TypeError, ValueError) as error:  # a value is missing, or of another type
            raise SettingsError(f"{path} is no file of Benchmark.to_toml: {type(error).__name__}: {error}.") from error

    def _status(self, record: Record | None) -> str:
        """Return the status in the plan of a trial that has left a record."""
        if record is None:
            return "to do"
        lacks_model = record.status == "ok" and not self.store.has_result(record, self.planned.save_models, False)
        return "no model" if lacks_model else record.status

    def _records(self, arrays: bool = True) -> Iterator[Record]:
        return self.store.records([planned.trial.folder for planned in self.planned.trials], arrays)

    def _export(self) -> pd.DataFrame:
        """Write the tables of the whole store, the trials of this grid first, and return the rows of these."""
        digests, state = [planned.trial.digest for planned in self.planned.trials], None
        while state != (state := self.store.state()):  # another run may have finished a trial meanwhile
            found = {record.trial.digest: record for record in self.store.records(arrays=False)}
            mine = [found.pop(digest) for digest in digests if digest in found]
            records = [*mine, *found.values()]
            self.store.export(result_frame(records), timing_frame(records))
        return result_frame(mine)
