"""Differences between Keras backends and devices. The only module that imports tensorflow, jax or torch."""

import contextlib
import logging
import os
import platform
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from leukemia_dl.checks import whole_number
from leukemia_dl.errors import BackendError, SettingsError
from leukemia_dl.models.build import backend_name, silence_startup

# Other values make another network, or a shorter fit, than a recipe says.
_KERAS_SETTINGS = {
    "image_data_format": "channels_last", "floatx": "float32", "max_epochs": None, "max_steps_per_epoch": None
}  # fmt: skip


@dataclass(frozen=True)
class ComputeConfig:
    """The part of the machine that a fit may use, no part of a trial's name. Raises SettingsError for other values.

    Attributes:
        device: "auto" for the first GPU, or the CPU if there is none; "cpu", "gpu" or "gpu:1".
        threads: CPU threads of one operation, on which the last bits depend; None for one per core. A backend that has
            started in this process already keeps its number, and TensorFlow its device.
    """

    device: str = "auto"
    threads: int | None = None

    def __post_init__(self) -> None:
        if not re.fullmatch(r"auto|cpu|gpu(:\d+)?", str(self.device)):
            raise SettingsError(f"device must be 'auto', 'cpu', 'gpu' or 'gpu:N'. Received: device={self.device!r}.")
        if self.threads is not None:
            object.__setattr__(self, "threads", whole_number("threads", self.threads, 1, 4096))


@dataclass(frozen=True)
class Device:
    """The device that a fit runs on."""

    backend: str
    kind: str  # "gpu" or "cpu"
    name: str
    dtype_policy: str  # of Keras
    jit_compile: bool | str  # argument of `compile`
    threads: int
    gpus: int  # that the backend sees


# Name of the GPU or None, whether it has bfloat16, threads of an operation, number of GPUs.
_Started = tuple[str | None, bool, int, int]


def prepare(precision: str = "auto", compute: ComputeConfig | None = None) -> Device:
    """Import Keras with its backend, choose the device for the `precision` of a recipe, and return it."""
    compute = compute or ComputeConfig()
    with silence_startup():
        backend = backend_name()
        start = {"tensorflow": _start_tensorflow, "jax": _start_jax, "torch": _start_torch}[backend]
        gpu, has_bfloat16, threads, gpus = start(compute.device, compute.threads or core_count())
        import keras

    for setting, value in _KERAS_SETTINGS.items():
        if (found := getattr(keras.config, setting)()) != value:
            raise BackendError(
                f"Keras is set to {setting}={found!r}; it has to be {value!r}: see ~/.keras/keras.json and environment "
                f"variables KERAS_*, or call keras.config.set_{setting}({value!r})."
            )
    kind, name = ("cpu", _cpu_name()) if gpu is None else ("gpu", gpu)
    if precision == "mixed_bfloat16" and not has_bfloat16:
        raise SettingsError(f"precision='mixed_bfloat16' needs a GPU with bfloat16. This runs on {name}. Use 'auto'.")
    policy = "mixed_bfloat16" if has_bfloat16 and precision != "float32" else "float32"
    # XLA on a CPU under TensorFlow is up to 3.7 times slower (Xception); under torch it has open bugs; JAX is XLA.
    jit: bool | str = False if backend == "torch" or (backend == "tensorflow" and kind == "cpu") else "auto"
    return Device(backend, kind, name, policy, jit, threads, gpus)


def core_count() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def as_fit_input(batches: Callable[[], Iterator[Any]], example: Any, *, grouped: bool = False) -> Any:
    """Return an endless stream of batches, shaped as an `example`, for `model.fit`; on TensorFlow perhaps of groups."""
    import keras

    if keras.backend.backend() != "tensorflow":
        return batches()
    import tensorflow as tf

    more = (None,) if grouped else ()
    signature = tf.nest.map_structure(lambda array: tf.TensorSpec((*more, *array.shape), array.dtype), example)
    options = tf.data.Options()
    options.autotune.enabled = False  # with it, or with plain numpy, `fit` often sits idle after its last batch
    stream = tf.data.Dataset.from_generator(batches, output_signature=signature)
    if grouped:
        stream = stream.flat_map(lambda *group: tf.data.Dataset.from_tensor_slices(group))
    return stream.prefetch(2).with_options(options)


