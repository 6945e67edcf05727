"""The external test: every trained net of a store, and every baseline, on a data set from elsewhere."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import cache, cached_property
from typing import Any

import numpy as np
import pandas as pd

from leukemia_dl.benchmark import records
from leukemia_dl.benchmark.baselines import CellMeasures, measure_cells, run_baseline
from leukemia_dl.benchmark.plan import Plan, PlannedTrial, Samples
from leukemia_dl.benchmark.store import Store
from leukemia_dl.benchmark.trial import Record
from leukemia_dl.benchmark.trial_runner import Images, appearances_of, read_images
from leukemia_dl.datasets import Dataset, Split
from leukemia_dl.datasets.splits import CONTENT_DISJOINT, TEST_IS_NOT_VAL
from leukemia_dl.errors import DamagedRecordError, DataError, ImageError, SettingsError, StoreError
from leukemia_dl.models.classifier import load_classifier, logits_over_symmetries, predict_logits, softmax
from leukemia_dl.preprocess import Pipeline
from leukemia_dl.preprocess.quality import differences, summary
from leukemia_dl.progress import track
from leukemia_dl.training.backends import prepare
from leukemia_dl.training.loop import predict_batch_size

__all__ = ["ExternalTest", "LabelMap"]

LabelMap = Mapping[str, str | None]
_log = logging.getLogger(__name__)


class ExternalTest:
    """Another data set as the test side of every split of a plan; `label_map` leads to classes of the plan."""

    def __init__(self, plan: Plan, store: Store, other: Dataset, label_map: LabelMap | None, show: bool) -> None:
        self.plan, self.store, self.show = plan, store, show
        self.other = other = _relabelled(plan.dataset, other, label_map)
        self._images: dict[str, Images] = {}
        # How the images differ from the plan's, of which 100 are compared.
        known = summary(appearances_of(plan.dataset, plan.rows))
        self._unlike = differences(appearances_of(other, np.arange(len(other))), known)
        for difference in self._unlike:
            _log.warning("%s: %s", other.info.name, difference)
        self._facts = cache(self._facts_of)
        self._rows = np.arange(len(other)) + len(plan.dataset)  # of the other data set in `_both`

    def predictions(self) -> pd.DataFrame:
        """Return the prediction frame, see `Benchmark.predict_on`."""
        found = list(self._records())
        for record in found:
            if record.status == "failed":
                _log.warning("%s is left out: %s", record.trial.folder, record.error)
        frame = records.prediction_frame(found, self.other.class_names, self.other.table)
        if len(frame):
            # Evaluation takes the folds of one seed as predictions of different images. Here they are of the same ones.
            place = list(frame).index("seed") + 1
            frame.insert(place, "repeat", frame["fold"])
            frame.insert(place + 1, "test_dataset", self.other.info.name)
        return frame

    def results(self) -> pd.DataFrame:
        """Return the result frame, see `Benchmark.evaluate_on`."""
        frame = records.result_frame(self._records())
        frame.insert(list(frame).index("dataset") + 1, "test_dataset", self.other.info.name)
        # Of a trial that failed there is a file; of a net that is not there, none.
        root = self.store.root
        frame["traceback"] = [path if path and (root / path).is_file() else "" for path in frame["traceback"]]
        return frame

    def _records(self) -> Iterator[Record]:
        """Yield a record per net in the store, and per baseline of its splits, in the order of the grid.

        Raises:
            StoreError: If the store holds no trial of the grid.
            ImageError: If images cannot be decoded; up to ten are named.
        """
        found = [(planned, self._stored(planned)) for planned in self.plan.trials]
        splits = {planned.split.digest for planned, record in found if record is not None}
        if not splits:
            raise StoreError(
                f"The store {self.store.root} holds no trial of this benchmark, so there is nothing to test. "
                "Call run() first, or name the store that holds its trials (store=...)."
            )
        for planned, record in track(found, len(found), f"Testing on {self.other.info.name}", self.show):
            if planned.spec is None and planned.split.digest in splits:
                yield self._of_other(planned.split, self._baseline(planned))
            elif planned.spec is not None and record is not None:
                record = self._of_other(planned.split, record)
                yield self._net(planned, record) if record.status == "ok" else record

    def _stored(self, planned: PlannedTrial) -> Record | None:
        """Return the stored record of a trial; a failed one if it is damaged."""
        try:
            return self.store.read(planned.trial, arrays=False)
        except DamagedRecordError as error:
            blank = records.blank_record(planned, Samples.of(self.plan.dataset))
            return records.failed_record(blank, error, 0.0, here=False)

    def _of_other(self, split: Split, record: Record) -> Record:
        """Return a record whose samples and row are those of the other data set."""
        facts = self._facts(split)
        # Flags of the split are about its own test side; all others are about the net.
        kept = [flag for flag in record.row["flags"].split("; ") if flag not in split.flags]
        flags = records.joined_flags(dict.fromkeys([*facts["flags"], *kept]))
        ids, labels = self._both.ids[self._rows], self.other.labels
        row = {**record.row, **facts, "flags": flags}
        return replace(record, row=row, sides=np.full(len(ids), "test"), samples=ids, labels=labels)

    def _net(self, planned: PlannedTrial, record: Record) -> Record:
        """Return a record with the predictions of the net of its trial, or with the error."""
        assert planned.recipe is not None
        assert planned.pipeline is not None
        prepare(planned.recipe.precision, self.plan.compute)
        import keras

        # The nets of other trials would otherwise stay in memory for as long as the process lives.
        keras.utils.clear_session(free_memory=True)
        blank = replace(record, metrics={}, metrics_tta={})
        rows = np.arange(len(self.other))
        try:
            if problem := self.store.model_problem(record.trial.folder):
                raise StoreError(f"{problem}: run with save_models=True, which trains the net again.")
            classifier = load_classifier(self.store.folder(record.trial))
            images = self._images_of(classifier.pipeline, planned.pipeline).after(classifier.pipeline, rows)
            recipe = replace(planned.recipe, batch_size=int(record.row["batch_size"]))
            batch, pixels = min(predict_batch_size(recipe), len(rows)), images.subset(rows)
            probabilities = softmax(predict_logits(classifier.model, pixels, batch))
            views = logits_over_symmetries(classifier.model, pixels, batch) if recipe.tta else None
        except ImageError:  # an error of the data, not of a net
            raise
        except Exception as error:
            return records.failed_record(blank, error, 0.0, here=False)
        calibrated = (classifier.temperature, "") if "temperature" in record.metrics else None
        return records.scored_record(blank, probabilities, views, calibrated)

    def _images_of(self, pipeline: Pipeline, planned: Pipeline) -> Images:
        """Return the pixels after the part of a net's pipeline that is equal for all splits, read once."""
        # Before a common size is reached images cannot be kept together: then the whole pipeline comes first.
        stored = planned.partition()[0]
        common = pipeline if stored.output_size is None else Pipeline(pipeline.steps[: len(stored.steps)])
        if common.digest not in self._images:
            self._images[common.digest] = read_images(self.other, np.arange(len(self.other)), common, self.show)
        return self._images[common.digest]

    def _baseline(self, planned: PlannedTrial) -> Record:
        """Fit a baseline on the train side again, and return its record on the other data set."""
        split = planned.split
        # The val side stays the benchmark's: the temperature of a baseline is fitted there.
        record = run_baseline(replace(planned, split=replace(split, test=self._rows)), self._both, lambda: self._cells)
        if record.status != "ok":
            return record
        val_was_test = np.intersect1d(split.val, split.test).size > 0
        unwanted = (
            (*records.WATCHED, *records.CALIBRATED) if val_was_test else records.WATCHED
        )  # as in the benchmark's own results
        metrics = {name: value for name, value in record.metrics.items() if name not in unwanted}
        return replace(record, metrics=metrics, probabilities=record.probabilities[record.sides == "test"])

    @cached_property
    def _both(self) -> Samples:
        """The rows of the plan's data set, and after them those of the other."""
        own, here = Samples.of(self.plan.dataset), Samples.of(self.other)
        ids, labels = np.concatenate([own.ids, here.ids]), np.concatenate([own.labels, here.labels])
        groups = None if own.groups is None else np.concatenate([own.groups, np.full(len(self.other), -1)])
        return replace(own, ids=ids, labels=labels, groups=groups)

    @cached_property
    def _cells(self) -> CellMeasures:
        own = measure_cells(self.plan.dataset, self.plan.rows, self.show)
        here = measure_cells(self.other, show_progress=self.show)
        return CellMeasures(*map(np.concatenate, zip(vars(own).values(), vars(here).values(), strict=True)))

    def _facts_of(self, split: Split) -> dict[str, Any]:
        """Return the columns of a row that are about the other data set as the test side of a split."""
        other, dataset = self.other, self.plan.dataset
        contents, known = np.array(other.content_hashes), np.array(dataset.content_hashes)
        flags, shared = list[str](), dict[str, int]()
        for side in ("train", "val"):
            shared[side] = int(np.isin(contents, known[getattr(split, side)]).sum())
            if shared[side]:
                flags.append(f"{shared[side]:,} of the {len(other):,} images are, byte for byte, on the {side} side")
                _log.warning("%s: %s", other.info.name, flags[-1])
        flags += [flag for flag in split.flags if flag.startswith("patients unknown")]
        flags += ["" if other.has_subjects else f"patients unknown in {other.info.name}", *self._unlike]
        disjoint = ["" if any(shared.values()) else CONTENT_DISJOINT, "" if shared["val"] else TEST_IS_NOT_VAL]
        return {
            "synthetic": dataset.info.synthetic or other.info.synthetic,
            **dict.fromkeys(("n_val", "groups_val", "leaked_cells", "leaked_groups")),  # not known
            "n_test": len(other),
            "groups_test": int(other.table["group"].nunique()) if other.has_subjects else None,
            "leaked_files": shared["train"],
            "guarantees": records.joined_flags(disjoint),
            "flags": flags,
        }


