"""Models that are built, traced and compiled once, for all folds and seeds of one backbone."""

from __future__ import annotations

import dataclasses
import gc
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from leukemia_dl.identity import named_seed
from leukemia_dl.models.build import build_model, weights_identity
from leukemia_dl.models.heads import split_at_features
from leukemia_dl.models.spec import BackboneSpec
from leukemia_dl.training.backends import Device
from leukemia_dl.training.batchnorm import batchnorm_layers
from leukemia_dl.training.recipe import Recipe

__all__ = ["BuiltModel", "ModelCache", "as_numpy", "assign"]


@dataclass(eq=False)
class BuiltModel:
    """A net, its two parts, which share its layers, and the models that were compiled of it."""

    model: Any  # from pixels to logits
    extractor: Any  # from pixels to features
    head: Any  # from features to logits
    phases: dict[str, Any] = field(default_factory=dict)  # compiled, by the name of the phase
    inner_head: BuiltModel | None = None  # a copy of the head, for inner folds


class ModelCache:
    """The model of the last fit, which the next fit of the same backbone and recipe uses again.

    Building, tracing and compiling may take longer than an epoch. A model that is used again has the same initial
    weights, to the bit, as a new one.
    """

    def __init__(self) -> None:
        """Make an empty cache."""
        self._key: Any = None
        self._built: BuiltModel | None = None

    def clear(self) -> None:
        """Forget the model."""
        if self._built is not None:
            self._key = self._built = None
            gc.collect()

    def get(self, spec: BackboneSpec, recipe: Recipe, classes: int, seed: int, device: Device) -> BuiltModel:
        """Return an untrained model; one that was returned before changes, if it is for the same settings.

        It has the backbone `spec`, the settings of the `recipe`, so many `classes`, initial weights by the `seed`, and
        runs on the `device`.

        Raises:
            SettingsError, WeightsError, PluginError: As `build_model`.
        """
        import keras

        # Models that differ in anything that the compiled step depends on must have different keys.
        weights = weights_identity(spec, recipe.weights_for(spec))
        key = (spec, dataclasses.replace(recipe, callbacks=None, name="any"), weights, classes, device)
        if self._built is None or key != self._key:
            other_backbone = self._key is not None and self._key[0] != spec
            self.clear()  # first, since the memory may not hold two
            if other_backbone:
                keras.utils.clear_session(free_memory=True)
            model = _build(spec, recipe, classes, seed, device)
            self._built = BuiltModel(model, *split_at_features(model))
            self._key = key
        elif not recipe.epochs and _has_no_random_backbone_weights(spec, recipe):
            keras.utils.set_random_seed(named_seed(seed, "head"))
            assign(self._built.head.variables, keras.models.clone_model(self._built.head).variables)
        else:
            assign(self._built.model.variables, _build(spec, recipe, classes, seed, device).variables)
        return self._built


def _has_no_random_backbone_weights(spec: BackboneSpec, recipe: Recipe) -> bool:
    # A plugin may add random layers to a net that it fetches.
    ours = getattr(spec.build, "__module__", "").startswith("leukemia_dl.models.")
    return recipe.weights is not None and (ours or recipe.weights not in spec.weights)


def _build(spec: BackboneSpec, recipe: Recipe, classes: int, seed: int, device: Device) -> Any:
    import keras

    keras.utils.set_random_seed(named_seed(seed, "fit"))
    scaling = None if recipe.scaling == "backbone" else recipe.scaling
    model = build_model(
        spec, int(recipe.image_size), classes, weights=recipe.weights_for(spec), head=recipe.head_settings,
        head_seed=named_seed(seed, "head"), scaling=scaling, dtype_policy=device.dtype_policy,
    )  # fmt: skip
    if recipe.weights is not None:
        # The head is trained on features with these statistics and would not fit features with others.
        for layer in batchnorm_layers(model):
            layer.trainable = False
    return model


def as_numpy(variable: Any) -> NDArray[Any]:
    """Return a copy of a variable's value."""
    import keras

    # On a CPU the array may be the variable's own memory, which the next step overwrites.
    return np.array(keras.ops.convert_to_numpy(variable))


def assign(variables: Any, values: Any) -> None:
    """Assign values, arrays or other variables, to variables."""
    for variable, value in zip(variables, values, strict=True):
        variable.assign(as_numpy(value) if hasattr(value, "assign") else value)
