"""`leukemia-dl evaluate | report`: intervals and comparisons of predictions, and the page of a store."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from typer import Argument, Option

from leukemia_dl.cli import options
from leukemia_dl.errors import DataError, SettingsError, unknown_name_error

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["evaluate", "report"]

_TEXT = ("protocol", "sample", "subject", "group", "same_cell", "label", "backbone", "kind", "side")
_FORMATS = {"fit_seconds": ".0f", "images_per_second": ".0f"}
_NOT_SHOWN = ("flags", "estimand", "kind", "unit", "images", "groups")


def report(
    store: Path = Argument(help="A store, or one folder of its grids/.", show_default=False),
    root: Path | None = Option(None, help="Where the data set is on this machine.", show_default=False),
    output: Path | None = Option(None, help="The file to write.", show_default="in STORE", callback=options.in_folder),
    no_audit: bool = Option(False, "--no-audit", help="Do not audit every image of the data set."),
    no_cards: bool = Option(False, "--no-cards", help="Write no model cards; none beside --output."),
) -> None:
    """Write one HTML file with all that a benchmark found, and a model card per trained net."""
    from leukemia_dl.reporting import write_model_cards, write_report

    page = write_report(store, root=root, path=output, audit=not no_audit)
    options.print_report(page, [] if no_cards or output else write_model_cards(store))


def evaluate(
    predictions: Path = Argument(help="A store, or a CSV file with label and probability_<class>."),
    metric: str = Option("accuracy", help="To compare by; choose it before you look."),
    level: float = Option(0.95, help="Of the intervals."),
    estimand: str = Option("models", help="models (these), or procedure (training anew: two seeds)."),
    side: str = Option("test", help="Which rows of the column side."),
    protocol: str | None = Option(None, help="Which rows of the column protocol."),
    unique_cells: bool = Option(False, "--unique-cells", help="Count images of one cell once."),
    csv: Path | None = Option(None, help="File for every metric.", callback=options.in_folder),
    safe_csv: options.SafeCsv = False,
) -> None:
    """Rank backbones with intervals over groups of patients, and say which of them differ."""
    from leukemia_dl import evaluation

    if csv is not None and csv.exists() and predictions.exists() and csv.samefile(predictions):
        raise SettingsError(f"--csv {csv} is the file of predictions itself: give another name.")
    frame, costs = _read(predictions, protocol)
    frame = evaluation.drop_repeated_cells(frame) if unique_cells else frame
    settings: dict[str, Any] = {"level": level, "estimand": estimand, "side": side}
    table = evaluation.leaderboard(frame, metric, **costs, **settings)
    reason = _print_leaderboard(table, f"{metric}, side {side}", level)
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
    if csv is not None:
        options.write_csv(evaluation.evaluate(frame, **settings), csv, safe_csv)
        typer.echo(f"\nEvery metric: {csv}")


def _print_leaderboard(table: pd.DataFrame, title: str, level: float) -> str:
    """Print a leaderboard; return why nothing in it can be tested, or ""."""
    filled = [name for name in table if not (table[name].isna() | table[name].eq("")).all()]
    by_group, tested = table["unit"].eq("group").all(), "low" in filled
    on = f"{table['images'].max():,} images" + (f" of {table['groups'].max():,} groups of patients" if by_group else "")
    reason = "" if tested or "rank" in filled else str(table["flags"].iloc[0]).split("; ")[0]
    if reason:
        typer.echo(f"Not testable, {reason} ({on}): no ranks and no intervals.")
    formats = dict.fromkeys(map(str, table.select_dtypes("float")), ".3f") | _FORMATS
    title += f", {100 * level:g}% intervals" if tested else ", without intervals"
    options.print_table(table[[name for name in filled if name not in _NOT_SHOWN]], formats, title=title)
    typer.echo(on + (f"; intervals are of {table['estimand'].iloc[0]}" if tested else ""))
    return reason


def _read(path: Path, protocol: str | None) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Return the predictions of one protocol in a file or in a store's records, and a store's results and timings."""
    import pandas as pd

    from leukemia_dl.benchmark.run_files import read_run

    run = read_run(path) if path.expanduser().is_dir() else None
    if run is not None:
        frame = run.predictions
        if frame.empty:
            raise DataError(f"The store {path} holds no predictions: no trial was finished.")
    else:
        if not path.expanduser().is_file():
            raise DataError(f"There is no file {path}. Give a CSV file of predictions, or a store.")
        try:
            # A class may be called NA or None: only what is empty is missing.
            frame = pd.read_csv(path, dtype=dict.fromkeys(_TEXT, str), keep_default_na=False, na_values=[""])
        except Exception as error:  # pandas, its parsers and its decompressors raise about anything
            raise DataError(f"{path} cannot be read as CSV: {' '.join(str(error).split())}") from error
    known = sorted(frame["protocol"].astype(str).unique()) if "protocol" in frame else []
    if protocol is None and len(known) > 1:
        raise DataError(f"The predictions are of the protocols {', '.join(known)}: choose one by --protocol.")
    if protocol is not None:
        if protocol not in known:
            raise unknown_name_error("protocol", protocol, known, "The predictions are of these protocols.")
        frame = frame[frame["protocol"] == protocol]
    if run is None:
        return frame, {}
    results = run.results[run.results["protocol"].isin(frame["protocol"])]
    return frame, {"results": results, "timings": run.timings[run.timings["trial"].isin(results["trial"])]}
