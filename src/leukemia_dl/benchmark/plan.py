"""The plan of a benchmark: its settings, checked, and every `Trial`, a unit of work, that they ask for."""

import contextlib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from leukemia_dl.checks import choice, whole_number
from leukemia_dl.datasets import Dataset, Split, make_splits
from leukemia_dl.datasets.shots import few_shot
from leukemia_dl.datasets.splits import PROTOCOLS
from leukemia_dl.errors import SettingsError
from leukemia_dl.evaluation.metrics import RANKED
from leukemia_dl.identity import digest
from leukemia_dl.models.backbones import BackboneSpec, Spec, find_backbone
from leukemia_dl.models.build import backend_name, check_size, weights_identity
from leukemia_dl.models.embeddings import Embeddings
from leukemia_dl.plugins import DISTRIBUTION, installed_version
from leukemia_dl.preprocess import Pipeline
from leukemia_dl.training.backends import ComputeConfig
from leukemia_dl.training.recipe import Recipe

# Part of every trial's digest in place of this library's version. Increase it only with a change after which equal
# settings give different numbers.
RESULTS_VERSION = 4
_UNEQUAL = 1.5  # the largest class has at least so many times the images of the smallest
Net = tuple[dict[str, Any], dict[str, Any]]  # fields of `Trial` and of `PlannedTrial` that a backbone's trials share


@dataclass(frozen=True)
class Trial:
    """One backbone or baseline on one split with one recipe and one seed: everything that makes its result.

    Attributes:
        kind: "backbone" or "baseline", for which `weights`, `pipeline`, `recipe`, `seed` and `backend` are None.
        backbone: Its name, of the distribution `plugin` of `plugin_version`, which is None for this library.
        dataset: Fingerprint of the data set.
        split: Digest of the split, which is of a `protocol` and, maybe, a `fold`.
        versions: Of the software that computes: `RESULTS_VERSION` as "results", Keras, backend or scikit-learn.
    """

    kind: Literal["backbone", "baseline"]
    backbone: str
    plugin: str
    plugin_version: str | None
    weights: str | None  # a name, or "sha256:..." of a file
    dataset: str
    split: str
    pipeline: Mapping[str, Any] | None
    recipe: Mapping[str, Any] | None
    seed: int | None
    backend: str | None
    protocol: str
    fold: int | None
    versions: Mapping[str, Any] = field(default_factory=dict)

    @cached_property
    def digest(self) -> str:
        """SHA-256 over the canonical JSON of all fields: the cache key."""
        return digest(self.to_dict())

    @cached_property
    def folder(self) -> str:
        """Name of the trial's folder: readable, and unique by the digest's first twelve digits."""
        axes = [f"{axis}{getattr(self, axis)}" for axis in ("fold", "seed") if getattr(self, axis) is not None]
        name = re.sub(r"[^A-Za-z0-9_.-]", "_", "-".join([self.backbone, self.protocol, *axes]))
        # File systems take names of at most 255 characters, and this one gets a suffix at times.
        return f"{name[:150]}-{self.digest[:12]}"

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return asdict(self)


@dataclass(frozen=True)
class PlannedTrial:
    """A trial with everything that is needed to run it; a baseline has neither spec, recipe nor pipeline."""

    trial: Trial
    split: Split
    spec: Spec | None = None
    recipe: Recipe | None = None  # resolved for the backbone
    size: int = 0  # of its images in pixels
    pipeline: Pipeline | None = None  # steps that learn are fitted to the training images of the split as it runs
    changes: str = ""  # settings that differ from the preset of the recipe


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
    n_repeats: int
    shots: tuple[int | None, ...]
    allow_leakage: bool
    seeds: tuple[int, ...]
    splits: tuple[Split, ...]
    compute: ComputeConfig
    callbacks: Any
    save_models: bool
    primary_metric: str
    trials: tuple[PlannedTrial, ...]  # in the order of all tables

    @cached_property
    def rows(self) -> NDArray[np.int64]:
        """The rows of the data set that any split uses, sorted."""
        return np.unique(np.concatenate([np.r_[split.train, split.val, split.test] for split in self.splits]))

    @property
    def pipelines(self) -> dict[int, Pipeline]:
        """The pipelines of all trials by image size in pixels."""
        return {planned.size: planned.pipeline for planned in self.trials if planned.pipeline is not None}

    def part(self, shard: str | None) -> list[PlannedTrial]:
        """Return the trials of part i of n for "i/n": every n-th backbone's trial, then every n-th baseline."""
        match = re.fullmatch(r"([1-9]\d*)/([1-9]\d*)", "1/1" if shard is None else shard)
        if match is None or int(match[1]) > int(match[2]):
            raise SettingsError(f"shard must be 'i/n' with i from 1 to n, such as '1/4'. Received: shard={shard!r}.")
        # Baselines cost little and should fill no part.
        return sorted(self.trials, key=lambda planned: planned.spec is None)[int(match[1]) - 1 :: int(match[2])]


