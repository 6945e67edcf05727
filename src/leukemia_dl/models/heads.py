"""The head: the layers between a backbone's feature map and the logits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, get_args

from leukemia_dl.checks import choice, flag, real_number, whole_number
from leukemia_dl.errors import SettingsError

__all__ = ["RESERVED", "Head", "apply_head", "split_at_features"]

Kind = Literal["pooled", "flatten"]
_FIRST_LAYERS = ("pooling", "flatten")
RESERVED = {"rgb", "scaling", "pooling", "flatten", "head_dense", "head_dropout", "logits"}
"""Names of the layers that the library puts around a backbone."""


@dataclass(frozen=True, kw_only=True)
class Head:
    """The settings of a head.

    Attributes:
        kind: "pooled" averages the feature map over its area; "flatten" keeps every value of it.
        units: Width of a ReLU layer on these features; 0 for none.
        dropout: Share of its inputs that the last layer drops in training, in [0, 1).
        sigmoid: For two classes: one weighted sum z, and (0, z) as logits, so that the softmax of these is the sigmoid
            of z and their cross-entropy the binary one.

    Raises:
        SettingsError: On creation, for a value that is not allowed.
    """

    kind: Kind = "pooled"
    units: int = 0
    dropout: float = 0.0
    sigmoid: bool = False

    def __post_init__(self) -> None:
        choice("kind", self.kind, get_args(Kind))
        object.__setattr__(self, "units", whole_number("units", self.units))
        object.__setattr__(self, "dropout", real_number("dropout", self.dropout, 0, 1, "[)"))
        flag("sigmoid", self.sigmoid)


def apply_head(features: Any, head: Head, classes: int, *, on_features: bool = False) -> Any:
    """Return logits (batch, classes), float32, of a symbolic feature map (batch, height, width, channels).

    With `on_features`, the input is the output of the head's first layer, pooling or flattening: (batch, n).

    Raises:
        SettingsError: If a sigmoid is asked for with more than two classes.
    """
    from keras import layers, ops

    if head.sigmoid and classes != 2:
        raise SettingsError(f"A sigmoid head tells two classes apart. Received: {classes} classes; use sigmoid=False.")
    if on_features:
        x = features
    elif head.kind == "pooled":
        x = layers.GlobalAveragePooling2D(dtype="float32", name="pooling")(features)
    else:
        x = layers.Flatten(dtype="float32", name="flatten")(features)
    if head.units:
        x = layers.Dense(head.units, "relu", dtype="float32", name="head_dense")(x)
    if head.dropout:
        x = layers.Dropout(head.dropout, dtype="float32", name="head_dropout")(x)
    x = layers.Dense(1 if head.sigmoid else classes, dtype="float32", name="logits")(x)
    return ops.pad(x, ((0, 0), (1, 0))) if head.sigmoid else x


def split_at_features(model: Any) -> tuple[Any, Any]:
    """Return a built model as two that share its layers: pixels to features (batch, n), and features to logits."""
    import keras

    features = next(layer for layer in reversed(model.layers) if layer.name in _FIRST_LAYERS).output
    return keras.Model(model.input, features, name=model.name), keras.Model(features, model.output)
