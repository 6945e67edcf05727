"""The external test: every trained net of a store, and every floor, on a data set from elsewhere."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from leukemia_dl.benchmark.baselines import CellMeasures, measure_cells
from leukemia_dl.benchmark.frames import CALIBRATED, WATCHED, metrics_of, prediction_frame, result_frame
from leukemia_dl.benchmark.grid import Cell
from leukemia_dl.benchmark.inputs import Cells, Images, Samples, looks_of, read_images
from leukemia_dl.benchmark.runner import Shared, Task, failed_record, run_baseline
from leukemia_dl.benchmark.trial import Record
from leukemia_dl.datasets import Dataset, Split
from leukemia_dl.datasets.splits import CONTENT_DISJOINT, TEST_IS_NOT_VAL
from leukemia_dl.errors import DamagedRecordError, DataError, SettingsError, StoreError
from leukemia_dl.models.classifier import Classifier, load_classifier, logits_over_symmetries, predict_logits, softmax
from leukemia_dl.preprocess import Pipeline
from leukemia_dl.preprocess.appearance import differences, summary
from leukemia_dl.progress import track
from leukemia_dl.training.backends import prepare
from leukemia_dl.training.phases import predict_batch_size

if TYPE_CHECKING:
    from leukemia_dl.benchmark.benchmark import Benchmark

__all__ = ["LabelMap", "evaluate_on", "predict_on"]

LabelMap = Mapping[str, str | None]
_CHUNK_BATCHES = 16
_log = logging.getLogger(__name__)


def predict_on(bench: Benchmark, other: Dataset, label_map: LabelMap | None, show_progress: bool) -> pd.DataFrame:
    """Return the prediction frame of another data set: of every trained net in the store, and of the floors.

    Every fold's net predicts every image here. Evaluation takes the folds of one backbone and seed as one set of
    predictions of different images, and the predictions of one image by several nets would be duplicates in it. So the
    number of the fold stands in the column `repeat` too, by which each net is a run of its own, as if folds had been
    drawn anew: means are taken over nets, then groups of patients are left out. What evaluation calls seeds is then the
    number of nets.

    Args:
        bench: A benchmark whose trials are in its store, with their nets. A net that is not there is left out, with a
            warning.
        other: Another data set. Images without a label are left out.
        label_map: Its labels to classes of the benchmark's data set, or to None to leave them out; labels that are not
            in it are classes by their name.
        show_progress: Whether to tell how far it is.

    Returns:
        The columns of `Benchmark.predictions`, with `repeat` and `test_dataset` after the seed; all of the side "test".

    Raises:
        DataError: If a label is no class of the benchmark's data set and not mapped to one, or no image is left.
        StoreError: If the store holds no trial of the benchmark.
        ImageError: If images cannot be decoded; up to ten are named.
    """
    test = _Test(bench, _relabelled(bench, other, label_map), show_progress)
    records = list(test.records())
    for record in records:
        if record.status == "failed":
            _log.warning("%s is left out: %s", record.trial.folder, record.error)
    frame = prediction_frame(records, test.other.class_names, test.other.table)
    if len(frame):
        place = list(frame).index("seed") + 1
        frame.insert(place, "repeat", frame["fold"])
        frame.insert(place + 1, "test_dataset", other.info.name)
    return frame


def evaluate_on(bench: Benchmark, other: Dataset, label_map: LabelMap | None, show_progress: bool) -> pd.DataFrame:
    """Return the result frame of another data set: a row per trial in the store, and per floor of its splits.

    Pixels come by each net's own pipeline, which travels with it, fitted steps included; what is calibrated has the
    temperature that was fitted on the benchmark's val side. Floors are fitted again, on the train side of each split.

    What is not known of another data set is NA: the val side's columns, and cells and groups that cross.
    `leaked_files` is how many of the images are, byte for byte, on the train side; `flags` says so, and also
    whether patients are unknown and how the images look unlike the benchmark's (100 images of each are compared);
    `guarantees` has "content-disjoint" where none is on the train or val side. That no patient is on both sides cannot
    be verified.

    Args:
        bench: A benchmark whose trials are in its store. Where a net was not kept, or is damaged, the row has the
            status "failed" and says what to do.
        other: See `predict_on`.
        label_map: Likewise.
        show_progress: Likewise.

    Returns:
        The columns of `Benchmark.results`, with `test_dataset` after `dataset`.

    Raises:
        DataError: See `predict_on`.
        StoreError: Likewise.
        ImageError: Likewise.
    """
    test = _Test(bench, _relabelled(bench, other, label_map), show_progress)
    frame = result_frame(test.records())
    frame.insert(list(frame).index("dataset") + 1, "test_dataset", other.info.name)
    # Of a trial that failed there is a file; of a net that is not there, none.
    paths = frame["traceback"]
    frame["traceback"] = [path if path and (bench.store.root / path).is_file() else "" for path in paths]
    return frame


@dataclass(eq=False)
class _Test:
    """What is known of another data set, beside a benchmark.

    Attributes:
        bench: The benchmark.
        other: The images to predict, their labels being classes of the benchmark's data set.
        show: Whether to tell how far it is.
    """

    bench: Benchmark
    other: Dataset
    show: bool
    _images: dict[str, Images] = field(default_factory=dict, init=False)
    _facts: dict[str, dict[str, Any]] = field(default_factory=dict, init=False)

    def records(self) -> Iterator[Record]:
        """Yield a record per trial, in the order of the grid: of every net in the store, and every floor of its splits.

        Raises:
            StoreError: If the store holds no trial of the grid.
            ImageError: If images cannot be decoded; up to ten are named.
        """
        bench = self.bench
        found = [(cell, self._stored(cell)) for cell in bench._grid]
        splits = {cell.split.digest for cell, record in found if record is not None}
        if not splits:
            raise StoreError(
                f"The store {bench.store.root} holds no trial of this benchmark, so there is nothing to test. "
                "Call run() first, or name the store that holds its trials (store=...)."
            )
        for cell, record in track(found, len(found), f"Testing on {self.other.info.name}", self.show):
            if cell.spec is None and cell.split.digest in splits:
                yield self._of_elsewhere(cell, self._baseline(cell))
            elif cell.spec is not None and record is not None:
                yield self._of_elsewhere(cell, self._net(cell, record) if record.status == "ok" else record)

    def _stored(self, cell: Cell) -> Record | None:
        try:
            return self.bench.store.read(cell.trial, arrays=False)
        except DamagedRecordError as error:
            return self._without_record(cell, error)

    def _without_record(self, cell: Cell, error: DamagedRecordError) -> Record | None:
        """Return a failed record in place of one that cannot be read."""
        if cell.spec is None:  # a floor is fitted again, whatever is left of its record
            return Record(cell.trial, "failed")
        task = Task(cell.trial, cell.split, cell.spec, cell.size)
        shared = Shared(Samples.of(self.bench.dataset), {}, self.bench.recipe)
        return failed_record(task, shared, (type(error).__name__, str(error), ""), 0.0)

    def _net(self, cell: Cell, record: Record) -> Record:
        """Return a trial's record with the predictions that its net makes here, or with what stood in their way."""
        bench = self.bench
        prepare(bench.recipe.precision, bench.compute)
        import keras

        # The nets of other trials would otherwise stay in memory for as long as the process lives.
        keras.utils.clear_session(free_memory=True)
        try:
            classifier = self._classifier(record)
        except Exception as error:
            return _failed(record, error)
        # Outside: what cannot be decoded is an error of the data, not of a net.
        images = self._images_of(classifier.pipeline, bench.pipelines[cell.size].partition()[0])
        recipe = bench.recipes[cell.trial.backbone]
        batch = predict_batch_size(replace(recipe, batch_size=int(record.row["batch_size"])))
        try:
            logits, views = self._logits(classifier, images, min(batch, len(self.other)), recipe.tta)
        except Exception as error:
            return _failed(record, error)
        temperature = classifier.temperature if "temperature" in record.metrics else None
        plain, sides = softmax(logits), np.full(len(logits), "test")
        scores = metrics_of(self.other.labels, sides, plain, views, temperature)
        return replace(record, probabilities=plain, **scores)

    def _classifier(self, record: Record) -> Classifier:
        """Load the net of a trial; an error says why there is none."""
        store, trial = self.bench.store, record.trial
        if problem := store.model_problem(trial.folder):
            raise StoreError(f"{problem}: run with save_models=True, which trains the net again.")
        return load_classifier(store.folder(trial))

    def _images_of(self, pipeline: Pipeline, stored: Pipeline) -> Images:
        """Return the pixels after the part of a net's pipeline that is equal for all splits, read once."""
        # Before a common size is reached images cannot be kept together: then the whole pipeline comes first.
        count = len(pipeline.steps) if stored.output_size is None else len(stored.steps)
        common = Pipeline(pipeline.steps[:count])
        if common.digest not in self._images:
            rows = np.arange(len(self.other))
            self._images[common.digest] = read_images(self.other, rows, common, self.show)
        return self._images[common.digest]

    def _logits(
        self, classifier: Classifier, images: Images, batch: int, symmetries: bool
    ) -> tuple[NDArray[np.float64], NDArray[np.float64] | None]:
        """Return logits (n, classes), and those of the eight symmetries (8, n, classes) where they are averaged."""
        logits, views = [], []
        # In parts: steps that were fitted per split make their pixels in memory.
        for start in range(0, len(self.other), _CHUNK_BATCHES * batch):
            rows = np.arange(start, min(start + _CHUNK_BATCHES * batch, len(self.other)))
            pixels = images.read(classifier.pipeline, rows)
            logits.append(predict_logits(classifier.model, pixels, batch))
            if symmetries:
                views.append(logits_over_symmetries(classifier.model, pixels, batch))
        return np.concatenate(logits), np.concatenate(views, axis=1) if symmetries else None

    def _baseline(self, cell: Cell) -> Record:
        """Fit a floor on the train side again, and return the record of what it says here."""
        first = len(self.bench.dataset)
        here = np.arange(first, first + len(self.other))
        # The val side stays the benchmark's: a floor's temperature is fitted there.
        record = run_baseline(cell.trial, replace(cell.split, test=here), self._both, lambda: self._measures)
        if record.status in ("failed", "not_applicable"):
            return record
        val_was_test = np.intersect1d(cell.split.val, cell.split.test).size > 0
        unwanted = (*WATCHED, *CALIBRATED) if val_was_test else WATCHED  # as in the benchmark's own results
        metrics = {name: value for name, value in record.metrics.items() if name not in unwanted}
        return replace(record, metrics=metrics, probabilities=record.probabilities[record.sides == "test"])

    @cached_property
    def _both(self) -> Samples:
        """The rows of the benchmark's data set, and after them those of the other."""
        own, here = Samples.of(self.bench.dataset), Samples.of(self.other)
        ids, labels = np.concatenate([own.ids, here.ids]), np.concatenate([own.labels, here.labels])
        groups = None if own.groups is None else np.concatenate([own.groups, np.full(len(self.other), -1)])
        return replace(own, ids=ids, labels=labels, groups=groups)

    @cached_property
    def _measures(self) -> CellMeasures:
        own = Cells(self.bench.dataset, self.bench._used, self.show).measures()
        here = measure_cells(self.other, self.show)
        parts = [
            np.concatenate([getattr(own, name), getattr(here, name)]) for name in ("single_cell", "size", "colour")
        ]
        return CellMeasures(*parts)

    @cached_property
    def _unlike(self) -> list[str]:
        known = summary(looks_of(self.bench.dataset, self.bench._used))
        found = differences(looks_of(self.other, np.arange(len(self.other))), known)
        for difference in found:
            _log.warning("%s: %s", self.other.info.name, difference)
        return found

    def _of_elsewhere(self, cell: Cell, record: Record) -> Record:
        """Return a record whose samples and row are those of the other data set."""
        if cell.split.digest not in self._facts:
            self._facts[cell.split.digest] = _facts(self.bench.dataset, self.other, cell.split, self._unlike)
        facts = self._facts[cell.split.digest]
        synthetic = self.bench.dataset.info.synthetic or self.other.info.synthetic
        # Flags of the split are about the other test side; all others are about the net.
        kept = [flag for flag in record.row.get("flags", "").split("; ") if flag not in cell.split.flags]
        flags = "; ".join(dict.fromkeys(filter(None, [facts["flags"], *kept])))
        return replace(
            record,
            row={**record.row, **facts, "synthetic": synthetic, "flags": flags},
            sides=np.full(len(self.other), "test"),
            samples=self.other.table["sample"].to_numpy(dtype=np.str_),
            labels=self.other.labels,
        )