def _relabelled(dataset: Dataset, other: Dataset, label_map: LabelMap | None) -> Dataset:
    """Return the images of another data set whose labels are, or are mapped to, classes of `dataset`."""
    if not isinstance(other, Dataset) or not isinstance(label_map, (Mapping, type(None))):
        raise SettingsError(
            "Pass a Dataset, and as label_map a dictionary from its labels to classes of the benchmark, or None. "
            f"Received: {type(other).__name__} and label_map={label_map!r}."
        )
    names, classes, chosen = f"{other.info.name!r}", dataset.class_names, dict(label_map or {})
    there, table = f"the classes of the benchmark are {', '.join(classes)}", other.table
    if strange := [label for label in chosen if label not in other.class_names]:
        raise DataError(
            f"label_map names {', '.join(map(repr, strange))}; {names} has the labels {', '.join(other.class_names)}."
        )
    if wrong := sorted({repr(name) for name in chosen.values() if name is not None and name not in classes}):
        raise DataError(f"label_map leads to {', '.join(wrong)}; {there} (or None).")
    if unknown := sorted(set(table["label"].dropna()) - set(chosen) - set(classes)):
        raise DataError(
            f"{names} has images of {', '.join(map(repr, unknown))}; {there}. Say what each is, or None to leave it "
            f"out: label_map={{{unknown[0]!r}: {classes[0]!r}}}, for instance."
        )
    table["label"] = [None if pd.isna(label) else chosen.get(label, label) for label in table["label"]]
    table = table[table["label"].notna()]
    if table.empty:
        raise DataError(f"{names} has no image with a label that is a class of the benchmark: {', '.join(classes)}.")
    return replace(other, _table=table, class_names=classes, source=None)
