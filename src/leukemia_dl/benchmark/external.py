"""Another data set as the test side of every split of a benchmark: its trained nets and baselines on new images."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import cache, cached_property
from typing import Any

import numpy as np
import pandas as pd

from leukemia_dl import errors
from leukemia_dl.benchmark import records
from leukemia_dl.benchmark.baselines import CellMeasures, measure_cells, predict_baseline
from leukemia_dl.benchmark.plan import Plan, PlannedTrial
from leukemia_dl.benchmark.records import Record
from leukemia_dl.benchmark.store import Store
from leukemia_dl.benchmark.trial_runner import appearances_of, read_images
from leukemia_dl.datasets import Dataset, Split
from leukemia_dl.datasets.splits import CONTENT_DISJOINT, TEST_IS_NOT_VAL
from leukemia_dl.evaluation import ensembles, score
from leukemia_dl.evaluation.predictions import arrays_of
from leukemia_dl.models.classifier import logits_over_symmetries, predict_logits, softmax
from leukemia_dl.models.reading import read_classifier
from leukemia_dl.preprocess import Pipeline
from leukemia_dl.preprocess.foreground import differences, summary
from leukemia_dl.progress import track
from leukemia_dl.training.backends import prepare
from leukemia_dl.training.loop import predict_batch_size

Labels = Mapping[str, str | None]  # from labels of a data set to classes of another, or to None to leave them out
_CHUNK_BATCHES = 8  # steps that are fitted per split give a copy in memory
_log = logging.getLogger(__name__)


class ExternalTest:
    """Another data set as the test side of every split of a benchmark."""

    def __init__(self, plan: Plan, store: Store, other: Dataset, label_map: Labels | None, show: bool) -> None:
        self.plan, self.store, self.show = plan, store, show
        self.other = other = records.relabelled(other, label_map or {}, plan.dataset.class_names)
        self._own, self._rows = records.Samples.of(plan.dataset), np.arange(len(other))
        # How the images differ from the benchmark's, of which 100 are compared.
        known = summary(appearances_of(plan.dataset, plan.rows))
        self._unlike = differences(appearances_of(other, self._rows), known)
        for difference in self._unlike:
            _log.warning("%s: %s", other.info.name, difference)
        self._read = cache(lambda pipeline: read_images(other, self._rows, pipeline, show))
        self._facts = cache(self._facts_of)

    def records(self) -> Iterator[Record]:
        """Yield a record per net in the store, and per baseline of its splits, in the order of the grid."""
        trials, title = self.plan.trials, f"Testing on {self.other.info.name}"
        found = {planned.trial.folder: record for planned in trials if (record := self._stored(planned))}
        splits = {planned.split.digest for planned in trials if planned.trial.folder in found}
        if not splits:
            raise errors.StoreError(f"{self.store.root} holds no trial of this benchmark. Call run() first.")
        for planned in track(trials, len(trials), title, self.show):
            record = found.get(planned.trial.folder)
            if planned.spec is None and planned.split.digest in splits:
                record = records.blank_record(planned, self._own)
            if record is None:
                continue
            record = self._of_other(planned.split, record)
            try:
                if record.status != "failed":
                    record = self._baseline(planned, record) if planned.spec is None else self._net(planned, record)
            except (errors.BackendError, errors.ImageError):  # of this machine or of the data, not of a net
                raise
            except Exception as error:
                record = records.failed_record(replace(record, metrics={}, metrics_tta={}), error, 0.0, here=False)
            yield record

    def predictions(self, found: list[Record]) -> pd.DataFrame:
        """Return the prediction frame of records and of the means over their nets."""
        frame = records.prediction_frame(found, self.other.class_names, self.other.table)
        if frame.empty:
            return frame
        # Evaluation takes the folds of one seed as predictions of different images. Here they are of the same ones.
        frame = frame.drop(columns="repeat", errors="ignore")  # that of the folds
        place = list(frame).index("seed") + 1
        frame.insert(place, "repeat", frame["fold"])
        frame.insert(place + 1, "test_dataset", self.other.info.name)
        parts = [part for _, part in frame.groupby("protocol", sort=False)]
        return pd.concat([frame, *map(ensembles, parts)], ignore_index=True)

    def results(self, found: list[Record]) -> pd.DataFrame:
        """Return the result frame of records and of the means over their nets."""
        frame, predicted = records.result_frame(found), self.predictions(found)
        frame.insert(list(frame).index("dataset") + 1, "test_dataset", self.other.info.name)
        # Only of a trial that failed in the benchmark there is a file.
        frame["traceback"] = [path if (self.store.root / path).is_file() else "" for path in frame["traceback"]]
        means, rows = predicted[predicted.get("kind", pd.Series(dtype=str)) == "ensemble"], list[dict[str, Any]]()
        for (protocol, name), own in means.groupby(["protocol", "backbone"], sort=False) if len(means) else ():
            nets = frame[(frame["protocol"] == protocol) & frame["epochs"].notna() & (frame["status"] == "ok")]
            nets = nets[nets["backbone"].eq(str(name).rpartition(" (mean of ")[0]) | str(name).startswith("all (")]
            common = nets.loc[:, nets.nunique(dropna=False) == 1].drop(columns=[*records.CALIBRATED], errors="ignore")
            flags = dict.fromkeys(flag for text in nets["flags"] for flag in text.split("; ") if flag)
            seen = {"leaked_files": nets["leaked_files"].max(), "flags": "; ".join(flags)}
            rows.append({**common.iloc[0], **seen, "backbone": name, "trial": "", **score(*arrays_of(own))})
        if not rows:
            return frame
        return pd.concat([frame, pd.DataFrame(rows).astype(frame.dtypes[[*rows[0]]])], ignore_index=True)

    def _stored(self, planned: PlannedTrial) -> Record | None:
        try:
            return self.store.read(planned.trial, arrays=False)
        except errors.DamagedRecordError as error:
            return records.failed_record(records.blank_record(planned, self._own), error, 0.0, here=False)

    def _of_other(self, split: Split, record: Record) -> Record:
        facts, ids = self._facts(split), self.other.table["sample"].to_numpy(dtype=np.str_)
        # Flags of the split are about its own test side; all others are about the net.
        kept = [flag for flag in record.row["flags"].split("; ") if flag not in split.flags]
        row = {**record.row, **facts, "flags": "; ".join(filter(None, dict.fromkeys([*facts["flags"], *kept])))}
        return replace(record, row=row, sides=np.full(len(ids), "test"), samples=ids, labels=self.other.labels)

    def _net(self, planned: PlannedTrial, record: Record) -> Record:
        assert planned.recipe is not None
        if planned.pipeline is None:
            raise errors.SettingsError(f"{record.trial.backbone} has features of other images only.")
        prepare(planned.recipe.precision, self.plan.compute)
        import keras

        # The nets of other trials would otherwise stay in memory for as long as the process lives.
        keras.utils.clear_session(free_memory=True)
        if problem := self.store.model_problem(record.trial):
            raise errors.StoreError(f"{problem}: run with save_models=True, which trains the net again.")
        classifier = read_classifier(self.store.folder(record.trial))
        # Images of all nets are read once, after the steps that are equal for all splits, if these give a common size.
        first = planned.pipeline.partition()[0]
        steps = classifier.pipeline.steps[: None if first.output_size is None else len(first.steps)]
        images = self._read(Pipeline(steps))
        recipe = replace(planned.recipe, batch_size=int(record.row["batch_size"]))
        batch = min(predict_batch_size(recipe), len(self._rows))
        logits, views = [], []
        for start in range(0, len(self._rows), _CHUNK_BATCHES * batch):
            rows = self._rows[start : start + _CHUNK_BATCHES * batch]
            pixels = images.after(classifier.pipeline, rows).subsets(rows)[0]
            logits.append(predict_logits(classifier.model, pixels, batch))
            views += [logits_over_symmetries(classifier.model, pixels, batch)] if recipe.tta else []
        fitted = (classifier.temperature, "") if "temperature" in record.metrics else None
        averaged = np.concatenate(views, axis=1) if views else None
        return records.scored_record(record, softmax(np.concatenate(logits)), averaged, fitted)

    def _baseline(self, planned: PlannedTrial, record: Record) -> Record:
        split, own = planned.split, self._own
        labels = np.concatenate([own.labels, self.other.labels])
        elsewhere, classes = replace(split, test=self._rows + len(own.labels)), len(own.class_names)
        found, why = predict_baseline(planned.trial.backbone, labels, elsewhere, classes, lambda: self._cells)
        if why:
            return replace(record, status="not_applicable", message=why)
        fitted = records.temperature_of_val(split, own, found)  # on the val side of the benchmark
        return records.scored_record(record, found[len(split.val) :], None, fitted)

    @cached_property
    def _cells(self) -> CellMeasures:
        own = measure_cells(self.plan.dataset, self.plan.rows, self.show)
        here = measure_cells(self.other, show_progress=self.show)
        return CellMeasures(*map(np.concatenate, zip(vars(own).values(), vars(here).values(), strict=True)))

    def _facts_of(self, split: Split) -> dict[str, Any]:
        other, dataset, flags = self.other, self.plan.dataset, list[str]()
        contents, known = np.array(other.content_hashes), np.array(dataset.content_hashes)
        shared = {side: int(np.isin(contents, known[getattr(split, side)]).sum()) for side in ("train", "val")}
        for side in filter(shared.get, shared):
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
            "guarantees": "; ".join(filter(None, disjoint)),
            "flags": flags,
        }