def _facts(dataset: Dataset, other: Dataset, split: Split, unlike: list[str]) -> dict[str, Any]:
    """Return what is known of another data set as the test side of a split: what crosses, and no more than that."""
    contents, known = np.array(other.content_hashes), np.array(dataset.content_hashes)
    shared = {side: int(np.isin(contents, known[getattr(split, side)]).sum()) for side in ("train", "val")}
    flags = [
        f"{count:,} of the {len(other):,} images are, byte for byte, on the {side} side"
        for side, count in shared.items()
        if count
    ]
    for flag in flags:
        _log.warning("%s: %s", other.info.name, flag)
    flags += [flag for flag in split.flags if flag.startswith("patients unknown")]
    flags += [*([] if other.has_subjects else [f"patients unknown in {other.info.name}"]), *unlike]
    guarantees = [] if any(shared.values()) else [CONTENT_DISJOINT]
    guarantees += [] if shared["val"] else [TEST_IS_NOT_VAL]
    return {
        "n_val": None,
        "groups_val": None,
        "n_test": len(other),
        "groups_test": int(other.table["group"].nunique()) if other.has_subjects else None,
        "leaked_files": shared["train"],
        "leaked_cells": None,
        "leaked_groups": None,
        "guarantees": "; ".join(guarantees),
        "flags": "; ".join(flags),
    }


