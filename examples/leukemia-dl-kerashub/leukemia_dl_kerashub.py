"""Transformers of keras-hub as backbones: DINOv2, ViT and Swin, or any of its backbones for images, by preset."""

from functools import partial

from leukemia_dl import BackboneSpec, hookimpl

# Names here, presets of keras-hub, pooling of tokens, and the reference. DINOv2 and ViT have a class token.
PRESETS = (
    ("dinov2_small", "dinov2_small", "cls", "Oquab et al. 2024, arXiv:2304.07193"),
    ("dinov2_base", "dinov2_base", "cls", "Oquab et al. 2024, arXiv:2304.07193"),
    ("vit_base", "vit_base_patch16_224_imagenet", "cls", "Dosovitskiy et al. 2021, arXiv:2010.11929"),
    ("swin_tiny", "swin_tiny_patch4_window7_224", "mean", "Liu et al. 2021, arXiv:2103.14030"),
    ("swin_base", "swin_base_patch4_window7_224", "mean", "Liu et al. 2021, arXiv:2103.14030"),
)


def backbone(name, preset, image_size=224, *, pooling="mean", **about):
    """Return a backbone of keras-hub, whose weights are called "preset".

    Args:
        name: Name of the backbone, as in `Benchmark(backbones=[name])`.
        preset: A preset of keras-hub, such as "dinov2_base", which it fetches from Kaggle, "hf://USER/MODEL", or a
            folder that `save_to_preset` wrote, with the image converter. Random weights need its configuration too.
        image_size: Side in pixels at which the net runs: the preset's, or for DINOv2 any multiple of its patches.
            Images of another size are resized inside the net.
        pooling: "cls" for the first token, or "mean".
        **about: Other fields of `BackboneSpec`: parameters, title, licence, reference.
    """
    return BackboneSpec(
        name=name,
        build=partial(build, preset=preset, image_size=image_size),
        scaling="none",  # the preset's own scaling is part of what is built
        pooling=pooling,
        native_size=image_size,
        min_size=min(32, image_size),
        weights=("preset",),
        **{"title": preset, **about},
    )


def build(inputs, weights, *, preset, image_size):
    """Return the output of a preset's backbone, which gets images scaled as its image converter does."""
    import keras
    import keras_hub

    converter = keras_hub.layers.ImageConverter.from_preset(preset)
    shape, policy = (image_size, image_size, 3), keras.config.dtype_policy()
    net = keras_hub.models.Backbone.from_preset(
        preset, load_weights=weights is not None, image_shape=shape, dtype=policy, name="hub"
    )
    for variable in net.trainable_variables:
        if variable.name == "mask_token":  # of DINOv2, for its own training only: no gradient reaches it
            variable.trainable = False
    x = inputs
    if x.shape[1] != image_size:
        x = keras.layers.Resizing(image_size, image_size, dtype="float32", name="resizing")(x)
    settings = {"dtype": "float32", "name": "preset_scaling"}
    scale, offset = (1.0 if converter.scale is None else converter.scale), converter.offset
    x = keras.layers.Rescaling(scale, 0.0 if offset is None else offset, **settings)(x)
    return net({"images": x} if isinstance(net.input, dict) else x)


@hookimpl
def leukemia_dl_backbones():
    """Yield the presets of the table; keras-hub is imported when one is built."""
    for name, preset, pooling, reference in PRESETS:
        yield backbone(name, preset, pooling=pooling, reference=reference)