def xla_jit(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function of tensors, compiled by XLA under TensorFlow on a CPU, where nets are not: thrice as fast."""
    import keras

    if keras.backend.backend() != "tensorflow":
        return function
    import tensorflow as tf

    on_gpu = tf.config.get_visible_devices("GPU")
    return function if on_gpu else tf.function(function, jit_compile=True, autograph=False)


def as_numpy(variable: Any) -> NDArray[Any]:
    """Return a copy of a variable's value."""
    import keras

    # On a CPU the array may be the variable's own memory, which the next step overwrites.
    return np.array(keras.ops.convert_to_numpy(variable))


def assign(variables: Iterable[Any], values: Iterable[Any]) -> None:
    """Assign values, arrays or other variables, to variables."""
    for variable, value in zip(variables, values, strict=True):
        variable.assign(as_numpy(value) if hasattr(value, "assign") else value)


def _chosen(device: str, gpus: Sequence[Any]) -> Any:  # None for the CPU
    if device == "cpu" or (device == "auto" and not gpus):
        return None
    number = int(device.partition(":")[2] or 0)
    if number >= len(gpus):
        raise BackendError(f"There is no {device}: {backend_name()} sees {len(gpus)} GPUs here. Use device='auto'.")
    return gpus[number]


def _start_tensorflow(device: str, threads: int) -> _Started:
    import tensorflow as tf

    # TensorFlow warns of one function per model, which is wanted, from the fifth model in a process on.
    if not (logger := logging.getLogger("tensorflow")).filters:
        logger.addFilter(lambda record: "retracing" not in record.getMessage())
    config = tf.config
    gpus = config.list_physical_devices("GPU")
    gpu = _chosen(device, gpus)
    try:
        if gpus:
            config.set_visible_devices([] if gpu is None else [gpu], "GPU")
    except RuntimeError as error:  # started already, with other devices
        if device != "auto":
            raise BackendError(f"TensorFlow has started without {device}: start a new process.") from error
        gpu = next(iter(config.get_visible_devices("GPU")), None)
    with contextlib.suppress(RuntimeError):  # started already: too late, and no harm
        config.threading.set_intra_op_parallelism_threads(threads)
        if gpu is not None:
            config.experimental.set_memory_growth(gpu, True)  # or it takes all memory at once
        else:
            # With several, InceptionV3's parallel branches gave other bits in each run (TensorFlow 2.21, two cores),
            # even under enable_op_determinism.
            config.threading.set_inter_op_parallelism_threads(1)
    tf.zeros(()).numpy()  # starts the run-time with these settings
    threads = int(config.threading.get_intra_op_parallelism_threads()) or core_count()
    details = {} if gpu is None else config.experimental.get_device_details(gpu)
    has_bfloat16 = details.get("compute_capability", (0, 0)) >= (8, 0)
    return None if gpu is None else str(details.get("device_name", "GPU")), has_bfloat16, threads, len(gpus)


def _start_jax(device: str, threads: int) -> _Started:
    import jax
    from jax._src import xla_bridge

    # JAX reads it once, when its client is made. There is no public way to ask whether that has happened.
    if not xla_bridge.backends_are_initialized():
        os.environ["NPROC"] = str(threads)
    threads = int(os.environ.get("NPROC", core_count()))
    gpus = [found for found in jax.devices() if found.platform != "cpu"]
    gpu = _chosen(device, gpus)
    wanted = jax.devices("cpu")[0] if gpu is None else gpu
    jax.config.update("jax_default_device", None if device == "auto" else wanted)
    has_bfloat16 = float(getattr(gpu, "compute_capability", 0)) >= 8.0
    return None if gpu is None else str(gpu.device_kind), has_bfloat16, threads, len(gpus)


def _start_torch(device: str, threads: int) -> _Started:
    import torch

    if device == "cpu":
        if "keras" in sys.modules and os.environ.get("KERAS_TORCH_DEVICE") != "cpu":
            raise BackendError("Keras has already chosen its torch device: start with KERAS_TORCH_DEVICE=cpu.")
        os.environ["KERAS_TORCH_DEVICE"] = "cpu"  # Keras reads it when it is imported
    torch.set_num_threads(threads)
    gpus = range(torch.cuda.device_count())
    gpu = _chosen(device, gpus)
    if gpu is None:
        return None, False, threads, len(gpus)
    torch.cuda.set_device(gpu)
    return str(torch.cuda.get_device_name(gpu)), bool(torch.cuda.is_bf16_supported()), threads, len(gpus)


def _cpu_name() -> str:
    with contextlib.suppress(OSError), Path("/proc/cpuinfo").open() as lines:
        for line in lines:
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