def _relabelled(bench: Benchmark, other: Dataset, label_map: LabelMap | None) -> Dataset:
    """Return the images of a data set whose labels are, or are mapped to, classes of a benchmark's data set."""
    if not isinstance(other, Dataset) or not isinstance(label_map, (Mapping, type(None))):
        raise SettingsError(
            "Pass a Dataset, and as label_map a dictionary from its labels to classes of the benchmark, or None. "
            f"Received: {type(other).__name__} and label_map={label_map!r}."
        )
    names, classes, chosen = f"{other.info.name!r}", bench.dataset.class_names, dict(label_map or {})
    there = ", ".join(classes)
    strange = [label for label in chosen if label not in other.class_names]
    if strange:
        raise DataError(
            f"label_map names {', '.join(map(repr, strange))}; {names} has the labels {', '.join(other.class_names)}."
        )
    wrong = sorted({repr(name) for name in chosen.values() if name is not None and name not in classes})
    if wrong:
        raise DataError(f"label_map leads to {', '.join(wrong)}; the classes of the benchmark are {there} (or None).")
    table = other.table
    unknown = sorted(set(table["label"].dropna()) - set(chosen) - set(classes))
    if unknown:
        raise DataError(
            f"{names} has images of {', '.join(map(repr, unknown))}; the classes of the benchmark are {there}. Say "
            f"what each is, or None to leave it out: label_map={{{unknown[0]!r}: {classes[0]!r}}}, for instance."
        )
    table["label"] = [None if pd.isna(label) else chosen.get(label, label) for label in table["label"]]
    table = table[table["label"].notna()]
    if table.empty:
        raise DataError(f"{names} has no image with a label that is a class of the benchmark: {there}.")
    return replace(other, _table=table, class_names=classes, source=None)


def _failed(record: Record, error: Exception) -> Record:
    message = " ".join(str(error).split())
    return replace(record, status="failed", metrics={}, metrics_tta={}, exception=type(error).__name__, message=message)
