"""The grid: every trial that a benchmark asks for, in the order of its tables."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, cast

from leukemia_dl.benchmark.baselines import FITTED_BY
from leukemia_dl.benchmark.trial import RESULTS_VERSION, Trial
from leukemia_dl.datasets import Dataset, Split, make_splits
from leukemia_dl.datasets.protocols import PROTOCOLS
from leukemia_dl.errors import SettingsError
from leukemia_dl.models.spec import BackboneSpec
from leukemia_dl.plugins import DISTRIBUTION, Provided, installed_version
from leukemia_dl.preprocess import Pipeline
from leukemia_dl.training.recipe import Recipe

__all__ = ["Cell", "changes_of", "check_shard", "grid", "shard_of", "splits_of"]

T = TypeVar("T")


@dataclass(frozen=True)
class Cell:
    """One cell of the grid: a trial with what is needed to run it.

    Attributes:
        trial: The trial.
        split: Its split.
        size: Side of its images in pixels.
        spec: Its backbone; None for a baseline.
        changes: Settings that differ from the preset of its recipe; "" for none.
    """

    trial: Trial
    split: Split
    size: int
    spec: BackboneSpec | None = None
    changes: str = ""


def grid(
    dataset: str,
    splits: Sequence[Split],
    backbones: Mapping[str, tuple[Provided, Recipe, str | None]],
    baselines: Sequence[str],
    seeds: Sequence[int],
    backend: str,
    pipelines: Mapping[int, Pipeline],
    usual: Mapping[int, Pipeline],
) -> list[Cell]:
    """Return the cells: by split, then backbone and seed, then baseline.

    Args:
        dataset: Fingerprint of the data set.
        splits: Of it.
        backbones: By name: what the registry has found, the recipe as it is for it, and the identity of its weights.
        baselines: Names.
        seeds: One trial of a backbone for each.
        backend: Of Keras.
        pipelines: By size in pixels.
        usual: Pipelines of the recipe and the data set, by size, from which `pipelines` may differ.
    """
    largest = max(pipelines)
    steps = {size: pipeline.to_dict() for size, pipeline in pipelines.items()}
    recipes = {name: recipe.to_dict() | {"weights": weights} for name, (_, recipe, weights) in backbones.items()}
    changes = {
        name: changes_of(recipe, found.record, pipelines[int(recipe.image_size)], usual[int(recipe.image_size)])
        for name, (found, recipe, _) in backbones.items()
    }
    versions = {name: installed_version(name) for name in ("keras", backend, "scikit-learn")}
    cells = []
    for split in splits:
        where: dict[str, Any] = {"split": split.digest, "protocol": split.protocol, "fold": split.fold}
        where["dataset"] = dataset
        for name, (found, recipe, weights) in backbones.items():
            size = int(recipe.image_size)
            for seed in seeds:
                trial = Trial(
                    kind="backbone",
                    backbone=name,
                    plugin=found.plugin,
                    plugin_version=None if found.plugin == DISTRIBUTION else found.version,
                    weights=weights,
                    recipe=recipes[name],
                    seed=seed,
                    backend=backend,
                    pipeline=steps[size],
                    versions={"results": RESULTS_VERSION, **{key: versions[key] for key in ("keras", backend)}},
                    **where,
                )
                cells.append(Cell(trial, split, size, found.record, changes[name]))
        for name in baselines:
            trial = Trial(
                kind="baseline",
                backbone=name,
                plugin=DISTRIBUTION,
                plugin_version=None,
                weights=None,
                recipe=None,
                seed=None,
                backend=None,
                pipeline=None,
                versions={"results": RESULTS_VERSION, **{key: versions[key] for key in FITTED_BY.get(name, ())}},
                **where,
            )
            cells.append(Cell(trial, split, largest))
    return cells


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


def splits_of(
    dataset: Dataset,
    protocols: Sequence[str],
    folds: Sequence[int] | str | None,
    allow_leakage: bool,
    n_folds: int | None,
) -> tuple[Split, ...]:
    """Return the splits of every protocol; of several, those without folds are asked for none."""
    if n_folds is not None and "kfold" not in protocols:
        raise SettingsError(f"n_folds is for the protocol kfold. Received: {n_folds!r} with {', '.join(protocols)}.")
    splits: list[Split] = []
    for name in protocols:
        asked = folds if len(protocols) == 1 or PROTOCOLS[name].folds else None
        # The split is part of the question, not of the answer's randomness: one for all seeds.
        drawn = n_folds if name == "kfold" else None
        splits += make_splits(dataset, name, cast(Any, asked), seed=0, allow_leakage=allow_leakage, n_folds=drawn)
    return tuple(splits)


def shard_of(trials: Sequence[T], is_net: Sequence[bool], part: int, parts: int) -> list[T]:
    """Return every n-th trial of a backbone and every n-th baseline: the latter cost little and should fill no part."""
    in_turn = sorted(zip(is_net, trials, strict=True), key=lambda pair: not pair[0])
    return [trial for _, trial in in_turn][part - 1 :: parts]


def check_shard(shard: str | Sequence[int] | None) -> tuple[int, int]:
    """Return (i, n) of "i/n" or a pair: this part, from 1, of how many; (1, 1) for None.

    Raises:
        SettingsError: If it is neither, or i is not from 1 to n.
    """
    if shard is None:
        return 1, 1
    try:
        part, parts = map(int, shard.split("/") if isinstance(shard, str) else shard)
    except (TypeError, ValueError, OverflowError):
        part, parts = 0, 0
    if not 1 <= part <= parts:
        raise SettingsError(f"shard must be 'i/n' with i from 1 to n, such as '1/4'. Received: shard={shard!r}.")
    return part, parts
