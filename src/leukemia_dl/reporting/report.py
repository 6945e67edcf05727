"""The report, model cards and pictures of a run; texts, captions and items of cards are in templates/."""

from __future__ import annotations

import contextlib
import json
import logging
import re
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from leukemia_dl.benchmark import Benchmark
from leukemia_dl.benchmark.run_files import StoredRun, read_run
from leukemia_dl.benchmark.store import read_file
from leukemia_dl.datasets import Dataset
from leukemia_dl.datasets.cache import user_path
from leukemia_dl.datasets.sources.synthetic import synthetic_folder
from leukemia_dl.errors import DataError, LeukemiaDLError, StoreError, UnknownNameError, unknown_name_error
from leukemia_dl.evaluation import class_names_of, evaluate, group_table, probe, published_results
from leukemia_dl.identity import generator
from leukemia_dl.models.backbones import get_backbone
from leukemia_dl.preprocess import Pipeline
from leukemia_dl.progress import track
from leukemia_dl.reporting import plots, prediction_plots, render
from leukemia_dl.reporting.feature_plots import plot_features
from leukemia_dl.reporting.inspected import doubts_of, errors_of
from leukemia_dl.reporting.summary import ProtocolSummary, inflation_of, summaries_of
from leukemia_dl.text import printable

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_MOST_FIGURES, _SAMPLES, _LONGEST_TITLE = 20, 12, 200
_OF_PREDICTIONS = ("roc", "precision_recall", "confusion", "reliability", "subjects", "errors_by_size")
_OF_TWO_CLASSES = ("sensitivity", "specificity", "calibration_slope", "calibration_intercept")
_OF_ANY_CLASSES = ("accuracy", "loss", "balanced_accuracy", "auroc", "auprc", "brier", "ece")
_Figure = dict[str, Any]  # kind, protocol ("" for all), `draw` without arguments; in the report also its image
_Frames = Mapping[str, pd.DataFrame]  # features by name of the encoder
_log = logging.getLogger(__name__)


def write_report(
    store: str | Path, *, dataset: Dataset | None = None, root: str | Path | None = None,
    path: str | Path | None = None, audit: bool = True, features: _Frames | None = None, explain: bool = False,
    show_progress: bool = True,
) -> Path:  # fmt: skip
    """Write a report of a store, finished or not, and return its path: one HTML file, which fetches nothing.

    Trials that are missing are named. Sample images, the worst errors, the audit and sizes of cells need the data set;
    without it the report says so.

    Args:
        store: The folder of a store, or one folder of its grids/.
        dataset: The data set; None to load it as the store's settings say.
        root: Where the data set is on this machine, if it has moved.
        path: The file to write; None for report.html in the store, or beside the grid if the store holds other trials.
        audit: Audit every image of the data set, if the store has no audit of it yet.
        features: Frames of `Benchmark.features` by name of the encoder, for maps and what features predict.
        explain: Add maps of the worst errors, by the saved nets that made them; seconds per net.
        show_progress: A bar on a terminal, plain lines elsewhere, both on standard error.

    Raises StoreError if the folder is no store or the file cannot be written, DataError if `root` has no such data or
    features cannot be probed.
    """
    run = read_run(store)
    target = folder_of(run) / "report.html" if path is None else user_path(path)
    try:
        dataset, why = _dataset_of(run, dataset, root), ""
    except (LeukemiaDLError, OSError, TypeError, ValueError) as error:
        if root is not None:
            raise DataError(f"The data set of the store cannot be read at {root}: {error}") from error
        dataset, why = None, render.one_line(error)
        _log.warning("The report has no images: %s", why)
    found = _audit(run, dataset, show_progress) if audit else None
    return render.write(
        target, render.page("report.html", _context(run, dataset, why, found, features or {}, explain, show_progress))
    )


