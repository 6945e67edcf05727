"""Everything that differs between Keras backends and devices. The only module that imports tensorflow, jax or torch."""

from __future__ import annotations

import contextlib
import logging
import os
import platform
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from leukemia_dl.checks import whole_number
from leukemia_dl.errors import BackendError, SettingsError
from leukemia_dl.models.backend import backend_name, quiet_start

__all__ = [
    "ComputeConfig", "Device", "core_count", "device_names", "feed", "fused", "prepare",
]  # fmt: skip

ENGINES = ("auto", "keras", "scan")


@dataclass(frozen=True)
class ComputeConfig:
    """What a fit is allowed of the machine, and how it uses it. None of it is part of what names a trial.

    Attributes:
        device: "auto" for the first GPU where there is one, else the CPU; "cpu", "gpu" or "gpu:1". One per process on
            TensorFlow.
        threads: That one operation on a CPU may use; None for as many as there are cores. Equal results to the bit need
            equal threads. A backend that has already started in this process keeps what it has.
        engine: "keras" for Keras's `fit`; "scan" for whole epochs as one compiled function, with the images on the
            device; "auto" for the latter where a head is trained on features, and on a GPU that has room, with JAX.

    Raises:
        SettingsError: On creation, for a value that is not allowed.
    """

    device: str = "auto"
    threads: int | None = None
    engine: str = "auto"

    def __post_init__(self) -> None:
        """Refuse a value that is not allowed, with its name."""
        if not isinstance(self.device, str) or not re.fullmatch(r"auto|cpu|gpu(:\d+)?", self.device):
            raise SettingsError(f"device must be 'auto', 'cpu', 'gpu' or 'gpu:N'. Received: device={self.device!r}.")
        if self.engine not in ENGINES:
            raise SettingsError(f"engine must be one of {ENGINES}. Received: engine={self.engine!r}.")
        if self.threads is not None:
            object.__setattr__(self, "threads", whole_number("threads", self.threads, 1, 4096))

    @property
    def is_choice(self) -> bool:
        """Whether it asks for something that a machine may not have."""
        return self.device.startswith("gpu") or self.engine == "scan"


@dataclass(frozen=True)
class Device:
    """Where a fit runs.

    Attributes:
        backend: "tensorflow", "jax" or "torch".
        kind: "gpu" or "cpu".
        name: What the hardware calls itself.
        dtype_policy: Keras dtype policy of the backbone.
        jit_compile: What is passed to `compile`: XLA only where it was measured to help.
        threads: That one operation on the CPU may use. Sums over many numbers depend on it in their last bits.
    """

    backend: str
    kind: str
    name: str
    dtype_policy: str
    jit_compile: bool | str
    threads: int


def prepare(precision: str = "auto", compute: ComputeConfig | None = None) -> Device:
    """Import Keras with its backend and say where a fit will run.

    On TensorFlow, GPU memory is taken as it is needed instead of all at once.

    Args:
        precision: "auto", "float32" or "mixed_bfloat16".
        compute: What it may use; None for all defaults.

    Raises:
        SettingsError: If mixed_bfloat16 is asked for on hardware that only emulates it, or an engine that this backend
            has not.
        BackendError: If there is no such device, or the backend has already started with another.
    """
    compute = compute or ComputeConfig()
    device, threads, backend = compute.device, compute.threads, backend_name()
    if compute.engine == "scan" and backend == "torch":
        raise SettingsError("engine='scan' is for TensorFlow and JAX; this is torch. Use engine='auto'.")
    with quiet_start("devices"):
        if backend == "torch" and device == "cpu":
            if "keras" in sys.modules and os.environ.get("KERAS_TORCH_DEVICE") != "cpu":
                raise BackendError(
                    "Keras has already chosen its torch device in this process. Set KERAS_TORCH_DEVICE=cpu before it "
                    "is imported, or start a new process."
                )
            os.environ["KERAS_TORCH_DEVICE"] = "cpu"  # Keras reads it when it is imported
        _check_settings()
        count = _set_threads(backend, core_count() if threads is None else threads)
        kind, name, has_bfloat16 = _PROBES[backend](device)
    if precision == "mixed_bfloat16" and not has_bfloat16:
        raise SettingsError(
            f"precision='mixed_bfloat16' needs a GPU with bfloat16 (NVIDIA Ampere or later). This runs on {name}. "
            "Use precision='auto'."
        )
    policy = "mixed_bfloat16" if has_bfloat16 and precision != "float32" else "float32"
    # XLA on a CPU under TensorFlow is up to 3.7 times slower (Xception); under torch it has open bugs; JAX is XLA.
    jit: bool | str = False if backend == "torch" or (backend == "tensorflow" and kind == "cpu") else "auto"
    return Device(backend, kind, name, policy, jit, count)


def _check_settings() -> None:
    """Refuse settings of Keras that make another network, or a shorter fit, than a recipe says."""
    import keras

    wanted = {
        "image_data_format": "channels_last",
        "floatx": "float32",
        "max_epochs": None,
        "max_steps_per_epoch": None,
    }
    for name, value in wanted.items():
        found = getattr(keras.config, name)()
        if found != value:
            raise BackendError(
                f"Keras is set to {name}={found!r}; it has to be {value!r}. Correct it in ~/.keras/keras.json or in "
                f"the environment variables KERAS_*, or call keras.config.set_{name}({value!r})."
            )


