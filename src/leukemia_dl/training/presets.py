"""The named recipes, as plain settings; what they leave out is `Recipe`'s default."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["PRESETS"]

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
