"""`leukemia-dl evaluate | report | runs`: intervals and comparisons, the page of a store, and its records."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer import Argument, Option

from leukemia_dl.checks import choice
from leukemia_dl.cli import options
from leukemia_dl.errors import DataError, SettingsError
from leukemia_dl.text import counted

if TYPE_CHECKING:
    import pandas as pd

runs = typer.Typer(help="List and verify the records of a store.", no_args_is_help=True)
StoreFolder = Annotated[Path, Argument(help="The folder of the results.", show_default=False)]
_COLUMNS = ["trial", "status", "recipe", "changes", "accuracy", "loss", "seconds", "finished", "model"]
_NUMBERS = {"accuracy": ".3f", "loss": ".3f", "seconds": ",.1f"}
_STATUSES = ("ok", "not_applicable", "failed", "damaged")
_TEXT = ("protocol", "sample", "subject", "group", "same_cell", "label", "backbone", "kind", "side")
_NOT_SHOWN = ("flags", "estimand", "kind", "unit", "images", "groups")


def report(
    store: Path = Argument(help="A store, or one folder of its grids/.", show_default=False),
    root: Path | None = Option(None, help="Where the data set is on this machine.", show_default=False),
    output: Path | None = Option(None, help="The file to write.", show_default="report.html in STORE"),
    no_audit: bool = Option(False, "--no-audit", help="Do not audit every image of the data set."),
    no_cards: bool = Option(False, "--no-cards", help="Write no model cards; none beside --output."),
    explain: bool = Option(False, "--explain", help="Add maps of the worst errors, by the saved nets."),
    features: bool = Option(False, "--features", help="Add maps and probes of the features of frozen backbones."),
    embeddings: options.EmbeddingFiles = None,
) -> None:
    """Write one HTML file with all that a benchmark found, and a model card per trained net."""
    how: dict[str, Any] = {"root": root, "audit": not no_audit, "explain": explain}
    if features:
        from leukemia_dl.benchmark import Benchmark
        from leukemia_dl.benchmark.run_files import SETTINGS_FILE, read_run

        options.embeddings(embeddings)
        run = read_run(store)
        bench = Benchmark.from_toml(run.folder / SETTINGS_FILE, root=root, store=run.store.root)
        if bench.stored().folder != run.folder:
            raise SettingsError(f"The encoders here are not those of {store}: a file, a version or weights differ.")
        how["features"] = {name: bench.features(name) for name in bench.planned.backbones}
    write_page(store, output, not no_cards and output is None, **how)


def write_page(store: Path, output: Path | None = None, cards: bool = True, **how: Any) -> None:
    """Write the report of a store, and its model cards, and print where they are."""
    from leukemia_dl.reporting import write_model_cards, write_report

    typer.echo(f"Report:   {write_report(store, path=output, **how)}")
    if cards and (written := write_model_cards(store)):
        typer.echo(f"Cards:    {written[0].parent} ({len(written)})")


def evaluate(
    predictions: Path = Argument(help="A store, or a CSV file with label and probability_<class>."),
    metric: str = Option("accuracy", help="To compare by; choose it before you look."),
    level: float = Option(0.95, help="Of the intervals."),
    estimand: str | None = Option(None, help="models, or procedure.", show_default="procedure from two seeds on"),
    side: str = Option("test", help="Which rows of the column side."),
    unit: str = Option("image", help="Unit of prediction: image, or patient."),
    by: str | None = Option(None, help="Print the metric by a column, or by class.", show_default=False),
    protocol: str | None = Option(None, help="Which rows of the column protocol."),
    unique_cells: bool = Option(False, "--unique-cells", help="Count images of one cell once."),
    csv: Path | None = Option(None, help="File for every metric."),
    safe_csv: options.SafeCsv = False,
) -> None:
    """Rank backbones with intervals over groups of patients, and say which of them differ."""
    from leukemia_dl import evaluation

    if csv is not None and csv.exists() and predictions.exists() and csv.samefile(predictions):
        raise SettingsError(f"--csv {csv} is the file of predictions itself: give another name.")
    frame, costs = _read(predictions.expanduser(), protocol)
    frame = evaluation.drop_repeated_cells(frame) if unique_cells else frame
    if choice("unit", unit, ("image", "patient")) == "patient":
        frame = evaluation.patient_predictions(frame, side=side)
    settings: dict[str, Any] = {"level": level, "estimand": estimand, "side": side}
    table = evaluation.leaderboard(frame, metric, **costs, **settings)
    reason = _print_leaderboard(table, f"{metric}, side {side}", level, unit == "patient")
    if len(names := evaluation.class_names_of(frame)) == 2:
        typer.echo(f"positive class: {names[1]} (the last column probability_...)")
    for name, flags in zip(table["backbone"], table["flags"], strict=True):
        if others := "; ".join(flag for flag in flags.split("; ") if flag not in ("", reason)):
            typer.echo(f"{name}: {others}")
    if len(table) > 1 and "sample" in frame:
        pairs = evaluation.compare(frame, metric, **settings)
        confirmatory = pairs[pairs["role"] == "confirmatory"]
        pairs = pairs if confirmatory.empty else confirmatory
        sentences = pairs.loc[pairs["p"].notna() | (not reason), "sentence"]
        typer.echo("\n" + "\n".join(f"- {sentence}" for sentence in sentences))
    if by is not None:
        usual = (by, metric) == ("class", "accuracy")  # recall, precision and F1
        parts = evaluation.evaluate(frame, by=by, metrics=None if usual else metric, **settings)
        shown = ["backbone", "metric", "value", "low", "high", "images", "groups", "reason"]
        options.print_table(parts[[by, *shown]], dict.fromkeys(("value", "low", "high"), ".3f"))
    if csv is not None:
        options.write_csv(evaluation.evaluate(frame, **settings), csv, safe_csv)
        typer.echo(f"\nEvery metric: {csv}")


def _print_leaderboard(table: pd.DataFrame, title: str, level: float, whole: bool) -> str:
    """Print a leaderboard; return why nothing in it can be tested, or ""."""
    filled = [name for name in table if not (table[name].isna() | table[name].eq("")).all()]
    by_group, tested = table["unit"].eq("group").all(), "low" in filled
    count, groups = table["images"].max(), table["groups"].max()
    on = f"{count:,} images" + (f" of {groups:,} groups of patients" if by_group else "")
    on = f"{count:,} patients, each predicted as a whole" if whole else on
    reason = "" if tested or "rank" in filled else str(table["flags"].iloc[0]).split("; ")[0]
    if reason:
        typer.echo(f"Not testable, {reason} ({on}): no ranks and no intervals.")
    formats = dict.fromkeys(map(str, table.select_dtypes("float")), ".3f")
    formats |= {"fit_seconds": ".0f", "images_per_second": ".0f"}
    title += f", {100 * level:g}% intervals" if tested else ", without intervals"
    options.print_table(table[[name for name in filled if name not in _NOT_SHOWN]], formats, title)
    typer.echo(on + (f"; intervals are of {table['estimand'].iloc[0]}" if tested else ""))
    return reason


def _read(path: Path, protocol: str | None) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Return the predictions of one protocol in a file or in a store's records, and a store's results and timings."""
    import pandas as pd

    from leukemia_dl.benchmark.run_files import read_run

    run = read_run(path) if path.is_dir() else None
    if run is not None:
        frame = run.predictions
        if frame.empty:
            raise DataError(f"The store {path} holds no predictions: no trial was finished.")
    else:
        try:
            # A class may be called NA or None: only what is empty is missing.
            frame = pd.read_csv(path, dtype=dict.fromkeys(_TEXT, str), keep_default_na=False, na_values=[""])
        except Exception as error:  # pandas, its parsers and its decompressors raise about anything
            raise DataError(f"{path} cannot be read as CSV: {' '.join(str(error).split())}") from error
    known = sorted(frame["protocol"].astype(str).unique()) if "protocol" in frame else []
    if (len(known) > 1) if protocol is None else (protocol not in known):
        raise DataError(f"--protocol chooses one of those of the predictions: {', '.join(known) or 'none named'}.")
    frame = frame if protocol is None else frame[frame["protocol"] == protocol]
    if run is None:
        return frame, {}
    results = run.results[run.results["protocol"].isin(frame["protocol"])]
    return frame, {"results": results, "timings": run.timings[run.timings["trial"].isin(results["trial"])]}


