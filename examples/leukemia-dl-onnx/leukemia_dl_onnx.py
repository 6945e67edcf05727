"""Any ONNX model as an encoder: onnxruntime computes the features, leukemia_dl trains heads on them."""

import os
import tomllib
from functools import partial
from importlib import metadata
from pathlib import Path

import numpy as np

from leukemia_dl import EncoderSpec, hookimpl

VARIABLE = "LEUKEMIA_DL_ONNX"  # the environment variable with the path of a TOML file: a table per encoder
IMAGENET = {"mean": (123.675, 116.28, 103.53), "std": (58.395, 57.12, 57.375)}  # grey levels, RGB
LAYOUTS = {"nchw": 1, "nhwc": 3}  # the axis of channels
TYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16}


def encoder(
    name, file, image_size=224, mean=(0, 0, 0), std=(1, 1, 1), layout="nchw", *, output=None, pooling="mean", batch=32,
    threads=0, providers=None, **about,
):  # fmt: skip
    """Return the encoder of an ONNX file. Its SHA-256, its settings and onnxruntime's version are part of its identity.

    Args:
        name: Name of the encoder, as in `Benchmark(backbones=[name])`.
        file: The ONNX file.
        image_size: Side of its images in pixels.
        mean: Three grey levels from 0 to 255, RGB: the model gets `(pixels - mean) / std`.
        std: Three grey levels. `**IMAGENET` passes both for a model that was trained with the statistics of ImageNet.
        layout: "nchw" or "nhwc": the order of axes of its input, and of a feature map.
        output: Name of the output; None for the only one.
        pooling: "mean" or "cls" (the first token) for tokens (n, tokens, d); "mean" for a feature map. Features (n, d)
            stay as they are.
        batch: Images per call; a model with a fixed batch size keeps its own.
        threads: Threads of onnxruntime; 0 for its default, one per core.
        providers: Execution providers of onnxruntime; None for CUDA where this build has it, else the CPU.
        **about: Other fields of `EncoderSpec`: parameters, title, licence, reference.

    Raises:
        ValueError: If layout or pooling is another one, or mean and std are no grey levels.
    """
    if layout not in LAYOUTS or pooling not in ("mean", "cls"):
        raise ValueError(f"layout is nchw or nhwc, pooling mean or cls. Received: {layout=}, {pooling=}.")
    if max(*mean, *std) <= 1 and (tuple(mean), tuple(std)) != ((0, 0, 0), (1, 1, 1)):
        raise ValueError(f"mean and std are grey levels from 0 to 255: multiply by 255. Received: {mean=}, {std=}.")
    scale = {"mean": tuple(map(float, mean)), "std": tuple(map(float, std))}
    settings = {"image_size": image_size, **scale, "layout": layout, "output": output, "pooling": pooling}
    start = partial(load, str(file), **settings, batch=batch, threads=threads, providers=providers)
    shown = {**settings, **{key: ",".join(f"{grey:g}" for grey in greys) for key, greys in scale.items()}}
    shown["onnxruntime"] = installed("onnxruntime") or installed("onnxruntime-gpu")
    version = "onnx " + " ".join(f"{key}={value}" for key, value in shown.items() if value is not None)
    return EncoderSpec(name=name, load=start, image_size=image_size, weights=str(file), version=version, **about)


def installed(distribution):
    """Return the installed version of a distribution; None if it is not installed."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def load(file, *, image_size, mean, std, layout, output, pooling, batch, threads, providers):
    """Return `encode(images)` of an ONNX file. Raises ValueError if its input or output is another one."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    known = onnxruntime.get_available_providers()
    # TF32 would change features in the fourth digit.
    usual = [("CUDAExecutionProvider", {"use_tf32": 0})] if "CUDAExecutionProvider" in known else []
    chosen = providers or [*usual, "CPUExecutionProvider"]
    session = onnxruntime.InferenceSession(str(Path(file).expanduser()), options, providers=chosen)
    taken, fixed = _input(session, image_size, layout)
    made = _output(session, output)
    size = fixed or batch
    shift, scale = np.asarray(mean, np.float32), np.asarray(std, np.float32)

    def encode(images):
        return np.concatenate([part(images[start : start + size]) for start in range(0, len(images), size)])

    def part(images):
        scaled = (images.astype(np.float32) - shift) / scale
        scaled = scaled if layout == "nhwc" else np.ascontiguousarray(scaled.transpose(0, 3, 1, 2))
        missing = size - len(images) if fixed else 0
        scaled = np.concatenate([scaled, np.repeat(scaled[:1], missing, axis=0)]).astype(TYPES[taken.type])
        (found,) = session.run([made], {taken.name: scaled})
        return pooled(found[: len(images)].astype(np.float32), layout, pooling)

    return encode


def pooled(found, layout, pooling):
    """Return features (n, d) of features, of tokens (n, tokens, d), or of a feature map."""
    if found.ndim == 3:
        return found[:, 0] if pooling == "cls" else found.mean(axis=1)
    if found.ndim == 4 and pooling == "mean":
        return found.mean(axis=(2, 3) if layout == "nchw" else (1, 2))
    if found.ndim != 2:
        raise ValueError(f"an output of shape {found.shape} cannot be pooled by {pooling!r}")
    return found


def _input(session, image_size, layout):
    """Return the input, and its batch size if that is fixed."""
    if len(session.get_inputs()) != 1:
        raise ValueError(f"a model has one input. Received: {[one.name for one in session.get_inputs()]}.")
    (taken,) = session.get_inputs()
    wanted = [image_size] * 4
    wanted[LAYOUTS[layout]] = 3
    given = taken.shape[1:] if len(taken.shape) == 4 else [0]
    fits = all(not isinstance(side, int) or side == want for side, want in zip(given, wanted[1:], strict=False))
    if not fits or taken.type not in TYPES:
        raise ValueError(
            f"the input {taken.name!r} is {taken.type} {taken.shape}; image_size={image_size} and layout={layout!r} "
            f"give float (n, {', '.join(map(str, wanted[1:]))})"
        )
    return taken, taken.shape[0] if isinstance(taken.shape[0], int) else None


def _output(session, name):
    names = [one.name for one in session.get_outputs()]
    if name is None and len(names) == 1:
        return names[0]
    if name not in names:
        raise ValueError(f"output must be one of {names}. Received: output={name!r}.")
    return name


@hookimpl
def leukemia_dl_backbones():
    """Yield an encoder per table of the TOML file that the environment variable points to; none without it."""
    if table := os.environ.get(VARIABLE):
        folder = Path(table).expanduser().absolute().parent
        for name, settings in tomllib.loads(Path(table).expanduser().read_text(encoding="utf-8")).items():
            yield encoder(name, **{**settings, "file": folder / settings["file"]})
