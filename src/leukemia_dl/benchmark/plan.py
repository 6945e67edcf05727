"""The plan of a benchmark: its settings, checked, and every trial that they ask for."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from leukemia_dl.benchmark.baselines import FITTED_BY
from leukemia_dl.benchmark.trial import RESULTS_VERSION, Trial
from leukemia_dl.checks import whole_number
from leukemia_dl.datasets import Dataset, Split, make_splits
from leukemia_dl.datasets.splits import PROTOCOLS
from leukemia_dl.errors import SettingsError
from leukemia_dl.models.backend import backend_name
from leukemia_dl.models.build import check_size, weights_identity
from leukemia_dl.models.registry import BackboneSpec, find_backbone
from leukemia_dl.plugins import DISTRIBUTION, installed_version
from leukemia_dl.preprocess import Pipeline
from leukemia_dl.training.backends import ComputeConfig
from leukemia_dl.training.recipe import Recipe

__all__ = ["Net", "Plan", "PlannedTrial", "changes_of", "planned_net", "planned_trials", "splits_of",
           "unique"]  # fmt: skip

Net = tuple[dict[str, Any], dict[str, Any]]  # fields of `Trial` and of `PlannedTrial` that a backbone's trials share


@dataclass(frozen=True)
class PlannedTrial:
    """A trial with everything that is needed to run it; a baseline has neither spec, recipe nor pipeline."""

    trial: Trial
    split: Split
    spec: BackboneSpec | None = None
    recipe: Recipe | None = None  # resolved for the backbone
    pipeline: Pipeline | None = None  # steps that learn are fitted to the training images of the split as it runs
    changes: str = ""  # settings that differ from the preset of the recipe

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
    folds: Any
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

    def part(self, shard: str | Sequence[int] | None) -> list[PlannedTrial]:
        """Return the trials of part i of n for "i/n" or (i, n): every n-th backbone's trial and every n-th baseline.

        Baselines are counted apart: they cost little and should fill no part.
        """
        try:
            part, parts = (1, 1) if shard is None else map(int, shard.split("/") if isinstance(shard, str) else shard)
        except (TypeError, ValueError):
            part, parts = 0, 0
        if not 1 <= part <= parts:
            raise SettingsError(f"shard must be 'i/n' with i from 1 to n, such as '1/4'. Received: shard={shard!r}.")
        return sorted(self.trials, key=lambda planned: planned.spec is None)[part - 1 :: parts]


def planned_trials(
    dataset: Dataset, splits: Sequence[Split], nets: Iterable[Net], seeds: Sequence[int], baselines: Sequence[str]
) -> tuple[PlannedTrial, ...]:
    """Return every trial: by split, then backbone and seed, then baseline."""
    nothing: Any = dict.fromkeys(("plugin_version", "weights", "pipeline", "recipe", "seed", "backend"))
    versions = {name: _versions(*FITTED_BY.get(name, ())) for name in baselines}
    planned: list[PlannedTrial] = []
    for split in splits:
        where: dict[str, Any] = {"dataset": dataset.fingerprint, "split": split.digest}
        where |= {"protocol": split.protocol, "fold": split.fold}
        for trial, rest in nets:
            planned += [PlannedTrial(Trial(**trial, **where, seed=seed), split, **rest) for seed in seeds]
        for name in baselines:
            baseline = Trial("baseline", name, DISTRIBUTION, **where, **nothing, versions=versions[name])
            planned.append(PlannedTrial(baseline, split))
    return tuple(planned)


def planned_net(
    name: str, recipe: Recipe, pipeline: Pipeline | Callable[[int], Pipeline] | None, canvas: int | None
) -> Net:
    """Return what all trials of a backbone have in common.

    `pipeline` is a pipeline, a function from an image size to one, or None for the usual one of recipe and data set.
    """
    found, backend = find_backbone(name), backend_name()
    spec: BackboneSpec = found.record
    resolved = recipe.for_backbone(spec)
    size = int(resolved.image_size)
    check_size(spec, size)
    weights = weights_identity(spec, resolved.weights_for(spec))
    usual = recipe.pipeline(size, canvas)
    chosen = usual if pipeline is None else pipeline if isinstance(pipeline, Pipeline) else pipeline(size)
    if not isinstance(chosen, Pipeline):
        raise SettingsError(f"pipeline must be a Pipeline or a function from a size to one. Received: {chosen!r}.")
    if chosen.output_size not in (None, size):
        raise SettingsError(
            f"The pipeline ends in {chosen.output_size} pixels and the recipe's image_size is {size}: make them "
            "equal, or pass a function from the size to a pipeline, such as dataset.default_pipeline."
        )
    trial = {
        "kind": "backbone",
        "backbone": name,
        "plugin": found.plugin,
        "plugin_version": None if found.plugin == DISTRIBUTION else found.version,
        "weights": weights,
        "recipe": resolved.to_dict() | {"weights": weights},
        "pipeline": chosen.to_dict(),
        "backend": backend,
        "versions": _versions("keras", backend),
    }
    changes = changes_of(resolved, spec, chosen, usual)
    return trial, {"spec": spec, "recipe": resolved, "pipeline": chosen, "changes": changes}


def _versions(*distributions: str) -> dict[str, Any]:
    return {"results": RESULTS_VERSION} | {name: installed_version(name) for name in distributions}


def changes_of(recipe: Recipe, spec: BackboneSpec, pipeline: Pipeline, usual: Pipeline) -> str:
    """Return the settings of a recipe for a backbone that differ from its preset: "learning_rate=0.01, rotation=20".

    A recipe that is not named after a preset is compared with the defaults of `Recipe`, and a `pipeline` with the
    `usual` one of the recipe and the data set.
    """
    preset = Recipe.preset(recipe.name) if recipe.name in Recipe.presets() else Recipe()
    with contextlib.suppress(SettingsError):  # the preset alone does not suit the backbone
        preset = preset.for_backbone(spec)
    before = {**preset.to_dict(), **{name: recipe.to_dict()[name] for name in ("name", "if_no_weights")}}
    changed = {name: value for name, value in recipe.to_dict().items() if value != before[name]}
    if "weights" in changed:
        changed["weights"] = Path(recipe.weights_for(spec) or "random").name
    if pipeline != usual:
        changed["pipeline"] = " + ".join(map(repr, pipeline.steps))
    shown = {name: f"{value:g}" if isinstance(value, float) else value for name, value in changed.items()}
    return ", ".join(f"{name}={value}" for name, value in shown.items())


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
        splits += make_splits(dataset, name, asked, seed=0, allow_leakage=allow_leakage, n_folds=drawn)
    return tuple(splits)


def unique(what: str, values: Any, number: bool = False, least: int = 1) -> tuple[Any, ...]:
    """Return a list of names, or of numbers, as a tuple; SettingsError if it is none, is too short or repeats one."""
    if not isinstance(values, (list, tuple, range, np.ndarray)):
        raise SettingsError(f"{what} must be a list. Received: {values!r}; write [{values!r}].")
    found = tuple(whole_number(what, value, 0, 2**32 - 1) if number else value for value in values)
    if not number and not all(isinstance(name, str) for name in found):
        raise SettingsError(f"{what} must be a list of names. Received: {values!r}.")
    if len(set(found)) < max(len(found), least):
        raise SettingsError(f"{what} must have at least one value and repeat none. Received: {list(found)!r}.")
    return found