def planned_trials(
    dataset: Dataset, splits: Sequence[Split], nets: Iterable[Net], seeds: Sequence[int], baselines: Sequence[str]
) -> tuple[PlannedTrial, ...]:
    """Return every trial: by split, then backbone and seed, then baseline."""
    nothing: Any = dict.fromkeys(("plugin_version", "weights", "pipeline", "recipe", "seed", "backend"))
    versions = {name: _versions(*([] if name == "majority" else ["scikit-learn"])) for name in baselines}
    planned: list[PlannedTrial] = []
    for split in splits:
        own = seeds if split.shots is None else [split.seed]
        where: dict[str, Any] = {"dataset": dataset.fingerprint, "split": split.digest}
        where |= {"protocol": split.protocol, "fold": split.fold}
        for trial, rest in nets:
            planned += [PlannedTrial(Trial(**trial, **where, seed=seed), split, **rest) for seed in own]
        for name in baselines if split.shots is None else ():
            baseline = Trial("baseline", name, DISTRIBUTION, **where, **nothing, versions=versions[name])
            planned.append(PlannedTrial(baseline, split))
    return tuple(planned)


def planned_net(
    name: str, recipe: Recipe, pipeline: Pipeline | Callable[[int], Pipeline] | None, dataset: Dataset
) -> Net:
    """Return the fields that all trials of a backbone share; `pipeline` is as in `Benchmark`."""
    found = find_backbone(name)
    spec: Spec = found.record
    resolved = recipe.for_backbone(spec)
    size, settings, wanted = int(resolved.image_size), resolved.to_dict(), resolved.weights_for(spec)
    usual = recipe.pipeline(size, dataset.info.canvas)
    pipeline = None if isinstance(spec, Embeddings) else pipeline
    chosen = usual if pipeline is None else pipeline if isinstance(pipeline, Pipeline) else pipeline(size)
    if not isinstance(chosen, Pipeline) or chosen.output_size not in (None, size):
        raise SettingsError(
            f"pipeline must be a Pipeline that ends in {size} pixels, the recipe's image_size, or a function from a "
            f"size to one, such as dataset.default_pipeline. Received: {chosen!r}."
        )
    steps = chosen.to_dict()
    if isinstance(spec, BackboneSpec):
        check_size(spec, size)
    weights, backend = weights_identity(spec, wanted), backend_name()
    trial: dict[str, Any] = {"kind": "backbone", "backbone": name, "plugin": found.plugin, "backend": backend}
    trial |= {"weights": weights, "recipe": settings | {"weights": weights}, "pipeline": steps}
    trial |= {"plugin_version": None if found.plugin == DISTRIBUTION else found.version}
    trial["versions"] = _versions("keras", backend)
    if isinstance(spec, Embeddings):
        samples, paths = dataset.table["sample"].tolist(), dataset.table["path"].tolist()
        aligned = Embeddings(name, tuple(samples), spec.rows_for(samples, paths))
        trial |= {"pipeline": None, "plugin": "embeddings", "plugin_version": None}
        changes = changes_of(resolved, spec, usual, usual)
        return trial, {"spec": aligned, "recipe": resolved, "changes": changes}
    changes = changes_of(resolved, spec, chosen, usual)
    return trial, {"spec": spec, "recipe": resolved, "size": size, "pipeline": chosen, "changes": changes}


