"""Recipe: everything about one fit that is not the data or the backbone. Frozen, validated on creation."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal, Self

from leukemia_dl.errors import SettingsError, unknown_name
from leukemia_dl.training.augmentation import Augmentation

__all__ = ["Recipe"]

Precision = Literal["auto", "float32", "mixed_bfloat16"]


@dataclass(frozen=True, kw_only=True)
class Recipe(Augmentation):
    """Settings of one fit, the same for every backbone of a comparison; the fields of `Augmentation` are some of them.

    Attributes:
        name: Of the preset it comes from.
        weights: None for random ones, a name such as "imagenet" (fetched by Keras), or the path of an .h5 file.
        image_size: Side in pixels of what the nets see.
        epochs: Fixed number of passes; none is selected afterwards.
        batch_size: Images per step.
        learning_rate: Peak of AdamW's rate (Loshchilov and Hutter 2019), after a linear warm-up and before a cosine
            decay to zero, step by step.
        warmup: Share of all steps in which the rate rises, in [0, 1).
        weight_decay: AdamW's decay per step, times the rate.
        clip_norm: Bound on the global norm of the gradient.
        dropout: Share of pooled features dropped before the head, in [0, 1).
        precision: "auto" takes mixed_bfloat16 where the GPU has it and float32 elsewhere.
    """

    name: str = "custom"
    weights: str | None = None
    image_size: int = 96
    epochs: int = 3
    batch_size: int = 16
    learning_rate: float = 1e-3
    warmup: float = 0.1
    weight_decay: float = 1e-4
    clip_norm: float = 1.0
    dropout: float = 0.2
    precision: Precision = "auto"

    def __post_init__(self) -> None:
        """Refuse a value that is not allowed, with its name."""
        super().__post_init__()
        for field in ("image_size", "epochs", "batch_size"):
            value = getattr(self, field)
            if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= 1_000_000:
                raise SettingsError(f"{field} must be a whole number from 1 to a million. Received: {field}={value!r}.")
        for field, low, high in (
            ("learning_rate", 0.0, 10.0),
            ("warmup", 0.0, 1.0),
            ("weight_decay", 0.0, 10.0),
            ("clip_norm", 0.0, float("inf")),
            ("dropout", 0.0, 1.0),
        ):
            value = getattr(self, field)
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value < high:
                raise SettingsError(f"{field} must lie in [{low:g}, {high:g}). Received: {field}={value!r}.")
        if self.learning_rate == 0 or self.clip_norm == 0:
            raise SettingsError("learning_rate and clip_norm must be above 0: with 0 nothing would be learned.")
        if self.weights is not None and not isinstance(self.weights, str):
            raise SettingsError(f"weights must be None, a name or a path, as str. Received: weights={self.weights!r}.")
        if self.precision not in ("auto", "float32", "mixed_bfloat16"):
            raise SettingsError(
                f"precision must be 'auto', 'float32' or 'mixed_bfloat16'. Received: precision={self.precision!r}."
            )

    @classmethod
    def preset(cls, name: str, /, **changes: Any) -> Self:
        """Return a named recipe, with some settings changed: `Recipe.preset("quick", epochs=10)`.

        Raises:
            UnknownNameError: If there is no such preset, or no such setting.
            SettingsError: If a value is not allowed.
        """
        if name not in _PRESETS:
            raise unknown_name("recipe", name, _PRESETS)
        fields = {field.name for field in dataclasses.fields(cls)} - {"name"}
        for key in changes:
            if key not in fields:
                raise unknown_name("recipe setting", key, fields)
        return cls(**{"name": name, **_PRESETS[name], **changes})

    @staticmethod
    def presets() -> list[str]:
        """Return the names that `preset` knows."""
        return sorted(_PRESETS)

    def to_dict(self) -> dict[str, Any]:
        """Return the settings as plain JSON values."""
        return dataclasses.asdict(self)


# "quick" shows the whole way on two CPU cores in minutes: a demonstration, not a setting to publish.
_PRESETS: dict[str, dict[str, Any]] = {
    "quick": {"weights": None, "image_size": 80, "epochs": 3, "batch_size": 16, "learning_rate": 1e-3},
}