def write_pictures(benchmark: Benchmark) -> list[Path]:
    """Write comparison.png, learning_curves.png, samples.png and predictions.csv into the store of `benchmark`.

    If the store has trials of other benchmarks, they are written into this one's folder in grids/. A picture without
    data (no trial finished, no net trained) is left out. Where one of two protocols keeps patients apart and the other
    does not, inflation.csv and inflation.png say how much it adds to the accuracy.

    Returns the paths of the pictures. Raises StoreError if they cannot be written.
    """
    run = benchmark.stored()
    folder, summaries = folder_of(run), summaries_of(run)
    for name, frame in (("predictions", run.predictions), ("inflation", inflation_of(summaries))):
        if len(frame):
            render.write(folder / f"{name}.csv", frame.to_csv(index=False, lineterminator="\n"))
    figures = [one for one in _figures(run, summaries, benchmark.dataset, {}) if not one["protocol"]]
    return [render.write(folder / f"{one['kind']}.png", plots.image_of(one["draw"]())) for one in figures]


def write_model_cards(store: str | Path) -> list[Path]:
    """Write a card for each trained net of a `store`, its folder, into cards/ there, and return their paths.

    Raises StoreError if the folder is no store, or cannot be written.
    """
    run = read_run(store)
    folder = folder_of(run, "cards")
    return [render.write(folder / f"{name}.md", _card(run, name)) for name in _trained(run)]


def model_card(store: str | Path, trial: str) -> str:
    """Return the card of one trained net, in Markdown.

    `store` is the folder of its benchmark, `trial` the name of its folder below trials/, as in the column `trial` of
    `Benchmark.results`. Raises StoreError if the folder is no store, UnknownNameError if it holds no such net.
    """
    run = read_run(store)
    if trial not in _trained(run):
        raise unknown_name_error("trained net", trial, _trained(run))
    return _card(run, trial)


def folder_of(run: StoredRun, name: str = "") -> Path:
    """Return the folder for reports and pictures of a run: its store, or grids/DIGEST if that has other trials."""
    folder = (run.folder if run.others else run.store.root) / name
    if not folder.resolve().is_relative_to(run.store.root.resolve()):
        raise StoreError(f"{folder} leads out of the store, and is not written to. Delete that link.")
    return folder


def _dataset_of(run: StoredRun, dataset: Dataset | None, root: str | Path | None) -> Dataset:
    """Return the labelled data set of a run. Only existing files are read: nothing is drawn or fetched."""
    facts = run.settings["dataset"]
    name, options, place = str(facts["name"]), facts.get("options", {}), root or facts.get("root")
    if place is None and name == "synthetic" and "options" in facts:
        place = synthetic_folder(**{key: options[key] for key in options if key not in ("workers", "show_progress")})
    if dataset is None:
        if place is None:
            raise DataError("The data set was not loaded by its name from a folder, so that it cannot be loaded again.")
        if not (user_path(place) / ("synthetic.json" if name == "synthetic" else "")).exists():
            raise DataError(f"The data set {name!r} is not at the place that the store names.")
        dataset = Dataset.load(name, root=place, **options)
    dataset = dataset.subset(dataset.labels >= 0)
    if dataset.fingerprint != facts["fingerprint"]:
        raise DataError(
            "It has other contents, labels or groups than the data set of the store: "
            f"{len(dataset):,} labelled images of {', '.join(dataset.class_names)} where {facts.get('samples')} of "
            f"{', '.join(run.class_names)} are expected. If images or classes were left out after loading, pass the "
            "same data set: write_report(store, dataset=dataset)."
        )
    return dataset


def _audit(run: StoredRun, dataset: Dataset | None, show: bool) -> dict[str, Any] | None:
    """Return the audit of a data set, which the store keeps, since it takes as long as reading every image."""
    path, fingerprint = run.store.root / "audit.json", run.settings["dataset"]["fingerprint"]
    with contextlib.suppress(AttributeError, LookupError, OSError, RecursionError, TypeError, ValueError):  # no audit
        known = json.loads(read_file(path, 2**27))
        if known["fingerprint"] == fingerprint and {"findings", "counts", "images"} <= known["audit"].keys():
            return dict(known["audit"])
    if dataset is None:
        return None
    found = dataset.audit(show_progress=show).to_dict()
    try:
        render.write(path, json.dumps({"fingerprint": fingerprint, "audit": found}) + "\n")
    except StoreError as error:  # the store of a colleague
        _log.warning("The audit is not kept, and the next report takes it again: %s", error)
    return found