def best(
    store: StoreFolder,
    metric: str | None = Option(None, help="To choose by.", show_default="the primary metric of the run"),
    protocol: str | None = Option(None, help="Of a store with several, the one whose nets count.", show_default=False),
) -> None:
    """Print the net that is best on val, its value on test, and the file to predict with."""
    from leukemia_dl.benchmark.best import best_net
    from leukemia_dl.benchmark.run_files import read_run

    found = best_net(read_run(store), metric, protocol)
    span = f"95% interval {found['low']:.3f} to {found['high']:.3f}" if found["low"] < found["high"] else "no interval"
    typer.echo(
        f"Backbone: {found['backbone']}, {found['metric'].replace('_', ' ')} {found['test']:.3f} on test ({span})"
    )
    typer.echo(f"Trial:    {found['trial']}, {found['val']:.3f} on val")
    if found["flags"]:
        typer.echo(f"Note:     {found['flags']}")
    command = f"leukemia-dl predict {found['path']} IMAGES" if found["path"] else "the net was not kept"
    typer.echo(f"Predict:  {command}")


@runs.command("list")
def list_records(store: StoreFolder) -> None:
    """List the records of a store: failed and damaged ones last."""
    import pandas as pd

    from leukemia_dl.benchmark import Store

    opened = Store.open(store)
    rows: dict[str, dict[str, Any]] = {name: {"trial": name, "status": "damaged"} for name in opened.names()}
    for record in opened.records(arrays=False):
        rows[record.trial.folder] |= {
            **{name: str(record.row.get(name) or "") for name in ("recipe", "changes")},
            **{name: record.metrics.get(name) for name in ("accuracy", "loss")},
            "status": record.status,
            "finished": str(record.timings.get("finished", "")),
            "seconds": record.timings.get("seconds"),
            "model": "yes" if opened.has_model(record.trial) else "no",
        }
    if rows:
        listed = sorted(rows.values(), key=lambda row: _STATUSES.index(row["status"]))
        options.print_table(pd.DataFrame(listed, columns=_COLUMNS).astype(dict.fromkeys(_NUMBERS, float)), _NUMBERS)
    counts = sorted(Counter(row["status"] for row in rows.values()).items())
    each = "".join(f", {count} {status}" for status, count in counts)
    typer.echo(f"{opened.root}: {counted(len(rows), 'record')}{each}")


@runs.command()
def verify(store: StoreFolder) -> None:
    """Compare every file of every record with its checksum, trained nets included; exit status 1 if one is damaged."""
    from leukemia_dl.benchmark import Store

    opened = Store.open(store)
    damaged, count = opened.verify(), counted(len(opened.names()), "record")
    for name, problem in damaged.items():
        typer.echo(f"{name}: {problem}")
    if damaged:
        typer.echo(f"DAMAGED: {len(damaged):,} of {count}. Run the same benchmark again: it runs these trials again.")
        raise typer.Exit(1)
    typer.echo(f"OK: {count}")
