"""Nets that are built, traced and compiled once, for all folds and seeds of one backbone."""

from __future__ import annotations

import dataclasses
import time
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from leukemia_dl.identity import named_seed
from leukemia_dl.models.build import build_model, weights_identity
from leukemia_dl.models.heads import apply_head, split_at_features
from leukemia_dl.models.spec import BackboneSpec
from leukemia_dl.training.backends import Device
from leukemia_dl.training.batchnorm import batchnorm_layers
from leukemia_dl.training.recipe import Recipe

__all__ = ["Compiled", "Net", "Nets", "Stopwatch", "as_numpy", "assign"]


class Stopwatch:
    """Adds up the seconds of all `with` blocks that use it."""

    seconds = 0.0

    def __enter__(self) -> None:
        self._began = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        self.seconds += time.perf_counter() - self._began


@dataclass(eq=False)
class Compiled:
    """A net as one phase of a fit trains it.

    Attributes:
        net: `keras.Model`, compiled.
        optimizer: That it is compiled with.
        epochs: What an engine has made of it for the next fit, by the size of a batch.
    """

    net: Any
    optimizer: Any
    epochs: dict[int, Any] = field(default_factory=dict)


@dataclass(eq=False)
class Net:
    """A model, and what was compiled of it so far.

    Attributes:
        model: `keras.Model`.
        phases: By the phase's name.
        forward: Runs a batch through it for the statistics of BatchNorm, compiled; None for uncompiled.
        inner_head: Likewise for a copy of its head, which is trained on parts of the training side.
    """

    model: Any
    phases: dict[str, Compiled] = field(default_factory=dict)
    inner_head: Net | None = None
    forward: Any = None


class Nets:
    """The net of the last fit, used again by the next one if it is of the same backbone and recipe.

    Building a net, tracing its step and compiling it may take longer than an epoch. What it is given again are initial
    weights, to the bit those of a net built anew.
    """

    def __init__(self) -> None:
        """Hold none."""
        self._key: Any = None
        self._net: Net | None = None

    def forget(self) -> None:
        """Let go of the net."""
        self._key = self._net = None

    def forget_others(self, spec: BackboneSpec) -> None:
        """Give back the memory of the net, if it is of another backbone than `spec`."""
        import keras

        if self._key is None or self._key[0] != spec:
            self._key = self._net = None
            keras.utils.clear_session(free_memory=True)

    def get(self, spec: BackboneSpec, recipe: Recipe, classes: int, seed: int, device: Device) -> Net:
        """Return an untrained net of a `spec` and `recipe`; one that was returned before is taken back, if it fits.

        It has so many `classes`, runs on that `device`, and its initial weights are those of the `seed`.

        Raises:
            SettingsError, WeightsError, PluginError: As `build_model`.
        """
        # Two nets that differ in anything that is part of the compiled step must not be taken for each other.
        weights = weights_identity(spec, recipe.weights_for(spec))
        key = (spec, dataclasses.replace(recipe, callbacks=None, name="any"), weights, classes, device)
        if self._net is None or key != self._key:
            self._key = self._net = None  # first, since two at a time may be more than fits
            self._net = Net(_built(spec, recipe, classes, seed, device))
            self._key = key
        elif not recipe.epochs and _all_given(spec, recipe):
            # A frozen backbone is as it was.
            _, head = split_at_features(self._net.model)
            assign(head.variables, _new_head(head, recipe, classes, seed).variables)
        else:
            assign(self._net.model.variables, _built(spec, recipe, classes, seed, device).variables)
        return self._net


def _all_given(spec: BackboneSpec, recipe: Recipe) -> bool:
    """Return whether weights leave nothing of the backbone random: a plugin may add layers to what it fetches."""
    ours = getattr(spec.build, "__module__", "").startswith("leukemia_dl.models.")
    return recipe.weights is not None and (ours or recipe.weights not in spec.weights)


def _built(spec: BackboneSpec, recipe: Recipe, classes: int, seed: int, device: Device) -> Any:
    import keras

    keras.utils.set_random_seed(named_seed(seed, "fit"))
    scaling = None if recipe.scaling == "backbone" else recipe.scaling
    model = build_model(
        spec, int(recipe.image_size), classes, weights=recipe.weights_for(spec), head=recipe.head_settings,
        head_seed=named_seed(seed, "head"), scaling=scaling, dtype_policy=device.dtype_policy,
    )  # fmt: skip
    if recipe.weights is not None:
        # The head is trained on features with these statistics, and would not fit features with others.
        for layer in batchnorm_layers(model):
            layer.trainable = False
    return model


def _new_head(head: Any, recipe: Recipe, classes: int, seed: int) -> Any:
    """Return a model from features to logits as a net built anew has it."""
    import keras

    features = keras.Input(head.input_shape[1:])
    keras.utils.set_random_seed(named_seed(seed, "head"))
    return keras.Model(features, apply_head(features, recipe.head_settings, classes, on_features=True))


def as_numpy(variable: Any) -> NDArray[Any]:
    """Return a copy of a variable's value."""
    import keras

    # A copy: on a CPU the array may be the variable's own memory, which the next step overwrites.
    return np.array(keras.ops.convert_to_numpy(variable))


def assign(variables: Any, values: Any) -> None:
    """Give variables values: arrays, or other variables."""
    for variable, value in zip(variables, values, strict=True):
        variable.assign(as_numpy(value) if hasattr(value, "assign") else value)
