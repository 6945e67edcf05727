"""Recipe: everything about one fit that is not the data or the backbone; and the presets, which are named recipes."""

from __future__ import annotations

import dataclasses
import math
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

from leukemia_dl.checks import whole_number
from leukemia_dl.errors import DataError, SettingsError, unknown_name_error
from leukemia_dl.models import BackboneSpec
from leukemia_dl.preprocess import Pipeline
from leukemia_dl.training.augmentation import Augmentation

__all__ = ["PRESETS", "Recipe"]

# What a preset leaves out is the default of `Recipe`.
PRESETS: Mapping[str, Mapping[str, Any]] = {
    # The whole way on two CPU cores in minutes: a demonstration, not a setting to publish.
    "quick": {"image_size": 80, "epochs": 3, "batch_size": 16, "learning_rate": 1e-3},
    # A small net and a few hundred to ten thousand images: long enough for the rate to come down, moved and turned so
    # that no image is seen twice, and an average of the weights.
    "from_scratch": {
        "image_size": 96, "epochs": 60, "batch_size": 32, "learning_rate": 3e-3, "weight_decay": 1e-2,
        "label_smoothing": 0.05, "ema_momentum": 0.99, "rotation": 180.0, "shift": 0.05,
    },
    # The features of a pretrained net as they are. Each image goes through the net once, so nothing is augmented.
    "linear_probe": {
        "weights": "imagenet", "image_size": 224, "head_epochs": 60, "epochs": 0, "batch_size": 32, "dropout": 0.0,
        "symmetries": False,
    },
    # A probe first, so that random gradients of a new head do not undo what the net has learned (Kumar et al. 2022,
    # arXiv:2202.10054); then every layer, the first ones at a fiftieth of the head's rate.
    "finetune": {
        "weights": "imagenet", "image_size": 224, "head_epochs": 20, "epochs": 20, "batch_size": 32,
        "learning_rate": 1e-3, "input_lr_ratio": 0.02, "weight_decay": 1e-2, "label_smoothing": 0.02,
        "class_balance": "weights", "ema_momentum": 0.99, "rotation": 180.0, "shift": 0.05, "tta": True,
        "if_no_weights": {"epochs": 60, "learning_rate": 3e-3, "input_lr_ratio": 1.0},
    },
    # The published table, like for like: VGG16, ResNet50, InceptionV3 and Xception frozen, `published_cnn` from random
    # weights. Nothing here is advice.
    "published_v1": {
        "weights": "imagenet", "image_size": 180, "scaling": "unit", "preprocessing": "published", "head": "flatten",
        "head_units": 1024, "sigmoid": True, "head_epochs": 20, "epochs": 0, "batch_size": 32,
        "head_learning_rate": 1e-4, "learning_rate": 1e-4, "schedule": "constant", "warmup_fraction": 0.0,
        "weight_decay": 0.0, "global_clipnorm": 0.0, "dropout": 0.6, "symmetries": False, "precision": "float32",
        "if_no_weights": {"epochs": 10, "head_units": 64, "dropout": 0.5},
    },
}  # fmt: skip
_LARGEST = 1_000_000
_NOT_REPLACED = {"name", "weights", "if_no_weights", "head_epochs", "callbacks"}


