"""What `leukemia-dl benchmark` leaves beside the numbers: pictures for slides, and the predictions as one CSV."""

from __future__ import annotations

import io
from pathlib import Path

from leukemia_dl.benchmark import Benchmark
from leukemia_dl.benchmark.stored import run_of
from leukemia_dl.reporting.answers import answers_of, inflation_of
from leukemia_dl.reporting.figures import drawings

__all__ = ["write_pictures"]


def write_pictures(benchmark: Benchmark) -> list[Path]:
    """Write comparison.png, learning_curves.png, samples.png and predictions.csv into the store of `benchmark`.

    A picture that has nothing to show (no trial finished, no net trained) is left out. Where one of two protocols keeps
    patients apart and the other does not, inflation.csv and inflation.png say what that one adds to the accuracy.

    Returns:
        The paths of the pictures.

    Raises:
        StoreError: If they cannot be written.
    """
    run, store = run_of(benchmark), benchmark.store
    answers = answers_of(run)
    added = inflation_of(answers)
    for name, frame in (("predictions", run.predictions), ("inflation", added)):
        if len(frame):
            store.write_text(f"{name}.csv", frame.to_csv(index=False, lineterminator="\n"))
    paths = []
    for drawing in drawings(run, answers, benchmark.dataset):
        if drawing.protocol:
            continue  # these are for the report
        buffer = io.BytesIO()
        drawing.draw().savefig(buffer, format="png")
        paths.append(store.write_bytes(f"{drawing.name}.png", buffer.getvalue()))
    return paths