def _context(
    run: StoredRun, dataset: Dataset | None, why: str, audit: Any, features: _Frames, explain: bool, show: bool
) -> dict[str, Any]:
    # Areas of cells in pixels, of images that show a single one.
    areas = {
        row["sample"]: float(row["foreground"]) * row["height"] * row["width"]
        for row in (audit["images"] if audit else ())
        if row["single_cell"] and None not in (row["foreground"], row["height"])
    }
    summaries, results = summaries_of(run, areas), run.results
    figures, left_out = _drawn(_figures(run, summaries, dataset, features), show)
    probed = [(name, column) for name, frame in features.items() for column in _probed(frame)]
    probes = track(probed, len(probed), "Probing features", show)
    own = render.rows_of(results[results["tta"] != "8 symmetries"]) if len(results) else []
    outcomes, missing = {row["trial"]: row for row in own}, {"status": "missing", "exception": "", "message": ""}
    counts = {"images": len(run.samples), "subjects": run.samples["subject"].nunique()}
    if dataset is not None:
        counts |= dict(zip(run.class_names, np.bincount(dataset.labels).tolist(), strict=False))
    published = pd.DataFrame()
    with contextlib.suppress(UnknownNameError):
        published = published_results(str(run.settings["dataset"]["name"]))
    return {
        "made": time.strftime("%Y-%m-%d"), "run": run, "no_dataset": why, "audit": audit, "summaries": summaries,
        "figures": figures, "left_out": left_out, "settings": render.settings_without_folders(run.text),
        "folds": run.grid[["protocol", "fold"]].drop_duplicates()["protocol"].value_counts(sort=False).to_dict(),
        "counts": [{"name": name, "count": count, "declared": None} for name, count in counts.items() if count],
        "findings": Counter((row["severity"], row["kind"]) for row in (audit["findings"] if audit else ())),
        "splits": render.rows_of(results.drop_duplicates(["protocol", "fold"])) if len(results) else [],
        "probes": [render.rows_of(probe(features[name], of))[0] | {"encoder": name} for name, of in probes],
        "errors": [errors_of(run, one, dataset, explain, show) for one in summaries],
        "doubts": [doubts_of(one, dataset) for one in summaries], "explain": explain,
        "trials": [row | outcomes.get(row["trial"], missing) for row in render.rows_of(run.grid)],
        "environments": _environments(run.timings), "published": render.rows_of(published),
    }  # fmt: skip


def _drawn(figures: Iterator[_Figure], show: bool) -> tuple[list[_Figure], list[_Figure]]:
    # Those of all protocols come first, maps of features last, since some may be left out.
    planned = sorted(figures, key=lambda one: bool(one["protocol"]) + 2 * (one["kind"] == "features"))
    drawn, left_out = [], [one | {"why": ""} for one in planned[_MOST_FIGURES:]]
    for one in track(planned[:_MOST_FIGURES], min(len(planned), _MOST_FIGURES), "Drawing figures", show):
        try:
            drawn.append(one | {"image": render.data_address("svg+xml", plots.image_of(one["draw"](), "svg"))})
        except LeukemiaDLError as error:
            left_out.append(one | {"why": render.one_line(error)})
    return drawn, left_out


def _environments(timings: pd.DataFrame) -> list[dict[str, Any]]:
    names = ["machine", "device_name", "python", "versions"]
    known = timings.reindex(columns=names)
    nets = known[known["device_name"].notna()]  # baselines run wherever the program does
    known = (nets if len(nets) else known).astype(object).fillna("")
    return render.rows_of(known.groupby(names, sort=False).size().reset_index(name="trials"))


def _probed(features: pd.DataFrame) -> list[str]:
    return [name for name in ("label", "subject", "site", "fold") if features.get(name, pd.Series()).nunique() > 1]