def _versions(*distributions: str) -> dict[str, Any]:
    return {"results": RESULTS_VERSION} | {name: installed_version(name) for name in distributions}


def changes_of(recipe: Recipe, spec: Spec, pipeline: Pipeline, usual: Pipeline) -> str:
    """Return the settings that differ from the preset of a recipe, or from the defaults if it is named after none."""
    preset = Recipe.preset(recipe.name) if recipe.name in Recipe.presets() else Recipe()
    with contextlib.suppress(SettingsError):  # the preset alone does not suit the backbone
        preset = preset.for_backbone(spec)
    now = recipe.to_dict()
    before = {**preset.to_dict(), "name": now["name"], "if_no_weights": now["if_no_weights"]}
    changed = {name: value for name, value in now.items() if value != before[name]}
    if "weights" in changed:
        changed["weights"] = Path(recipe.weights_for(spec) or "random").name
    if pipeline != usual:
        changed["pipeline"] = " + ".join(map(repr, pipeline.steps))
    shown = {name: f"{value:g}" if isinstance(value, float) else value for name, value in changed.items()}
    return ", ".join(f"{name}={value}" for name, value in shown.items())


def splits_of(
    dataset: Dataset, protocols: Sequence[str], folds: Any, n_folds: int | None, n_repeats: int, allow_leakage: bool,
    shots: Sequence[int | None], seeds: Sequence[int],
) -> tuple[Split, ...]:  # fmt: skip
    """Return the splits of every protocol and number of shots; of several protocols, those without folds get none."""
    if (n_folds is not None or n_repeats != 1) and "kfold" not in protocols:
        found = f"{n_folds=}, {n_repeats=} with {', '.join(protocols)}"
        raise SettingsError(f"n_folds and n_repeats are for the protocol kfold. Received: {found}.")
    splits: list[Split] = []
    for name in protocols:
        asked = folds if len(protocols) == 1 or PROTOCOLS[name].folds else None
        # The split is part of the question, not of the answer's randomness: one for all seeds.
        drawn: Any = {"n_folds": n_folds, "n_repeats": n_repeats} if name == "kfold" else {}
        splits += make_splits(dataset, name, asked, seed=0, allow_leakage=allow_leakage, **drawn)
    few = [few_shot(dataset, split, n, seed) for n in shots if n for split in splits for seed in seeds]
    return tuple([*few, *splits] if None in shots else few)


def checked_shots(shots: Any) -> tuple[int | None, ...]:
    """Return numbers of training patients per class, None for all of them, as a tuple."""
    listed = isinstance(shots, (list, tuple))
    numbers = [0 if n in (None, "all") else whole_number("shots", n, 1) for n in shots] if listed else shots
    return tuple(n or None for n in unique("shots", numbers, number=True))


def primary_metric(dataset: Dataset, name: str | None) -> str:
    """Return the metric to rank by, checked; None: balanced accuracy if classes are unequal, else accuracy."""
    if name is not None:
        return choice("primary_metric", name, RANKED)
    counts = np.bincount(dataset.labels)
    return "balanced_accuracy" if counts.max() >= _UNEQUAL * counts[counts > 0].min() else "accuracy"


def unique(name: str, values: Any, number: bool = False, least: int = 1) -> tuple[Any, ...]:
    """Return a list of names, or of numbers, as a tuple."""
    listed = isinstance(values, (list, tuple, range, np.ndarray))
    found = tuple(whole_number(name, value, 0, 2**32 - 1) if number else value for value in values) if listed else ()
    texts = number or all(isinstance(value, str) for value in found)
    if not listed or not texts or len(set(found)) < max(len(found), least):
        kind = "numbers" if number else "names"
        raise SettingsError(f"{name} must be a list of {kind}, at least {least}, none twice. Received: {values!r}.")
    return found