def core_count() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _set_threads(backend: str, threads: int) -> int:
    """Set the threads of one operation, if the backend has not started yet, and return how many it will use."""
    if backend == "tensorflow":
        import tensorflow as tf

        with contextlib.suppress(RuntimeError):  # started already
            tf.config.threading.set_intra_op_parallelism_threads(threads)
        return int(tf.config.threading.get_intra_op_parallelism_threads()) or core_count()
    if backend == "torch":
        import torch

        torch.set_num_threads(threads)
        return threads
    # JAX reads it once, when its client is made. There is no public way to ask whether that has happened.
    from jax._src import xla_bridge

    if not xla_bridge.backends_are_initialized():
        os.environ["NPROC"] = str(threads)
    return int(os.environ.get("NPROC", core_count()))


def device_names() -> list[str]:
    """Return the devices that the backend sees, such as ["cpu:0", "gpu:0"]."""
    backend = backend_name()
    with quiet_start("devices"):
        if backend == "tensorflow":
            import tensorflow as tf

            return [f"{d.device_type}:{d.name.rsplit(':', 1)[-1]}".lower() for d in tf.config.list_logical_devices()]
        if backend == "jax":
            import jax

            return [f"{d.platform}:{d.id}" for d in jax.devices()]
        import torch

        return ["cpu:0", *(f"gpu:{i}" for i in range(torch.cuda.device_count()))]


def feed(batches: Callable[[], Iterator[tuple[Any, Any]]], example: tuple[Any, Any]) -> Any:
    """Return what `model.fit` should be given for an endless stream of (inputs, labels).

    On TensorFlow that is a tf.data set with its autotuner off: with plain numpy or a generator `fit` often sits idle
    for seconds after its last batch. `example` is a batch; all batches have its shapes and dtypes.
    """
    if backend_name() != "tensorflow":
        return batches()
    import tensorflow as tf

    signature = tf.nest.map_structure(lambda array: tf.TensorSpec(array.shape, array.dtype), example)
    options = tf.data.Options()
    options.autotune.enabled = False
    return tf.data.Dataset.from_generator(batches, output_signature=signature).prefetch(2).with_options(options)


def fused(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function of tensors that runs as one piece where a net is not compiled as a whole: TensorFlow on a CPU.

    XLA, which slows a net's convolutions there, makes one loop of element-wise operations: three times faster.
    """
    if backend_name() != "tensorflow":
        return function
    import tensorflow as tf

    if tf.config.get_visible_devices("GPU"):
        return function
    compiled: Callable[..., Any] = tf.function(function, jit_compile=True, autograph=False)
    return compiled


def _chosen(device: str, gpus: Sequence[Any]) -> Any:
    """Return the GPU that `device` says, None for the CPU."""
    if device == "cpu" or (device == "auto" and not gpus):
        return None
    number = int(device.partition(":")[2] or 0)
    if number >= len(gpus):
        raise BackendError(
            f"There is no {device}: {backend_name()} sees {len(gpus)} GPUs on this machine. Use device='auto'; "
            "`leukemia-dl doctor` lists what there is."
        )
    return gpus[number]


def _probe_tensorflow(device: str) -> tuple[str, str, bool]:
    import tensorflow as tf

    # One function per model is what we want; TensorFlow warns of it from the fifth model in a process on.
    logging.getLogger("tensorflow").addFilter(_not_about_retracing)
    gpus = tf.config.list_physical_devices("GPU")
    gpu = _chosen(device, gpus)
    if gpus:
        try:
            tf.config.set_visible_devices([] if gpu is None else [gpu], "GPU")
        except RuntimeError as error:
            if device == "auto":
                gpu = next(iter(tf.config.get_visible_devices("GPU")), None)
            else:
                raise BackendError(
                    f"TensorFlow has already started in this process with other devices than {device}: choose the "
                    "device before the first fit, or start a new process."
                ) from error
    if gpu is not None:
        with contextlib.suppress(RuntimeError):  # already in use: too late, and no harm
            tf.config.experimental.set_memory_growth(gpu, True)
    else:
        # With several, InceptionV3's parallel branches gave other bits in each run (TensorFlow 2.21, two cores), even
        # under enable_op_determinism. A user who has already started the run-time keeps what it was started with.
        with contextlib.suppress(RuntimeError):
            tf.config.threading.set_inter_op_parallelism_threads(1)
    # The first operation starts the run-time, which talks too: now, while it is kept quiet.
    tf.zeros(()).numpy()
    if gpu is None:
        return "cpu", _cpu_name(), False
    details = tf.config.experimental.get_device_details(gpu)
    return "gpu", str(details.get("device_name", "GPU")), details.get("compute_capability", (0, 0)) >= (8, 0)


def _not_about_retracing(record: logging.LogRecord) -> bool:
    return "retracing" not in record.getMessage()


def _probe_jax(device: str) -> tuple[str, str, bool]:
    import jax

    accelerators = [found for found in jax.devices() if found.platform != "cpu"]
    chosen = _chosen(device, accelerators)
    wanted = jax.devices("cpu")[0] if chosen is None else chosen
    jax.config.update("jax_default_device", None if device == "auto" else wanted)
    if chosen is None:
        return "cpu", _cpu_name(), False
    capability = getattr(chosen, "compute_capability", "0.0")
    is_gpu = chosen.platform in ("gpu", "cuda", "rocm")
    return "gpu" if is_gpu else chosen.platform, str(chosen.device_kind), not is_gpu or float(capability) >= 8.0


def _probe_torch(device: str) -> tuple[str, str, bool]:
    import torch

    number = _chosen(device, range(torch.cuda.device_count()))
    if number is None:
        return "cpu", _cpu_name(), False
    torch.cuda.set_device(number)
    return "gpu", str(torch.cuda.get_device_name(number)), bool(torch.cuda.is_bf16_supported())


_PROBES = {"tensorflow": _probe_tensorflow, "jax": _probe_jax, "torch": _probe_torch}


def _cpu_name() -> str:
    with contextlib.suppress(OSError), Path("/proc/cpuinfo").open() as lines:
        for line in lines:
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
