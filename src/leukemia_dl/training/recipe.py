"""Recipe: everything about one fit that is not the data or the backbone; and the presets, which are named recipes."""

from __future__ import annotations

import dataclasses
import functools
import math
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

from leukemia_dl.checks import whole_number
from leukemia_dl.errors import DataError, SettingsError, unknown_name_error
from leukemia_dl.models import BackboneSpec, Embeddings, EncoderSpec
from leukemia_dl.models.backbones import Spec
from leukemia_dl.preprocess import Pipeline
from leukemia_dl.training.augmentation import Augmentation

PRESETS: Mapping[str, Mapping[str, Any]] = tomllib.loads(Path(__file__).with_name("recipes.toml").read_text("utf-8"))
_LARGEST = 1_000_000


@dataclass(frozen=True, kw_only=True)
class Recipe(Augmentation):
    """Settings of one fit, the same for every backbone of a comparison; the fields of `Augmentation` belong to them.

    In the first phase the backbone is frozen, and the head is trained on features of the images as they are. In the
    second every layer is trained, on augmented images, except BatchNorm layers with loaded weights.

    Attributes:
        name: Name of the preset it comes from.
        weights: None or "random"; "pretrained" for the first name that each backbone offers; a name such as "imagenet"
            (fetched by Keras); the path of an .h5 file; or a mapping from each backbone to one of these.
        if_no_weights: Settings for a backbone without such `weights`, or if they are None; it has no first phase then.
        image_size: Side of the images in pixels; "native" for each backbone's own, so that sizes differ.
        scaling: "backbone" for the scaling that each backbone's weights expect, "unit" for pixels / 255.
        preprocessing: "canvas" keeps the scale of cells; "published" squeezes images (`Pipeline.published_v1`).
        head: "pooled" (global average) or "flatten" (every value of the feature map).
        head_units: Width of a ReLU layer between features and logits; 0 for none.
        sigmoid: One output and its sigmoid for two classes, instead of a softmax over two.
        head_solver: How the first phase fits the head: "adamw" steps; "logistic" solves scikit-learn's logistic
            regression on standardised features, its L2 penalty chosen on inner grouped folds; "knn" takes the classes
            of the 20 training images of the highest cosine similarity.
        standardize: Subtract each feature's mean and divide by its deviation on the training side, under "adamw".
        head_epochs: Passes of the first phase; 1 for a solver.
        epochs: Passes of the second; fixed, none is selected afterwards.
        select_epoch: Choose the number of passes of the last phase by the lowest mean validation loss of five inner
            grouped folds of the training side; then train on all of it.
        batch_size: Images per step.
        learning_rate: Peak of AdamW's rate (Loshchilov and Hutter 2019, arXiv:1711.05101) in the second phase.
        head_learning_rate: Peak of the rate in the first phase.
        input_lr_ratio: Rate of the first layer as a share of the head's, in (0, 1]; geometric between them.
        schedule: "cosine" decay to zero, step by step, or "constant"; in either phase.
        warmup_fraction: Share of a phase's steps in which the rate rises linearly, in [0, 1).
        weight_decay: AdamW's decay per step, times the rate; biases and gains of normalisation have none.
        global_clipnorm: Bound on the global norm of the gradient; 0 for none.
        ema_momentum: Momentum of the average of the weights that is kept in the second phase, in [0, 1); 0 for none.
        dropout: Share of features dropped before the logits, in [0, 1).
        label_smoothing: Share of each label that is spread over all classes, in training only, in [0, 1).
        class_balance: "weights" gives classes equal weight in the training loss, so probabilities are those of classes
            equally frequent; or "none".
        tta: Predict also the mean over the eight symmetries of the square, as a row of its own.
        precision: "auto" takes mixed_bfloat16 where the GPU has it and float32 elsewhere.
        callbacks: "module:function", a factory of Keras callbacks (see `FitContext`); not part of a trial's name.

    Raises:
        SettingsError, UnknownNameError: For a value that is not allowed; for a preset or a setting that does not exist.

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
    head_solver: Literal["adamw", "logistic", "knn"] = "adamw"
    standardize: bool = False
    head_epochs: int = 0
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
    class_balance: Literal["none", "weights"] = "none"
    tta: bool = False
    precision: Literal["auto", "float32", "mixed_bfloat16"] = "auto"
    callbacks: str | None = field(default=None, compare=False)

    _RANGES: ClassVar[dict[str, tuple[Any, ...]]] = Augmentation._RANGES | {
        "head_units": (0, _LARGEST), "head_epochs": (0, _LARGEST), "epochs": (0, _LARGEST), "batch_size": (1, _LARGEST),
        "learning_rate": (0, 10, "()"), "head_learning_rate": (0, 10, "()"), "input_lr_ratio": (0, 1, "(]"),
        "warmup_fraction": (0, 1, "[)"), "weight_decay": (0, 10, "[)"), "global_clipnorm": (0, math.inf, "[)"),
        "dropout": (0, 1, "[)"), "label_smoothing": (0, 1, "[)"), "ema_momentum": (0, 1, "[)"),
    }  # fmt: skip

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.image_size != "native":
            size = whole_number("image_size (in pixels, or 'native')", self.image_size, 1, _LARGEST)
            object.__setattr__(self, "image_size", size)
        if self.head_solver != "adamw":
            fixed = {"head_epochs": 1, "head": "pooled", "head_units": 0, "sigmoid": False, "standardize": False}
            fixed |= {"epochs": 0, "class_balance": "none"} if self.head_solver == "knn" else {}
            self._require(f"head_solver={self.head_solver!r} needs", fixed | {"select_epoch": False})
        if not self.total_epochs:
            raise SettingsError("epochs and head_epochs are both 0: with neither nothing would be learned.")
        if not isinstance(self.weights, Mapping):  # "random", since TOML knows no None
            object.__setattr__(self, "weights", None if self.weights in (None, "random") else str(self.weights))
        if changes := self.if_no_weights:
            if unchangeable := sorted(set(changes) & {"name", "weights", "if_no_weights", "head_epochs", "callbacks"}):
                raise SettingsError(f"if_no_weights cannot set {', '.join(unchangeable)}.")
            checked = self.from_dict({**dataclasses.asdict(self), "if_no_weights": {}, **changes})
            object.__setattr__(self, "if_no_weights", {name: getattr(checked, name) for name in changes})

    @property
    def total_epochs(self) -> int:
        """Passes of both phases."""
        return self.head_epochs + self.epochs

    def for_backbone(self, spec: Spec) -> Self:
        """Return the settings for `spec`: its native size, and `if_no_weights` if it has no weights.

        Of an encoder the head alone can be trained: SettingsError for a recipe with other epochs.
        """
        if not isinstance(spec, BackboneSpec):
            return self._for_encoder(spec)
        weights = self.weights_for(spec)
        changes: dict[str, Any] = {"weights": weights, "if_no_weights": {}}
        # A text with a dot or a folder is a path, unless the backbone has weights of that name.
        lacking = weights is not None and not spec.weights and str(Path(weights)) == Path(weights).stem
        if lacking or (weights is None and self.if_no_weights):
            changes |= {"weights": None, "head_epochs": 0, **self.if_no_weights}
            if not changes.get("epochs", self.epochs):
                raise SettingsError(f"{spec.name} has no weights for {self.name!r}: leave it out, or pass weights.")
        if changes.get("image_size", self.image_size) == "native":
            changes["image_size"] = spec.native_size
        differ = any(getattr(self, name) != value for name, value in changes.items())
        return dataclasses.replace(self, **changes) if differ else self

    def _for_encoder(self, spec: EncoderSpec | Embeddings) -> Self:
        of_images = isinstance(spec, EncoderSpec)
        fixed = {"epochs": 0, "head": "pooled", "scaling": "backbone"} | ({} if of_images else {"tta": False})
        hint = " Use recipe='linear_probe', 'knn' or 'mlp_probe', or leave it out."
        self._require(f"{spec.name} gives features, on which a head alone is trained: it needs", fixed, hint)
        size = spec.image_size if isinstance(spec, EncoderSpec) else 1
        return dataclasses.replace(self, weights=spec.identity, if_no_weights={}, image_size=size)

    def _require(self, what: str, fixed: Mapping[str, Any], hint: str = "") -> None:
        wrong = [name for name, value in fixed.items() if getattr(self, name) != value]
        if wrong:
            needed, given = (
                ", ".join(f"{name}={values[name]!r}" for name in wrong) for values in (fixed, dataclasses.asdict(self))
            )
            raise SettingsError(f"{what} {needed}. Received: {given}.{hint}")

    def weights_for(self, spec: Spec) -> str | None:
        """Return the weights of the backbone `spec`: None, a name or a path."""
        if not isinstance(spec, BackboneSpec):
            return spec.identity
        weights = self.weights
        if isinstance(weights, Mapping):
            if spec.name not in weights:
                raise SettingsError(f"weights does not name {spec.name}: add it, or 'random'. Received: {weights!r}.")
            weights = weights[spec.name]
        if weights == "pretrained" and spec.weights:
            return spec.weights[0]
        return None if weights == "random" else weights

    def pipeline(self, size: int, canvas: int | None) -> Pipeline:
        """Return the preprocessing to `size` x `size` pixels; `canvas` is the data set's."""
        published = self.preprocessing == "published"
        return Pipeline.published_v1(size) if published else Pipeline.default(size, canvas=canvas)

    @classmethod
    def preset(cls, name: str, /, **changes: Any) -> Recipe:
        """Return the preset `name`, one of `presets()`, with `changes` to it: `Recipe.preset("quick", epochs=10)`."""
        if name not in PRESETS:
            raise unknown_name_error("recipe", name, PRESETS)
        return _preset(name).changed(**changes) if changes else _preset(name)

    def changed(self, **changes: Any) -> Self:
        """Return the recipe with `changes`; a changed setting is not replaced by `if_no_weights` any more."""
        kept = {name: value for name, value in self.if_no_weights.items() if name not in changes}
        return self.from_dict({**dataclasses.asdict(self), "if_no_weights": kept, **changes})

    @staticmethod
    def presets() -> list[str]:
        """Return the names that `preset` knows."""
        return sorted(PRESETS)

    @classmethod
    def from_dict(cls, settings: Mapping[str, Any]) -> Self:
        """Return the recipe of `settings` as plain values; a missing one has its default."""
        names = [known.name for known in dataclasses.fields(cls)]
        for name in settings:
            if name not in names:
                raise unknown_name_error("recipe setting", name, names)
        return cls(**settings)

    def to_dict(self) -> dict[str, Any]:
        """Return the settings that are part of a trial's name, as plain JSON values: all but `callbacks`."""
        return {name: value for name, value in dataclasses.asdict(self).items() if name != "callbacks"}

    @classmethod
    def from_toml(cls, path: str | Path) -> Recipe:
        """Return the recipe in the TOML file `path`: `preset = "finetune"`, if it starts from one, and settings.

        Raises DataError if there is no such file, or it is no TOML.
        """
        file = Path(path).expanduser()
        try:
            settings = tomllib.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise DataError(f"The recipe {file} cannot be read: {getattr(error, 'strerror', error)}.") from error
        preset, settings = settings.pop("preset", None), {"name": file.stem, **settings}
        return cls.from_dict(settings) if preset is None else cls.preset(preset, **settings)

    def to_toml(self) -> str:
        """Return every setting that is not None as TOML, which `from_toml` reads."""
        import tomli_w

        lines = []
        for name, value in dataclasses.asdict(self).items():
            if isinstance(value, dict) and value:
                # In one line and not as a table, which would take in every line that is added below it.
                lines.append(f"{name} = {{ {', '.join(tomli_w.dumps(value).splitlines())} }}\n")
            elif value not in (None, {}):
                lines.append(tomli_w.dumps({name: value}))
        return "".join(lines)


@functools.cache
def _preset(name: str) -> Recipe:
    return Recipe.from_dict({"name": name, **PRESETS[name]})
