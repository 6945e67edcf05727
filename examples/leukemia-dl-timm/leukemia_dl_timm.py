"""Any model of timm as an encoder: PyTorch computes the features, leukemia_dl trains heads on them."""

import os
import sys
import tomllib
from functools import partial
from importlib import metadata
from pathlib import Path

import numpy as np

from leukemia_dl import EncoderSpec, hookimpl

VARIABLE = "LEUKEMIA_DL_TIMM"  # the environment variable with the path of a TOML file: a table per encoder
# Sizes of DinoBloom (Koch et al. 2024): timm's model of this architecture, and its number of weights at 224 pixels.
DINOBLOOM = {
    "s": ("vit_small_patch14_dinov2", 21_628_800),
    "b": ("vit_base_patch14_dinov2", 85_724_928),
    "l": ("vit_large_patch14_dinov2", 303_227_904),
    "g": ("vit_giant_patch14_dinov2", 1_134_769_664),
}


def encoder(
    name, model, file=None, image_size=224, *, pooling=None, entry=None, prefix="", pretrained=False, batch=32,
    threads=None, device=None, **about,
):  # fmt: skip
    """Return the encoder of a model of timm; nothing is downloaded unless `pretrained=True` asks for it.

    Images are scaled by the mean and standard deviation of timm's data configuration of the model.

    Args:
        name: Name of the encoder, as in `Benchmark(backbones=[name])`.
        model: Name of the model, as in `timm.list_models()`, such as "convnext_tiny" or "vit_small_patch14_dinov2".
        file: Its weights, .safetensors or .pth, read with `weights_only=True`; every weight of the model must be there.
            The file's SHA-256 is part of a trial's identity. None for random weights, drawn by seed 0.
        image_size: Side of its images in pixels.
        pooling: timm's `global_pool`, such as "avg" or "token"; None for the model's own.
        entry: Key of the weights in a file that holds more, such as "teacher".
        prefix: Keep the weights whose names begin with it, without it, such as "backbone.".
        pretrained: True for timm's own weights of this name, which it downloads. Their name is part of the identity.
        batch: Images per call.
        threads: Threads of PyTorch in this process; None leaves them as they are.
        device: Such as "cpu" or "cuda:1"; None for CUDA where it is available, else the CPU.
        **about: Other fields of `EncoderSpec`: parameters, title, licence, reference.

    Raises:
        ValueError: If both a file and `pretrained=True` are given.
    """
    if file is not None and pretrained:
        raise ValueError("Weights come from a file or from timm: pass file=... or pretrained=True.")
    path = None if file is None else str(Path(file).expanduser())
    settings = {"model": model, "image_size": image_size, "pooling": pooling, "entry": entry, "prefix": prefix}
    settings["pretrained"] = pretrained
    shown = {**settings, "timm": installed("timm"), "torch": installed("torch")}
    version = "timm " + " ".join(f"{key}={value}" for key, value in shown.items() if value)
    start = partial(load, path, **settings, batch=batch, threads=threads, device=device)
    return EncoderSpec(
        name=name,
        load=start,
        image_size=image_size,
        weights=path,
        version=version if file is not None or pretrained else f"{version} random",
        **{"title": model, **about},
    )


def dinobloom(file, size, *, name=None, **settings):
    """Return the encoder of a DinoBloom weights file that you have; `size` is "s", "b", "l" or "g".

    The names in the file are those that the authors' evaluation code reads; other names end in an error.
    """
    model, parameters = DINOBLOOM[size.lower()]
    about = {
        "parameters": parameters,
        "title": f"DinoBloom-{size.upper()}",
        "licence": "Apache-2.0 (code); weights: not verified",
        "reference": "Koch et al. 2024, arXiv:2404.05022",
    }
    source = {"entry": "teacher", "prefix": "backbone.", "pooling": "token"}
    return encoder(name or f"dinobloom_{size.lower()}", model, file, 224, **{**source, **about, **settings})


def installed(distribution):
    """Return the installed version of a distribution; None if it is not installed."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def load(file, *, model, image_size, pooling, entry, prefix, pretrained, batch, threads, device):
    """Return `encode(images)` of a model of timm."""
    if "tensorflow" in sys.modules:
        # The process crashes where triton, which features do not need, is loaded after TensorFlow (torch 2.14.1 with
        # TensorFlow 2.21.0): PyTorch does without it.
        sys.modules.setdefault("triton", None)
    import timm
    import torch

    if threads is not None:
        torch.set_num_threads(threads)
    configuration = timm.get_pretrained_cfg(model)
    # Models whose position embedding or windows depend on it are built for a size; others take any.
    size = {"img_size": image_size} if configuration and configuration.fixed_input_size else {}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = timm.create_model(model, pretrained=pretrained, num_classes=0, global_pool=pooling, **size)
    if file is not None:
        net.load_state_dict(weights_of(net, file, entry, prefix))
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    net = net.eval().requires_grad_(False).to(device)
    data = timm.data.resolve_model_data_config(net)
    mean, std = (torch.tensor(data[key], device=device).view(1, 3, 1, 1) for key in ("mean", "std"))

    def encode(images):
        return np.concatenate([part(images[start : start + batch]) for start in range(0, len(images), batch)])

    @torch.inference_mode()
    def part(images):
        pixels = torch.from_numpy(np.array(images)).to(device).permute(0, 3, 1, 2).float()
        return net((pixels / 255 - mean) / std).float().cpu().numpy()

    return encode


def weights_of(net, file, entry, prefix):
    """Return the weights in a file under the names of `net`. Raises KeyError if entry or prefix is not there."""
    from timm.models import load_state_dict

    if entry is None:
        found = load_state_dict(file, use_ema=False)
    else:
        import torch

        found = torch.load(file, map_location="cpu", weights_only=True)
        if entry not in found:
            raise KeyError(f"{file} has no entry {entry!r}, but {sorted(found)[:10]}")
        found = found[entry]
    kept = {key.removeprefix(prefix): value for key, value in found.items() if key.startswith(prefix)}
    if not kept:
        raise KeyError(f"no name of a weight in {file} begins with {prefix!r}: {sorted(found)[:3]}")
    top = net.pretrained_cfg.get("classifier") or ()
    tops = tuple(f"{one}." for one in ((top,) if isinstance(top, str) else top))
    kept = {key: value for key, value in kept.items() if not tops or not key.startswith(tops)}
    # Modules of timm translate weights of other code, such as DINOv2's, by a function of this name.
    translate = getattr(sys.modules[type(net).__module__], "checkpoint_filter_fn", None)
    return translate(kept, net) if translate else kept


@hookimpl
def leukemia_dl_backbones():
    """Yield an encoder per table of the TOML file that the environment variable points to; none without it."""
    if table := os.environ.get(VARIABLE):
        folder = Path(table).expanduser().absolute().parent
        for name, settings in tomllib.loads(Path(table).expanduser().read_text(encoding="utf-8")).items():
            file = {"file": folder / settings["file"]} if "file" in settings else {}
            yield encoder(name, **{**settings, **file})
