"""How the batches of a phase reach a compiled net: by `fit` of Keras, or by whole epochs on the device."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from leukemia_dl.errors import SettingsError
from leukemia_dl.training.backends import Device, feed
from leukemia_dl.training.batches import Batches
from leukemia_dl.training.nets import Compiled
from leukemia_dl.training.scan import ScanEpoch, bytes_on_device, fits_on_device

__all__ = ["KerasFit", "choose_engine"]

# Features of all images, copied into memory: 130,000 images of 2,048 each.
_HEAD_BYTES = 1 << 30
_BATCH_HOOKS = ("on_train_batch_begin", "on_train_batch_end", "on_batch_begin", "on_batch_end")


@dataclass(frozen=True)
class KerasFit:
    """`fit` of Keras, on any backend and device: full batches only, and nothing that waits for the device."""

    name: str = "keras"

    def train(self, compiled: Compiled, batches: Batches, begin: int, end: int, callbacks: list[Any]) -> float:
        """Train from epoch `begin` (from 0) to before `end`; return the seconds of the first step, with compilation."""
        import keras

        ends, began = list[float](), time.perf_counter()

        class FirstStep(keras.callbacks.Callback):  # type: ignore[misc]
            async_safe = True  # Keras then does not wait for it

            def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
                if not ends:
                    ends.append(time.perf_counter())

        compiled.net.fit(
            feed(lambda: batches.stream(begin), batches.example()), epochs=end, initial_epoch=begin,
            steps_per_epoch=batches.steps, callbacks=[*callbacks, FirstStep()], verbose=0, shuffle=False,
        )  # fmt: skip
        return ends[0] - began if ends else 0.0


def choose_engine(
    asked: str, device: Device, images: Any, phase: str, callbacks: Sequence[Any] = ()
) -> KerasFit | ScanEpoch:
    """Return the engine that was asked for; for "auto", by what there is.

    That is `ScanEpoch` for heads on features, whose steps are so short that what lies between them counts, and for
    images with JAX on a GPU or TPU that has room for them; `KerasFit` elsewhere, and where callbacks hear of batches.

    Raises:
        SettingsError: If "scan" is asked for and a callback hears of batches.
    """
    hearing = [type(callback).__name__ for callback in callbacks if _hears_batches(callback)]
    if asked == "scan" and hearing:
        raise SettingsError(
            f"engine='scan' has no batches that {hearing[0]} could hear of. Use engine='keras', or a callback of "
            "epochs alone."
        )
    if asked == "scan":
        return ScanEpoch()
    if asked == "keras" or hearing or device.backend == "torch":
        return KerasFit()
    if phase == "head" and bytes_on_device(images) <= _HEAD_BYTES:
        return ScanEpoch()
    return ScanEpoch() if device.backend == "jax" and device.kind != "cpu" and fits_on_device(images) else KerasFit()


def _hears_batches(callback: Any) -> bool:
    import keras

    plain = keras.callbacks.Callback  # `LambdaCallback` puts its functions into the instance
    return any(getattr(getattr(callback, hook), "__func__", None) is not getattr(plain, hook) for hook in _BATCH_HOOKS)