@dataclass(frozen=True, kw_only=True)
class Recipe(Augmentation):
    """Settings of one fit, the same for every backbone of a comparison; the fields of `Augmentation` belong to them.

    A fit has two phases, and either may have no epochs. In the first the backbone is frozen, and the head is trained on
    features of the images as they are, computed once. In the second every layer is trained, on augmented images, except
    BatchNorm layers with loaded weights, which keep gain, offset and statistics.

    Attributes:
        name: Name of the preset it comes from.
        weights: None or "random"; "pretrained" for the first name that each backbone offers; a name such as "imagenet"
            (fetched by Keras); the path of an .h5 file; or a mapping from each backbone to one of these.
        if_no_weights: Settings for a backbone that offers no weights, such as `cnn`, or if `weights` is None. There is
            no first phase then.
        image_size: Side of the images in pixels; "native" for each backbone's own, so that sizes differ.
        scaling: "backbone" for the scaling that each backbone's weights expect, "unit" for pixels / 255.
        preprocessing: "canvas" keeps the scale on a canvas and is antialiased, "published" squeezes the image and is
            not (`Pipeline.published_v1`); unless a pipeline is given.
        head: "pooled" (global average) or "flatten" (every value of the feature map).
        head_units: Width of a ReLU layer between features and logits; 0 for none.
        sigmoid: One output and its sigmoid for two classes, instead of a softmax over two.
        head_epochs: Passes of the first phase.
        head_symmetries: In the first phase, one of the eight symmetries of each image is drawn in each pass. Features
            of all eight are computed: eight times the work, once.
        epochs: Passes of the second; fixed, none is selected afterwards.
        select_epoch: Choose the number of passes of the last phase by the lowest mean validation loss of five inner
            grouped folds of the training side; then train on all of it.
        batch_size: Images per step.
        learning_rate: Peak of AdamW's rate (Loshchilov and Hutter 2019, arXiv:1711.05101) in the second phase.
        head_learning_rate: Peak of the rate in the first phase.
        input_lr_ratio: Rate of the first layer as a share of the head's, in (0, 1]; between them it falls
            geometrically, layer by layer (after Howard and Ruder 2018, arXiv:1801.06146).
        schedule: "cosine" decay to zero, step by step, or "constant"; in either phase.
        warmup_fraction: Share of a phase's steps in which the rate rises linearly, in [0, 1).
        weight_decay: AdamW's decay per step, times the rate; biases and gains of normalisation have none.
        global_clipnorm: Bound on the global norm of the gradient; 0 for none.
        ema_momentum: Share that an exponential moving average of the weights keeps in each step of the second phase, in
            [0, 1); the average is what is validated and kept. 0 for none.
        dropout: Share of features dropped before the logits, in [0, 1).
        label_smoothing: Share of each label that is spread over all classes, in training only, in [0, 1).
        class_balance: "weights" gives classes equal weight in the training loss; "batches" draws as many images of
            each. With either, probabilities are those of classes equally frequent.
        tta: Predict also the mean over the eight symmetries of the square, as a row of its own.
        precision: "auto" takes mixed_bfloat16 where the GPU has it and float32 elsewhere.
        halve_batch: If memory runs out, begin again with half the batch size (the row says so), down to one.
        callbacks: "module:function", a factory of Keras callbacks (`leukemia_dl.training.FitContext`). Not part of a
            trial's name, nor of the equality of two recipes.

    Raises:
        SettingsError: On creation, for a value that is not allowed; it names the setting.
        UnknownNameError: If `if_no_weights` names no setting.

    Examples:
        >>> import leukemia_dl as ldl
        >>> recipe = ldl.Recipe.preset("finetune", epochs=10)
        >>> recipe.total_epochs, recipe.changed(head_epochs=5).total_epochs  # of the head alone, and of all layers
        (30, 15)
    """

    name: str = "custom"
    weights: str | Mapping[str, str] | None = field(default=None, hash=False)
    if_no_weights: Mapping[str, Any] = field(default_factory=dict, hash=False)
    image_size: int | Literal["native"] = 96
    scaling: Literal["backbone", "unit"] = "backbone"
    preprocessing: Literal["canvas", "published"] = "canvas"
    head: Literal["pooled", "flatten"] = "pooled"
    head_units: int = 0
    sigmoid: bool = False
    head_epochs: int = 0
    head_symmetries: bool = False
    epochs: int = 3
    select_epoch: bool = False
    batch_size: int = 16
    learning_rate: float = 1e-3
    head_learning_rate: float = 1e-3
    input_lr_ratio: float = 1.0
    schedule: Literal["cosine", "constant"] = "cosine"
    warmup_fraction: float = 0.1
    weight_decay: float = 1e-4
    global_clipnorm: float = 1.0
    ema_momentum: float = 0.0
    dropout: float = 0.2
    label_smoothing: float = 0.0
    class_balance: Literal["none", "weights", "batches"] = "none"
    tta: bool = False
    precision: Literal["auto", "float32", "mixed_bfloat16"] = "auto"
    halve_batch: bool = False
    callbacks: str | None = field(default=None, compare=False)

    _RANGES: ClassVar[dict[str, tuple[Any, ...]]] = Augmentation._RANGES | {
        "head_units": (0, _LARGEST), "head_epochs": (0, _LARGEST), "epochs": (0, _LARGEST), "batch_size": (1, _LARGEST),
        "learning_rate": (0, 10, "()"), "head_learning_rate": (0, 10, "()"), "input_lr_ratio": (0, 1, "(]"),
        "warmup_fraction": (0, 1, "[)"), "weight_decay": (0, 10, "[)"), "global_clipnorm": (0, math.inf, "[)"),
        "dropout": (0, 1, "[)"), "label_smoothing": (0, 1, "[)"), "ema_momentum": (0, 1, "[)"),
    }  # fmt: skip

    def __post_init__(self) -> None:
        """Check the values."""
        super().__post_init__()
        if not isinstance(self.name, str) or not self.name:
            raise SettingsError(f"name must be a str, not empty. Received: name={self.name!r}.")
        if self.callbacks is not None and not isinstance(self.callbacks, str):
            raise SettingsError(f'callbacks must be "module:function". Received: callbacks={self.callbacks!r}.')
        if self.image_size != "native":
            size = whole_number("image_size (in pixels, or 'native')", self.image_size, 1, _LARGEST)
            object.__setattr__(self, "image_size", size)
        if not self.total_epochs:
            raise SettingsError("epochs and head_epochs are both 0: with neither nothing would be learned.")
        object.__setattr__(self, "weights", self._checked_weights())
        object.__setattr__(self, "if_no_weights", self._checked_if_no_weights())

    def _checked_weights(self) -> dict[str, str] | str | None:
        weights = self.weights
        texts = [*weights, *weights.values()] if isinstance(weights, Mapping) else [weights]
        if weights is not None and not all(isinstance(text, str) for text in texts):
            allowed = "None, a name or a path, as str, or a mapping from each backbone to one"
            raise SettingsError(f"weights must be {allowed}. Received: weights={weights!r}.")
        if isinstance(weights, Mapping):
            return dict(weights)
        return None if weights == "random" else weights  # TOML knows no None

    def _checked_if_no_weights(self) -> dict[str, Any]:
        changes = self.if_no_weights
        if not isinstance(changes, Mapping):
            raise SettingsError(f"if_no_weights must be a dict of settings. Received: if_no_weights={changes!r}.")
        allowed = {field.name for field in dataclasses.fields(self)} - _NOT_REPLACED
        for key in changes:
            if key not in allowed:
                raise unknown_name_error("recipe setting", key, allowed, "It stands in if_no_weights.")
        checked = dataclasses.replace(self, **{"if_no_weights": {}, **changes}) if changes else self
        return {key: getattr(checked, key) for key in changes}

    @property
    def total_epochs(self) -> int:
        """Passes of both phases."""
        return self.head_epochs + self.epochs

    def for_backbone(self, spec: BackboneSpec) -> Self:
        """Return the settings for the backbone `spec`: its native size, and `if_no_weights` if it has no weights.

        Raises:
            SettingsError: If only the head would be trained, on features of random weights, without `weights=None`.
        """
        weights = self.weights_for(spec)
        changes: dict[str, Any] = {"weights": weights, "if_no_weights": {}}
        # A text with a dot or a folder is a path, unless the backbone has weights of that name.
        lacking = weights is not None and not spec.weights and str(Path(weights)) == Path(weights).stem
        if lacking or (weights is None and self.if_no_weights):
            changes |= {"weights": None, "head_epochs": 0, **self.if_no_weights}
            if not changes.get("epochs", self.epochs):
                raise SettingsError(
                    f"The recipe {self.name!r} trains a head on a frozen backbone, and {spec.name} has no "
                    f"{repr(weights) if weights else 'pretrained'} weights: its features would be random. Leave "
                    f"{spec.name} out, pass an .h5 file as weights, or choose a recipe that trains all layers."
                )
        if changes.get("image_size", self.image_size) == "native":
            changes["image_size"] = spec.native_size
        return dataclasses.replace(self, **changes)

    def weights_for(self, spec: BackboneSpec) -> str | None:
        """Return the weights of the backbone `spec`: None, a name or a path.

        Raises:
            SettingsError: If it is a mapping without this backbone.
        """
        asked = self.weights
        if isinstance(asked, Mapping):
            if spec.name not in asked:
                raise SettingsError(
                    f"weights does not name {spec.name}. Received: {asked!r}. Add it: 'pretrained', 'random', "
                    f"{', '.join(map(repr, spec.weights)) or 'no name'}, or the path of an .h5 file."
                )
            asked = asked[spec.name]
        if asked == "pretrained" and spec.weights:
            return spec.weights[0]
        return None if asked == "random" else asked

    def pipeline(self, size: int, canvas: int | None) -> Pipeline:
        """Return the preprocessing to `size` x `size` pixels; `canvas` is the data set's."""
        if self.preprocessing == "published":
            return Pipeline.published_v1(size)
        return Pipeline.default(size, canvas=canvas)

    @classmethod
    def preset(cls, name: str, /, **changes: Any) -> Self:
        """Return the preset `name`, one of `presets()`, with `changes` to it: `Recipe.preset("quick", epochs=10)`.

        Raises:
            UnknownNameError: If there is no such preset, or no such setting.
            SettingsError: If a value is not allowed.
        """
        if not isinstance(name, str) or name not in PRESETS:
            raise unknown_name_error("recipe", name, PRESETS)
        return cls.from_dict({"name": name, **PRESETS[name]}).changed(**changes)

    def changed(self, **changes: Any) -> Self:
        """Return the recipe with `changes`; a changed setting is not replaced by `if_no_weights` any more.

        Raises:
            UnknownNameError, SettingsError: As `preset`.
        """
        kept = {name: value for name, value in self.if_no_weights.items() if name not in changes}
        settings = self.to_dict() | {"callbacks": self.callbacks, "if_no_weights": kept}
        return self.from_dict(settings | changes)

    @staticmethod
    def presets() -> list[str]:
        """Return the names that `preset` knows."""
        return sorted(PRESETS)

    @classmethod
    def from_dict(cls, settings: Mapping[str, Any]) -> Self:
        """Return the recipe of `settings` as plain values; what is left out has its default.

        Raises:
            UnknownNameError, SettingsError: As `preset`.
        """
        fields = {field.name for field in dataclasses.fields(cls)}
        for key in settings:
            if key not in fields:
                raise unknown_name_error("recipe setting", key, fields)
        return cls(**settings)

    def to_dict(self) -> dict[str, Any]:
        """Return the settings that are part of a trial's name, as plain JSON values: all but `callbacks`."""
        settings = dataclasses.asdict(self)
        del settings["callbacks"]
        return settings

    @classmethod
    def from_toml(cls, path: str | Path) -> Self:
        """Return the recipe in the TOML file `path`: `preset = "finetune"`, if it starts from one, and settings.

        Raises:
            DataError: If there is no such file, or it is no TOML.
            UnknownNameError, SettingsError: As `preset`.
        """
        file = Path(path).expanduser()
        try:
            settings = tomllib.loads(file.read_text(encoding="utf-8"))
        except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise DataError(f"The recipe {file} cannot be read: {getattr(error, 'strerror', error)}.") from error
        preset = settings.pop("preset", None)
        settings.setdefault("name", file.stem)
        return cls.from_dict(settings) if preset is None else cls.preset(preset, **settings)

    def to_toml(self) -> str:
        """Return every setting that is not None as TOML, which `from_toml` reads."""
        import tomli_w

        settings = self.to_dict() | {"callbacks": self.callbacks}
        tables = {name: value for name, value in settings.items() if isinstance(value, Mapping)}
        text = tomli_w.dumps({n: value for n, value in settings.items() if n not in tables and value is not None})
        for name, table in tables.items():
            if table:  # in one line and not as a table, which would take in every line that is added below it
                text += f"{name} = {{ {', '.join(tomli_w.dumps(table).splitlines())} }}\n"
        return text
