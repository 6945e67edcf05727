"""The plan of a benchmark: its settings, checked, and every trial that they ask for."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar, cast

import numpy as np
from numpy.typing import NDArray

from leukemia_dl.benchmark.baselines import FITTED_BY
from leukemia_dl.benchmark.trial import RESULTS_VERSION, Trial
from leukemia_dl.checks import whole_number
from leukemia_dl.datasets import Dataset, Split, make_splits
from leukemia_dl.datasets.protocols import PROTOCOLS
from leukemia_dl.errors import SettingsError
from leukemia_dl.models.backend import backend_name
from leukemia_dl.models.build import check_size, weights_identity
from leukemia_dl.models.registry import find_backbone
from leukemia_dl.models.spec import BackboneSpec
from leukemia_dl.plugins import DISTRIBUTION, installed_version
from leukemia_dl.preprocess import Pipeline
from leukemia_dl.training.backends import ComputeConfig
from leukemia_dl.training.recipe import Recipe

__all__ = ["Plan", "PlannedTrial", "changes_of", "check_shard", "checked_seeds", "net_settings", "planned_trials",
           "shard_of", "splits_of", "unique_names"]  # fmt: skip

T = TypeVar("T")


@dataclass(frozen=True)
class PlannedTrial:
    """A trial with everything that is needed to run it.

    Attributes:
        trial: The trial.
        split: Its split.
        spec: Its backbone; None for a baseline, which has no recipe and no pipeline either.
        recipe: Its recipe, resolved for the backbone.
        pipeline: From file to pixels. Steps that learn are fitted to the training images of the split when it runs.
        changes: Settings that differ from the preset of its recipe; "" for none.
    """

    trial: Trial
    split: Split
    spec: BackboneSpec | None = None
    recipe: Recipe | None = None
    pipeline: Pipeline | None = None
    changes: str = ""

    @property
    def size(self) -> int:
        """Side of its images in pixels; 0 for a baseline."""
        return 0 if self.recipe is None else int(self.recipe.image_size)


@dataclass(frozen=True, eq=False)
class Plan:
    """The settings of a benchmark, checked, and every trial that they ask for."""

    dataset: Dataset  # the labelled images
    source: Mapping[str, Any] | None  # how `Dataset.load` makes the data set again
    recipe: Recipe  # for all backbones; planned trials have the resolved ones
    backbones: tuple[str, ...]
    baselines: tuple[str, ...]
    protocols: tuple[str, ...]
    folds: list[int] | str | None
    n_folds: int | None
    allow_leakage: bool
    seeds: tuple[int, ...]
    splits: tuple[Split, ...]
    compute: ComputeConfig
    callbacks: Any
    save_models: bool
    trials: tuple[PlannedTrial, ...]  # in the order of all tables

    @cached_property
    def rows(self) -> NDArray[np.int64]:
        """The rows of the data set that any split uses, sorted."""
        return np.unique(np.concatenate([np.concatenate([s.train, s.val, s.test]) for s in self.splits]))

    @property
    def pipelines(self) -> dict[int, Pipeline]:
        """The pipelines of all trials by image size in pixels."""
        return {planned.size: planned.pipeline for planned in self.trials if planned.pipeline is not None}


def planned_trials(
    dataset: Dataset,
    splits: Sequence[Split],
    nets: Iterable[Mapping[str, Any]],
    seeds: Sequence[int],
    baselines: Sequence[str],
) -> tuple[PlannedTrial, ...]:
    """Return every trial: by split, then backbone (`nets`, of `net_settings`) and seed, then baseline."""
    backend = backend_name()
    versions = {name: installed_version(name) for name in ("keras", backend, "scikit-learn")}
    nothing: Any = dict.fromkeys(("plugin_version", "weights", "pipeline", "recipe", "seed", "backend"))
    planned: list[PlannedTrial] = []
    for split in splits:
        where: dict[str, Any] = {"dataset": dataset.fingerprint, "split": split.digest}
        where |= {"protocol": split.protocol, "fold": split.fold}
        made_by = {"results": RESULTS_VERSION, "keras": versions["keras"], backend: versions[backend]}
        for net in nets:
            for seed in seeds:
                trial = Trial(**net["trial"], **where, seed=seed, backend=backend, versions=made_by)
                planned.append(PlannedTrial(trial, split, **net["planned"]))
        for name in baselines:
            made_by = {"results": RESULTS_VERSION, **{key: versions[key] for key in FITTED_BY.get(name, ())}}
            trial = Trial("baseline", name, DISTRIBUTION, **where, **nothing, versions=made_by)
            planned.append(PlannedTrial(trial, split))
    return tuple(planned)


def net_settings(
    name: str, recipe: Recipe, pipeline: Pipeline | Callable[[int], Pipeline] | None, canvas: int | None
) -> dict[str, Any]:
    """Return the fields that all trials of a backbone have in common: of `Trial`, and of `PlannedTrial`.

    `pipeline` is a pipeline, a function from an image size to one, or None for the usual one of recipe and data set.
    """
    found = find_backbone(name)
    spec: BackboneSpec = found.record
    resolved = recipe.for_backbone(spec)
    size = int(resolved.image_size)
    check_size(spec, size)
    weights = weights_identity(spec, resolved.weights_for(spec))
    usual = recipe.pipeline(size, canvas)
    pipeline = usual if pipeline is None else _of_size(pipeline, size)
    trial = {
        "kind": "backbone",
        "backbone": name,
        "plugin": found.plugin,
        "plugin_version": None if found.plugin == DISTRIBUTION else found.version,
        "weights": weights,
        "recipe": resolved.to_dict() | {"weights": weights},
        "pipeline": pipeline.to_dict(),
    }
    changes = changes_of(resolved, spec, pipeline, usual)
    planned = {"spec": spec, "recipe": resolved, "pipeline": pipeline, "changes": changes}
    return {"trial": trial, "planned": planned}


def _of_size(given: Pipeline | Callable[[int], Pipeline], size: int) -> Pipeline:
    """Return the pipeline for images of a size."""
    pipeline = given if isinstance(given, Pipeline) else given(size)
    if not isinstance(pipeline, Pipeline):
        raise SettingsError(f"pipeline must be a Pipeline or a function from a size to one. Received: {pipeline!r}.")
    if pipeline.output_size not in (None, size):
        raise SettingsError(
            f"The pipeline ends in {pipeline.output_size} pixels and the recipe's image_size is {size}: make them "
            "equal, or pass a function from the size to a pipeline, such as dataset.default_pipeline."
        )
    return pipeline


def changes_of(recipe: Recipe, spec: BackboneSpec, pipeline: Pipeline, usual: Pipeline) -> str:
    """Return the settings of a recipe for a backbone that differ from its preset: "learning_rate=0.01, rotation=20".

    A recipe that is not named after a preset is compared with the defaults of `Recipe`, and a `pipeline` with the
    `usual` one of the recipe and the data set.
    """
    preset = Recipe.preset(recipe.name) if recipe.name in Recipe.presets() else Recipe()
    with contextlib.suppress(SettingsError):  # the preset alone does not suit the backbone
        preset = preset.for_backbone(spec)
    before = preset.to_dict()
    changed = {name: value for name, value in recipe.to_dict().items() if value != before[name]}
    if "weights" in changed:
        changed["weights"] = Path(recipe.weights_for(spec) or "random").name
    if pipeline != usual:
        changed["pipeline"] = " + ".join(map(repr, pipeline.steps))
    return ", ".join(
        f"{name}={f'{value:g}' if isinstance(value, float) else value}"
        for name, value in changed.items()
        if name not in ("name", "if_no_weights")
    )


def shard_of(trials: Sequence[T], is_net: Iterable[bool], part: int, parts: int) -> list[T]:
    """Return every n-th trial of a backbone and every n-th baseline, which costs little and should fill no part."""
    in_turn = sorted(zip(is_net, trials, strict=True), key=lambda pair: not pair[0])
    return [trial for _, trial in in_turn][part - 1 :: parts]


def check_shard(shard: str | Sequence[int] | None) -> tuple[int, int]:
    """Return (i, n) of "i/n" or a pair: this part, from 1, of n; (1, 1) for None. Raises SettingsError."""
    try:
        part, parts = (1, 1) if shard is None else map(int, shard.split("/") if isinstance(shard, str) else shard)
    except (TypeError, ValueError, OverflowError):
        part, parts = 0, 0
    if not 1 <= part <= parts:
        raise SettingsError(f"shard must be 'i/n' with i from 1 to n, such as '1/4'. Received: shard={shard!r}.")
    return part, parts


def splits_of(
    dataset: Dataset, protocols: Sequence[str], folds: Any, n_folds: int | None, allow_leakage: bool
) -> tuple[Split, ...]:
    """Return the splits of every protocol; of several protocols, those without folds get none."""
    if n_folds is not None and "kfold" not in protocols:
        raise SettingsError(f"n_folds is for the protocol kfold. Received: {n_folds!r} with {', '.join(protocols)}.")
    splits: list[Split] = []
    for name in protocols:
        asked = folds if len(protocols) == 1 or PROTOCOLS[name].folds else None
        # The split is part of the question, not of the answer's randomness: one for all seeds.
        drawn = n_folds if name == "kfold" else None
        splits += make_splits(dataset, name, cast(Any, asked), seed=0, allow_leakage=allow_leakage, n_folds=drawn)
    return tuple(splits)


def unique_names(what: str, names: Sequence[str], empty: bool = False) -> tuple[str, ...]:
    """Return names as a tuple; SettingsError if it is one string, repeats one, or is empty where it must not be."""
    if isinstance(names, str):
        raise SettingsError(f"{what} must be a list of names. Received: {names!r}; write [{names!r}].")
    if not isinstance(names, (list, tuple)) or not all(isinstance(name, str) for name in names):
        raise SettingsError(f"{what} must be a list of names. Received: {names!r}.")
    if len(set(names)) < len(names) or not (names or empty):
        rule = "not repeat a name" if names else "name at least one"
        raise SettingsError(f"{what} must {rule}. Received: {list(names)!r}.")
    return tuple(names)


def checked_seeds(seeds: Sequence[int]) -> tuple[int, ...]:
    """Return seeds as a tuple, or raise SettingsError."""
    if not isinstance(seeds, (list, tuple, range, np.ndarray)) or not len(seeds):
        raise SettingsError(f"seeds must be whole numbers, at least one, in a list. Received: seeds={seeds!r}.")
    values = tuple(whole_number("seeds", seed, 0, 2**32 - 1) for seed in seeds)
    if len(set(values)) < len(values):
        raise SettingsError(f"seeds must not repeat. Received: {list(values)!r}.")
    return values
