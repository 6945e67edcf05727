"""Benchmark: the grid of backbones, folds and seeds over one data set, with its floors, as one DataFrame."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from leukemia_dl.benchmark.arguments import checked_seeds, chosen_pipeline, executor_of, plain_folds, unique_names
from leukemia_dl.benchmark.baselines import BASELINES, check_baseline, measure_cells
from leukemia_dl.benchmark.cost import Costs
from leukemia_dl.benchmark.driver import Driver, is_kept, split_by_store
from leukemia_dl.benchmark.executors import Executor, InProcess
from leukemia_dl.benchmark.external import LabelMap, evaluate_on, predict_on
from leukemia_dl.benchmark.frames import history_frame, prediction_frame, result_frame, timing_frame
from leukemia_dl.benchmark.grid import Cell, check_shard, grid, shard_of, splits_of
from leukemia_dl.benchmark.inputs import Cells, Samples, read_images
from leukemia_dl.benchmark.processes import Processes
from leukemia_dl.benchmark.runner import Shared
from leukemia_dl.benchmark.settings import read_settings, settings_of
from leukemia_dl.benchmark.store import Store
from leukemia_dl.benchmark.stored import write_run
from leukemia_dl.benchmark.trial import Record, Trial
from leukemia_dl.benchmark.worker import prepare_elsewhere
from leukemia_dl.datasets import Dataset
from leukemia_dl.datasets.protocols import default_protocol
from leukemia_dl.errors import DamagedRecordError, SettingsError
from leukemia_dl.identity import plain_number
from leukemia_dl.models.backend import backend_name
from leukemia_dl.models.build import check_size, weights_identity
from leukemia_dl.models.registry import find_backbone, names_of
from leukemia_dl.preprocess import Pipeline
from leukemia_dl.training.backends import ComputeConfig, prepare
from leukemia_dl.training.callbacks import CallbackFactory, load_factory
from leukemia_dl.training.recipe import Recipe

__all__ = ["DEFAULT_BACKBONES", "Benchmark"]

_log = logging.getLogger(__name__)
DEFAULT_BACKBONES = ("vgg16", "resnet50", "inception_v3", "xception", "cnn")


class Benchmark:
    """A comparison of backbones on one data set.

    Everything is checked on creation, before a pixel is read; `run()` reuses what the store already holds.

    Args:
        dataset: What to learn from. Samples without a label are left out.
        backbones: Names of backbones, or specs, which are registered; by default the five built-in architectures.
        recipe: Name of a preset, or a `Recipe`.
        protocol: How the data set is split, see `leukemia_dl.make_splits`; None for its official folds if there are
            any, else its given sides, else `kfold`. Several, such as ["kfold", "random"], show how much a protocol
            with leakage adds (`leukemia_dl.inflation`).
        folds: Which folds are the test side in turn; None for the protocol's own default, "all" for all.
        n_folds: How many the protocol "kfold" draws; None for 5, or 3 where patients are few.
        seeds: One trial per seed, each with its own weights, order and augmentation.
        baselines: Floors to compare with: "majority", "cell_size", "cell_colour".
        store: Folder for the results; "runs/<dataset>-<recipe>" by default. It is made, and tried, by `run`.
        pipeline: From file to pixels; by default the data set's canvas at absolute scale, resized to the recipe's
            image size. Where sizes differ between backbones (`image_size="native"`), a function from a size to a
            pipeline. A step that is to be fitted, such as `Reinhard()`, is fitted per split, to its training images.
        allow_leakage: Needed for the protocol "random".
        save_models: Keep each trained net in the store, as `model.keras`.
        device: "auto" for the first GPU where there is one, else the CPU; "cpu", "gpu" or "gpu:1". Rows say which kind
            it was; it is not part of what names a trial.
        threads: Threads of one operation on a CPU, wherever a trial runs; None for as many as the machine of each trial
            has cores. Not part of the trial's name, but results equal to the bit need equal threads: rows have them.
        callbacks: A function of a `FitContext` that makes Keras callbacks, its name as "module:function", or, for
            executor="in-process", a list. Not part of the trial's name, since their effect is unknown.

    Raises:
        UnknownNameError: For a backbone, baseline, recipe or protocol that is not there.
        SettingsError: For a value that is not allowed, such as an image size below a backbone's minimum.
        SplitError: If the protocol cannot be applied to the data set.

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
        self.recipe = Recipe.preset(recipe) if isinstance(recipe, str) else recipe
        self.backbones = unique_names("backbones", DEFAULT_BACKBONES if backbones is None else names_of(backbones))
        self.baselines = tuple(check_baseline(name) for name in unique_names("baselines", baselines, empty=True))
        self.seeds = checked_seeds(seeds)
        self._found = {name: find_backbone(name) for name in self.backbones}
        self.recipes = {name: self.recipe.for_backbone(found.record) for name, found in self._found.items()}
        self._weights = {}
        for name, found in self._found.items():
            check_size(found.record, int(self.recipes[name].image_size))
            self._weights[name] = weights_identity(found.record, self.recipes[name].weights_for(found.record))
        sizes = sorted({int(recipe.image_size) for recipe in self.recipes.values()})
        self.pipelines = {size: chosen_pipeline(pipeline, self.recipe, size, dataset.info.canvas) for size in sizes}
        self.callbacks = self.recipe.callbacks if callbacks is None else callbacks
        load_factory(self.callbacks)
        self.compute = ComputeConfig(device, threads)
        self.source = dataset.source
        self.dataset = dataset.subset(dataset.labels >= 0)
        protocol = default_protocol(self.dataset) if protocol is None else protocol
        self.protocols = unique_names("protocol", (protocol,) if isinstance(protocol, str) else protocol)
        self.folds, self.n_folds, self.allow_leakage = plain_folds(folds), plain_number(n_folds), allow_leakage
        self.splits = splits_of(self.dataset, self.protocols, folds, allow_leakage, self.n_folds)
        self.store = Store(store if store is not None else Path("runs") / f"{dataset.info.name}-{self.recipe.name}")
        self.save_models = save_models

    @property
    def protocol(self) -> str:
        """The names of its protocols."""
        return ", ".join(self.protocols)

    def __repr__(self) -> str:
        """Name the axes of the grid."""
        return (
            f"Benchmark({self.dataset.info.name!r}, backbones={list(self.backbones)}, recipe={self.recipe.name!r}, "
            f"protocol={self.protocol!r}, folds={[split.fold for split in self.splits]}, seeds={list(self.seeds)}, "
            f"store={str(self.store.root)!r})"
        )

    def plan(self) -> pd.DataFrame:
        """Return a row per trial, before anything runs.

        Columns: backbone, protocol, fold, seed, `status` ("ok" and "not_applicable", which are not run again; "failed",
        "damaged", "no model" for one whose net is wanted and is not there, and "to do"), `seconds` (what earlier trials
        of this backbone and recipe in the store took on average; NaN where there are none), trial (its folder), digest.
        """
        there = set(self.store.names())
        found = [self._look(cell.trial) if cell.trial.folder in there else "to do" for cell in self._grid]
        costs = Costs(record for record in found if isinstance(record, Record))
        rows = [
            {
                **{name: getattr(cell.trial, name) for name in ("backbone", "protocol", "fold", "seed")},
                "status": self._status(record) if isinstance(record, Record) else record,
                "seconds": costs.expected(cell.trial),
                "trial": cell.trial.folder,
                "digest": cell.trial.digest,
            }
            for cell, record in zip(self._grid, found, strict=True)
        ]
        return pd.DataFrame(rows).astype({"fold": "Int64", "seed": "Int64", "seconds": float})

    def run(
        self,
        *,
        existing: Literal["reuse", "rerun"] = "reuse",
        on_error: Literal["continue", "raise"] = "continue",
        executor: Any = "auto",
        workers: int | None = None,
        time_limit: float | None = None,
        shard: str | Sequence[int] | None = None,
        show_progress: bool = True,
    ) -> pd.DataFrame:
        """Run every trial that the store does not hold yet, and return the result frame.

        Each trial is written as it ends. Ctrl-C once lets the running trials finish their epoch, twice stops at once;
        whatever ended a run, the next one goes on from there, and its results are the same.

        Args:
            existing: "reuse" finished trials of the store, or "rerun" all. Failed ones are always run again.
            on_error: "continue" with the next trial, the failed one being a row with its error; or "raise".
            executor: "in-process"; "processes", one per backbone, which give their memory back and take no other trial
                with them if they die; "auto", the latter from two trials on; "ray", "ray:ADDRESS"; or an object: one of
                `leukemia_dl.benchmark.InProcess`, `Processes`, `Ray`, or anything with `submit(function, argument)`.
            workers: How many processes at a time; one per GPU, or one, by default. More than one on one GPU or on the
                same cores is slower per trial.
            time_limit: Seconds of a trial; one that takes longer is a failed row. It goes on from its last epoch
                when it is run again. In this process and by `submit` it is looked at after each epoch.
            shard: "i/n": only the i-th of n parts of the grid, for as many jobs on one store.
            show_progress: A bar on a terminal, plain lines elsewhere, both on standard error.

        Returns:
            A row per trial that the store holds, see `results`.

        Raises:
            SettingsError: If an argument has a value that is not allowed.
            StoreError: If the store cannot be written.
            ImageError: If images cannot be decoded; up to ten are named.
            BackendError: If there is no such device.
            KeyboardInterrupt: After Ctrl-C.
        """
        choices = (("existing", existing, ("reuse", "rerun")), ("on_error", on_error, ("continue", "raise")))
        for name, value, allowed in choices:
            if value not in allowed:
                raise SettingsError(f"{name} must be one of {allowed}. Received: {name}={value!r}.")
        time_limit = plain_number(time_limit)
        if time_limit is not None and not (type(time_limit) in (int, float) and time_limit > 0):
            raise SettingsError(f"time_limit must be seconds above 0, or None. Received: time_limit={time_limit!r}.")
        part, parts = check_shard(shard)
        executor_of(executor, workers, 2)  # what is wrong with it should not wait for the data
        self.store.create()
        write_run(self)
        cells = shard_of(self._grid, [cell.spec is not None for cell in self._grid], part, parts)
        to_do, kept = split_by_store(self.store, cells, existing, self.save_models)
        trials = sum(cell.spec is not None for cell in to_do)
        chosen = executor_of(executor, workers, trials)
        if trials:
            self._check_device(chosen)
        # Outside the trials: what cannot be decoded is an error of the data, not of a backbone.
        sizes = sorted({cell.size for cell in to_do if cell.spec is not None})
        images = {size: read_images(self.dataset, self._used, self.pipelines[size], show_progress) for size in sizes}
        samples = Samples.of(self.dataset, self._used if sizes and self.save_models else None)
        shared = Shared(samples, images, self.recipe, self.compute, load_factory(self.callbacks))
        driver = Driver(
            store=self.store,
            cells=cells,
            cells_read=Cells(self.dataset, self._used, show_progress),
            executor=chosen,
            workers=chosen.workers_for(shared) if trials else 1,
            existing=existing,
            raise_errors=on_error == "raise",
            save_models=self.save_models,
            time_limit=time_limit,
            show=show_progress,
        )
        try:
            driver.run(to_do, kept, shared)
        finally:
            self._export()
        return self.results()

    def results(self) -> pd.DataFrame:
        """Return the result frame from what the store holds: a row per finished trial, in the order of the grid.

        `backbone, accuracy, loss` come first, then the other metrics (float, NaN where undefined), then what was
        compared on what, and for a failed trial `exception`, `message` and `traceback`, the path of that file in the
        store: no column changes between equal runs.
        """
        return result_frame(self._records(arrays=False))

    def timings(self) -> pd.DataFrame:
        """Return a row per finished trial: seconds, memory, machine and versions."""
        return timing_frame(self._records(arrays=False))

    def predictions(self, *, cell_area: bool = False) -> pd.DataFrame:
        """Return the prediction frame: a row per trial and sample of the val and test sides.

        Columns: trial, backbone, kind ("backbone", "baseline", "tta" over symmetries), protocol, fold, seed,
        sample, subject, group, same_cell, side ("val", "test"), label (class name) and a `probability_<class>` each.
        `leukemia_dl.evaluate`, `compare`, `leaderboard` and `inflation` compute intervals and comparisons from it.

        Args:
            cell_area: Add the area of the cell in pixels of the file (NaN where an image shows no single cell), to
                evaluate by it. The files are read for it.
        """
        records = list(self._records())
        areas = None
        if cell_area:
            samples = np.unique(np.concatenate([record.samples for record in records] or [np.empty(0, np.str_)]))
            measured = self.dataset.subset(self.dataset.table["sample"].isin(samples).to_numpy(bool))
            cells = measure_cells(measured)
            area = np.where(cells.single_cell, np.exp(cells.size[:, 0]), np.nan)
            areas = dict(zip(measured.table["sample"], area.tolist(), strict=True))
        return prediction_frame(records, self.dataset.class_names, self.dataset.table, areas)

    def predict_on(self, other: Dataset, label_map: LabelMap | None = None, show_progress: bool = True) -> pd.DataFrame:
        """Return the prediction frame of all trained nets, and floors, on `other`, a data set from elsewhere.

        `label_map` leads from its labels to classes of this one, or to None for those to be left out. Every fold's net
        predicts every image; the fold stands in the column `repeat` too. `show_progress` tells how far it is.

        Raises:
            DataError, StoreError, ImageError: For a label that is no class; a store without trials; a damaged image.
        """
        return predict_on(self, other, label_map, show_progress)

    def evaluate_on(
        self, other: Dataset, label_map: LabelMap | None = None, show_progress: bool = True
    ) -> pd.DataFrame:
        """Return the result frame of `other`; `label_map`, `show_progress` and errors as for `predict_on`.

        Nets come with their own pipelines and temperatures; floors are fitted again, on each split's training side.
        """
        return evaluate_on(self, other, label_map, show_progress)

    def histories(self) -> pd.DataFrame:
        """Return the learning curves: a row per trial and epoch, with trial, backbone, protocol, fold and seed."""
        return history_frame(self._records())

    def to_toml(self, path: str | Path | None = None) -> str:
        """Return the settings as TOML: everything that makes the frame. `Benchmark.from_toml` repeats the run.

        Args:
            path: A file to write it to as well.

        Raises:
            StoreError: If it cannot be written.
        """
        text = settings_of(self)
        if path is not None:
            Store(Path(path).parent).write_text(Path(path).name, text)
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
            SettingsError: If the file is none of ours, or cannot be repeated here (another backend).
            DataError: If the data set is not the one of the file.
        """
        found, arguments = read_settings(Path(path), dataset, root)
        if store is not None:
            arguments["store"] = store
        return cls(found, **arguments)

    @cached_property
    def _grid(self) -> list[Cell]:
        backbones = {name: (found, self.recipes[name], self._weights[name]) for name, found in self._found.items()}
        usual = {size: self.recipe.pipeline(size, self.dataset.info.canvas) for size in self.pipelines}
        axes = (self.dataset.fingerprint, self.splits, backbones, self.baselines, self.seeds)
        return grid(*axes, backend_name(), self.pipelines, usual)

    @cached_property
    def _used(self) -> NDArray[np.int64]:
        """The rows of the data set that any split uses."""
        return np.unique(np.concatenate([np.concatenate([s.train, s.val, s.test]) for s in self.splits]))

    def _check_device(self, executor: Executor) -> None:
        """Raise BackendError now, and not once per trial."""
        if isinstance(executor, InProcess):
            prepare(self.recipe.precision, self.compute)
        elif isinstance(executor, Processes) and (self.compute.device[:3] == "gpu" or self.recipe.precision != "auto"):
            prepare_elsewhere(self.recipe.precision, self.compute)

    def _status(self, record: Record) -> str:
        lacks_model = record.status == "ok" and not is_kept(self.store, record, self.save_models, False)
        return "no model" if lacks_model else record.status

    def _look(self, trial: Trial) -> Record | str:
        """Return the record of a trial without its arrays; or its status."""
        try:
            return self.store.read(trial, arrays=False) or "to do"
        except DamagedRecordError:
            return "damaged"

    def _records(self, arrays: bool = True) -> Iterator[Record]:
        for cell in self._grid:
            try:
                record = self.store.read(cell.trial, arrays)
            except DamagedRecordError as error:
                _log.warning("%s", error)
                continue
            if record is not None:
                yield record

    def _export(self) -> None:
        """Write the tables of the whole store: this grid in its order, then the trials of other grids.

        Another driver may have finished a trial meanwhile, and written a table that this one is about to replace: so
        they are written until nothing has come.
        """
        state: list[tuple[str, int]] | None = None
        while state != (state := self.store.state()):
            mine = list(self._records(arrays=False))
            digests = {record.trial.digest for record in mine}
            others = [record for record in self.store.records(arrays=False) if record.trial.digest not in digests]
            self.store.export(result_frame([*mine, *others]), timing_frame([*mine, *others]))
