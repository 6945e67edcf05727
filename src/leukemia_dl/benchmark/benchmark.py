"""Benchmark: the grid of backbones, folds and seeds over one data set, with its floors, as one DataFrame."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd

from leukemia_dl.benchmark.baselines import BASELINES, check_baseline, measure_cells
from leukemia_dl.benchmark.frames import history_frame, prediction_frame, result_frame, timing_frame
from leukemia_dl.benchmark.progress import GridProgress
from leukemia_dl.benchmark.runner import Job, Pixels, run_trial
from leukemia_dl.benchmark.store import MODEL_FILE, Store
from leukemia_dl.benchmark.trial import Record, Trial
from leukemia_dl.datasets import Dataset, Split, make_splits
from leukemia_dl.errors import SettingsError, TrainingError
from leukemia_dl.models.build import check_size, weights_identity
from leukemia_dl.models.registry import find_backbone
from leukemia_dl.models.spec import BackboneSpec
from leukemia_dl.plugins import DISTRIBUTION
from leukemia_dl.preprocess import Pipeline
from leukemia_dl.training.backends import backend_name, check_device, prepare
from leukemia_dl.training.callbacks import CallbackFactory, load_factory
from leukemia_dl.training.recipe import Recipe

__all__ = ["DEFAULT_BACKBONES", "Benchmark"]

DEFAULT_BACKBONES = ("vgg16", "resnet50", "inception_v3", "xception", "cnn")


@dataclass(frozen=True)
class _Cell:
    """One cell of the grid: a trial with what is needed to run it."""

    trial: Trial
    split: Split
    size: int
    spec: BackboneSpec | None = None


class Benchmark:
    """A comparison of backbones on one data set.

    Everything is checked on creation, before a pixel is read; `run()` reuses what the store already holds.

    Args:
        dataset: What to learn from. Samples without a label are left out.
        backbones: Names of registered backbones; the five built-in architectures by default.
        recipe: Name of a preset, or a `Recipe`.
        protocol: How the data set is split, see `leukemia_dl.make_splits`.
        folds: Which folds are the test side in turn; None for the protocol's own default, "all" for all.
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
        callbacks: Makes Keras callbacks for each fit: a function of a `FitContext`, or its name as "module:function".
            Not part of what names a trial: what they do to the training is not known here.

    Raises:
        UnknownNameError: For a backbone, baseline, recipe or protocol that is not there.
        SettingsError: For a value that is not allowed, such as an image size below a backbone's minimum.
        SplitError: If the protocol cannot be applied to the data set.

    Example:
        >>> import leukemia_dl as ldl                                          # doctest: +SKIP
        >>> dataset = ldl.Dataset.load("synthetic", subjects=40)               # doctest: +SKIP
        >>> frame = ldl.Benchmark(dataset, ["cnn"], store="runs/first").run()  # doctest: +SKIP
    """

    def __init__(
        self,
        dataset: Dataset,
        backbones: Sequence[str] | None = None,
        *,
        recipe: str | Recipe = "quick",
        protocol: str = "official_clean",
        folds: Sequence[int] | Literal["all"] | None = None,
        seeds: Sequence[int] = (0,),
        baselines: Sequence[str] = BASELINES,
        store: str | Path | None = None,
        pipeline: Pipeline | Callable[[int], Pipeline] | None = None,
        allow_leakage: bool = False,
        save_models: bool = True,
        device: str = "auto",
        callbacks: CallbackFactory | str | None = None,
    ) -> None:
        """See the class."""
        if not isinstance(dataset, Dataset) or not isinstance(recipe, (str, Recipe)):
            raise SettingsError(
                "Benchmark takes a Dataset and, as recipe, a Recipe or the name of a preset. "
                f"Received: {type(dataset).__name__} and recipe={recipe!r}."
            )
        self.recipe = Recipe.preset(recipe) if isinstance(recipe, str) else recipe
        self.backbones = _names("backbones", DEFAULT_BACKBONES if backbones is None else backbones)
        self.baselines = tuple(check_baseline(name) for name in _names("baselines", baselines, empty=True))
        self.seeds = _seeds(seeds)
        self._found = {name: find_backbone(name) for name in self.backbones}
        self.recipes = {name: self.recipe.for_backbone(found.record) for name, found in self._found.items()}
        for name, found in self._found.items():
            check_size(found.record, int(self.recipes[name].image_size))
        self._weights = {n: weights_identity(f.record, self.recipes[n].weights) for n, f in self._found.items()}
        sizes = sorted({int(recipe.image_size) for recipe in self.recipes.values()})
        self.pipelines = {size: _pipeline(pipeline, self.recipe, size, dataset.info.canvas) for size in sizes}
        self.device = check_device(device)
        self.callbacks = self.recipe.callbacks if callbacks is None else callbacks
        self._callbacks = load_factory(self.callbacks)
        self.dataset = dataset.subset(dataset.labels >= 0)
        self.protocol, self.folds, self.allow_leakage = protocol, folds, allow_leakage
        # The split is part of the question, not of the answer's randomness: one for all seeds.
        self.splits = tuple(make_splits(self.dataset, protocol, folds=folds, seed=0, allow_leakage=allow_leakage))
        self.store = Store(store if store is not None else Path("runs") / f"{dataset.info.name}-{self.recipe.name}")
        self.save_models = save_models

    def __repr__(self) -> str:
        """Name the axes of the grid."""
        return (
            f"Benchmark({self.dataset.info.name!r}, backbones={list(self.backbones)}, recipe={self.recipe.name!r}, "
            f"protocol={self.protocol!r}, folds={[split.fold for split in self.splits]}, seeds={list(self.seeds)}, "
            f"store={str(self.store.root)!r})"
        )

    def plan(self) -> pd.DataFrame:
        """Return a row per trial: backbone, protocol, fold, seed, status ("ok", "failed", ... or "to do"), folder."""
        rows = []
        for cell in self._grid:
            record = self.store.read(cell.trial)
            rows.append(
                {
                    "backbone": cell.trial.backbone,
                    "protocol": cell.trial.protocol,
                    "fold": cell.trial.fold,
                    "seed": cell.trial.seed,
                    "status": record.status if record else "to do",
                    "folder": cell.trial.folder,
                }
            )
        return pd.DataFrame(rows).astype({"fold": "Int64", "seed": "Int64"})

    def run(
        self,
        *,
        existing: Literal["reuse", "rerun"] = "reuse",
        on_error: Literal["continue", "raise"] = "continue",
        show_progress: bool = True,
    ) -> pd.DataFrame:
        """Run every trial that the store does not hold yet, and return the result frame.

        Each trial is written as it ends. Ctrl-C keeps the finished ones, and `run` goes on from there next time.

        Args:
            existing: "reuse" finished trials of the store, or "rerun" all. Failed ones are always run again.
            on_error: "continue" with the next trial, the failed one being a row with its error; or "raise".
            show_progress: A bar on a terminal, plain lines elsewhere, both on standard error.

        Returns:
            A row per trial, see `results`.

        Raises:
            StoreError: If the store cannot be written.
            ImageError: If images cannot be decoded; up to ten are named.
        """
        for name, value, allowed in (
            ("existing", existing, ("reuse", "rerun")),
            ("on_error", on_error, ("continue", "raise")),
        ):
            if value not in allowed:
                raise SettingsError(f"{name} must be one of {allowed}. Received: {name}={value!r}.")
        self.store.create()
        self.store.write_text("settings.toml", self.to_toml())
        used = np.unique(np.concatenate([np.concatenate([s.train, s.val, s.test]) for s in self.splits]))
        pixels = {size: Pixels(self.dataset, used, steps, show_progress) for size, steps in self.pipelines.items()}
        grid = self._grid
        kept = {cell.trial.digest: self.store.read(cell.trial) for cell in grid} if existing == "reuse" else {}
        to_do = [cell for cell in grid if not self._is_kept(cell, kept.get(cell.trial.digest)) and cell.spec]
        for size in sorted({cell.size for cell in to_do}):
            # Outside the trials: what cannot be decoded is an error of the data, not of a backbone.
            pixels[size].read()
        if to_do:
            prepare(self.recipe.precision, self.device)
        try:
            with GridProgress(len(grid), show_progress) as progress:
                for cell in grid:
                    self._run_cell(cell, kept.get(cell.trial.digest), pixels[cell.size], progress, existing, on_error)
        finally:
            self._export()
        return self.results()

    def results(self) -> pd.DataFrame:
        """Return the result frame from what the store holds: a row per finished trial, in the order of the grid.

        `backbone, accuracy, loss` come first, then the other metrics (float, NaN where undefined), then what was
        compared on what: no column changes between equal runs.
        """
        return result_frame(record for _, record in self._records())

    def timings(self) -> pd.DataFrame:
        """Return a row per finished trial: seconds, memory, machine and versions."""
        return timing_frame(record for _, record in self._records())

    def predictions(self, *, cell_area: bool = False) -> pd.DataFrame:
        """Return the prediction frame: a row per trial and sample of the val and test sides.

        Columns: trial, backbone, kind ("backbone" or "baseline"), fold, seed, sample, subject, group, same_cell, side
        ("val" or "test"), label (class name) and a `probability_<class>` per class. Every interval and comparison is
        computed from it: `leukemia_dl.evaluate`, `compare`, `leaderboard`.

        Args:
            cell_area: Add the area of the cell in pixels of the file (NaN where an image shows no single cell), to
                evaluate by it. The files are read for it.
        """
        records = [record for _, record in self._records()]
        areas = None
        if cell_area:
            samples = np.unique(np.concatenate([record.samples for record in records] or [np.empty(0, np.str_)]))
            measured = self.dataset.subset(self.dataset.table["sample"].isin(samples).to_numpy(bool))
            cells = measure_cells(measured)
            area = np.where(cells.single_cell, np.exp(cells.size[:, 0]), np.nan)
            areas = dict(zip(measured.table["sample"], area.tolist(), strict=True))
        return prediction_frame(records, self.dataset, areas)

    def histories(self) -> pd.DataFrame:
        """Return the learning curves: a row per trial and epoch, with backbone, fold, seed and trial in front."""
        return history_frame(record for _, record in self._records())

    def to_toml(self) -> str:
        """Return the resolved settings as TOML: everything that makes the frame. What is None is left out."""
        import tomli_w

        settings = {
            "dataset": {
                "name": self.dataset.info.name,
                "synthetic": self.dataset.info.synthetic,
                "samples": len(self.dataset),
                "class_names": list(self.dataset.class_names),
                "fingerprint": self.dataset.fingerprint,
            },
            "benchmark": {
                "backbones": list(self.backbones),
                "baselines": list(self.baselines),
                "protocol": self.protocol,
                "folds": [split.fold for split in self.splits if split.fold is not None],
                "seeds": list(self.seeds),
                "allow_leakage": self.allow_leakage,
                "save_models": self.save_models,
            },
            "recipe": {name: value for name, value in self.recipe.to_dict().items() if value is not None},
            "pipeline": {str(size): steps.to_dict() for size, steps in self.pipelines.items()},
        }
        if isinstance(self.callbacks, str):
            settings["benchmark"]["callbacks"] = self.callbacks
        return tomli_w.dumps(settings)

    @cached_property
    def _grid(self) -> list[_Cell]:
        largest = max(self.pipelines)
        cells = []
        for split in self.splits:
            where: dict[str, Any] = {"split": split.digest, "protocol": split.protocol, "fold": split.fold}
            where["dataset"] = self.dataset.fingerprint
            for name, found in self._found.items():
                recipe = self.recipes[name]
                size = int(recipe.image_size)
                for seed in self.seeds:
                    trial = Trial(
                        kind="backbone",
                        backbone=name,
                        plugin=found.plugin,
                        plugin_version=found.version,
                        weights=self._weights[name],
                        recipe=recipe.to_dict() | {"weights": self._weights[name]},
                        seed=seed,
                        backend=backend_name(),
                        pipeline=self.pipelines[size].to_dict(),
                        **where,
                    )
                    cells.append(_Cell(trial, split, size, found.record))
            for name in self.baselines:
                trial = Trial(
                    kind="baseline",
                    backbone=name,
                    plugin=DISTRIBUTION,
                    plugin_version=version(DISTRIBUTION),
                    weights=None,
                    recipe=None,
                    seed=None,
                    backend=None,
                    pipeline=self.pipelines[largest].to_dict(),
                    **where,
                )
                cells.append(_Cell(trial, split, largest))
        return cells

    def _run_cell(
        self, cell: _Cell, kept: Record | None, pixels: Pixels, progress: GridProgress, existing: str, on_error: str
    ) -> None:
        progress.begin(cell.trial)
        if kept is not None and self._is_kept(cell, kept):
            progress.end(kept, 0.0, reused=True)
            return
        if existing == "rerun":
            self.store.remove_checkpoints(cell.trial)
        started = time.perf_counter()
        job = None
        if cell.spec is not None:
            aside = (self.store.checkpoints(cell.trial), self.store.logs(cell.trial))
            job = Job(cell.spec, self.recipe, self.device, *aside, self._callbacks)
        record, save = run_trial(cell.trial, self.dataset, cell.split, pixels, job, progress)
        folder = self.store.write(record, save if self.save_models else None)
        # That of a failed one would fail again; only what was interrupted is gone on with.
        self.store.remove_checkpoints(cell.trial)
        progress.end(record, time.perf_counter() - started)
        if record.status == "failed" and on_error == "raise":
            raise TrainingError(f"{cell.trial.folder} failed: {record.error} (traceback in {folder / 'record.json'})")

    def _is_kept(self, cell: _Cell, record: Record | None) -> bool:
        """Whether the store holds all that is asked for of a trial: its result, and its model if models are saved."""
        if record is None or record.status == "failed":
            return False
        wanted = self.save_models and cell.spec is not None
        return not wanted or (self.store.folder(cell.trial) / MODEL_FILE).is_file()

    def _records(self) -> Iterable[tuple[Trial, Record]]:
        for cell in self._grid:
            record = self.store.read(cell.trial)
            if record is not None:
                yield cell.trial, record

    def _export(self) -> None:
        """Write the tables of the whole store: this grid in its order, then the trials of other grids."""
        mine = [record for _, record in self._records()]
        digests = {record.trial.digest for record in mine}
        records = mine + [record for record in self.store.records() if record.trial.digest not in digests]
        self.store.export(result_frame(records), timing_frame(records))


def _pipeline(
    given: Pipeline | Callable[[int], Pipeline] | None, recipe: Recipe, size: int, canvas: int | None
) -> Pipeline:
    if given is None:
        return recipe.pipeline(size, canvas)
    pipeline = given if isinstance(given, Pipeline) else given(size)
    if not isinstance(pipeline, Pipeline):
        raise SettingsError(f"pipeline must be a Pipeline or a function from a size to one. Received: {pipeline!r}.")
    if pipeline.output_size not in (None, size):
        raise SettingsError(
            f"The pipeline ends in {pipeline.output_size} pixels and the recipe's image_size is {size}: make them "
            "equal, or pass a function from the size to a pipeline, such as Pipeline.default."
        )
    return pipeline


def _names(what: str, names: Sequence[str], empty: bool = False) -> tuple[str, ...]:
    if isinstance(names, str):
        raise SettingsError(f"{what} must be a list of names. Received: {names!r}; write [{names!r}].")
    if not names and not empty:
        raise SettingsError(f"{what} must name at least one. Received: {names!r}.")
    if len(set(names)) < len(names):
        raise SettingsError(f"{what} must not repeat a name. Received: {list(names)!r}.")
    return tuple(names)


def _seeds(seeds: Sequence[int]) -> tuple[int, ...]:
    values = tuple(seeds)
    if not values or any(isinstance(s, bool) or not isinstance(s, int) or not 0 <= s < 2**32 for s in values):
        raise SettingsError(f"seeds must be whole numbers from 0 to 2**32 - 1, at least one. Received: {seeds!r}.")
    if len(set(values)) < len(values):
        raise SettingsError(f"seeds must not repeat. Received: {list(values)!r}.")
    return values