def _figures(
    run: StoredRun, summaries: list[ProtocolSummary], dataset: Dataset | None, features: _Frames
) -> Iterator[_Figure]:
    def figure(kind: str, *data: Any, protocol: str = "", **settings: Any) -> _Figure:
        plot = getattr(prediction_plots if kind in _OF_PREDICTIONS else plots, f"plot_{kind}")
        return {"kind": kind, "protocol": protocol, "draw": partial(plot, *data, **settings)}

    evaluated, title = [one for one in summaries if not one.problem], _title(run, [one.protocol for one in summaries])
    if dataset is not None and run.settings["pipeline"]:  # features alone have none
        yield {"kind": "samples", "protocol": "", "draw": partial(_draw_samples, run, dataset, title)}
    if evaluated:
        intervals = pd.concat([one.intervals for one in evaluated])
        yield figure("comparison", run.results, title=f"Test side: {title}", intervals=intervals)
    for one in evaluated:
        frame, board = one.predictions, one.leaderboard
        known = {
            "subjects": frame["group"].notna().all(),
            "errors_by_size": "cell_area" in frame and frame.loc[frame["side"] == "test", "cell_area"].notna().any(),
            "cost": board.loc[board["kind"] == "backbone", "fit_seconds"].notna().any(),
        }
        for kind in (*_OF_PREDICTIONS, "cost"):
            if known.get(kind, True):
                data, own = board if kind == "cost" else frame, f"Test side: {_title(run, [one.protocol])}"
                yield figure(kind, data, title=own, protocol=one.protocol)
    added = inflation_of(summaries)
    if len(added) and added["difference"].notna().any():
        yield figure("inflation", added, f"Test side: {title}")
    for name, table in features.items():
        for of in _probed(table):
            draw = partial(plot_features, table, of, title=_title(run, [f"features of {name}"]))
            yield {"kind": "features", "protocol": "", "draw": draw, "of": f"{name}, coloured by {of}"}
    if len(run.histories):
        yield figure("learning_curves", run.histories, title)


def _title(run: StoredRun, protocols: list[str]) -> str:
    dataset = run.settings["dataset"]
    title = f"{dataset['title']}, {', '.join(protocols)}, recipe {run.settings['recipe']['name']}"
    title = printable(title, kept="")[:_LONGEST_TITLE]  # an SVG with a control character is none
    return title + (" (synthetic cells, not real ones)" if dataset.get("synthetic") else "")


def _draw_samples(run: StoredRun, dataset: Dataset, title: str) -> Figure:
    pipeline = Pipeline.from_dict(run.settings["pipeline"][max(run.settings["pipeline"], key=int)])
    order, names = generator(0, "sample grid").permutation(len(dataset)), dataset.class_names
    codes, per_class = dataset.labels[order], max(_SAMPLES // len(names), 1)
    chosen = dataset.subset(np.concatenate([order[codes == code][:per_class] for code in range(len(names))]))
    images = chosen.to_numpy(pipeline.partition()[0], show_progress=False)
    title += "" if pipeline.is_fitted else ", before steps that are fitted per split"
    return plots.plot_samples(images, [names[code] for code in chosen.labels], title=title)


def _trained(run: StoredRun) -> list[str]:
    done = set(run.results.loc[run.results["status"] == "ok", "trial"]) if len(run.results) else set()
    return [str(name) for name in run.grid.loc[run.grid["kind"] == "backbone", "trial"] if name in done]


def _card(run: StoredRun, trial: str) -> str:
    results, settings, recipe = run.results, run.settings, run.settings["recipe"]
    (row,) = render.rows_of(results[(results["trial"] == trial) & (results["tta"] != "8 symmetries")])
    own = run.predictions[(run.predictions["trial"] == trial) & (run.predictions["kind"] == "backbone")]
    two = len(class_names_of(own)) == 2
    spec: Any = None
    with contextlib.suppress(UnknownNameError):  # its plugin is no longer installed
        spec = get_backbone(str(row["backbone"]))
    context = {
        "row": row, "dataset": settings["dataset"], "backbone": spec, "has_model": run.store.has_model(trial),
        "classes": own.loc[own["side"] == "test", "label"].value_counts().reindex(run.class_names, fill_value=0),
        # Of a file only its name, since a card is sent to others.
        "recipe": {key: re.split(r"[/\\]", val)[-1] if isinstance(val, str) else val for key, val in recipe.items()},
        "pipeline": settings["pipeline"].get(str(row["image_size"])),
        "metrics": render.rows_of(evaluate(own, metrics=_OF_ANY_CLASSES + _OF_TWO_CLASSES * two)),
        "unit": "images, taken as independent" if own["group"].isna().any() else "groups of patients",
        "worst": render.rows_of(group_table(own).head(3)) if own["group"].notna().all() else [],
        "timing": render.rows_of(run.timings[run.timings["trial"] == trial])[0],
    }  # fmt: skip
    return render.page("model_card.md", context)
