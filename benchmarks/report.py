"""The report of a large run: 75 trials on as many images as C-NMC 2019 has, on one core, beside the limit of a minute.

The trials are made up (random probabilities), as the report cannot know: five backbones, five folds, three seeds, and
three floors. The audit, which reads every image once and is kept in the store, is not part of it.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from harness import Row, compared

from leukemia_dl.reporting import write_report

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "helpers"))
import stores

LIMIT, LARGEST_MB = 60.0, 15.0


def rows(short: bool) -> Iterable[Row]:
    images, seeds, rounds = (120, (0,), 1) if short else (10_661, (0, 1, 2), 3)
    backbones = ("cnn",) if short else ("cnn", "vgg16", "resnet50", "inception_v3", "xception")
    with tempfile.TemporaryDirectory() as place:
        dataset = stores.cells(images, 70)
        recipe = replace(stores.RECIPE, image_size=75)
        stores.made_up(place, dataset, backbones, protocol="kfold", folds="all", seeds=seeds, recipe=recipe)
        write_report(place, dataset=dataset, show_progress=False)  # with the audit
        if hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
        taken = []
        for _ in range(rounds):
            started = time.perf_counter()
            path = write_report(place, dataset=dataset, show_progress=False)
            taken.append(time.perf_counter() - started)
        size = path.stat().st_size / 1e6
    assert size < LARGEST_MB, f"{size:.1f} MB"
    what = f"report of {5 * len(backbones) * len(seeds)} trials, {images:,} images, one core"
    note = f"theirs is the limit of a minute; the file has {size:.1f} MB"
    return [compared(what, taken, [LIMIT] * rounds, 60, "a minute", 1.0, note)]
