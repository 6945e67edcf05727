"""`leukemia-dl evaluate`: intervals, ranks and comparisons of predictions, whichever program made them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from leukemia_dl.cli import options
from leukemia_dl.errors import DataError, SettingsError, unknown_name_error

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["evaluate"]

_TEXT = ("protocol", "sample", "subject", "group", "same_cell", "label", "backbone", "kind", "side")
_FORMATS = {"fit_seconds": ".0f", "images_per_second": ".0f"}
_NOT_SHOWN = ("flags", "estimand", "kind", "unit", "images", "groups")


def evaluate(
    predictions: Annotated[Path, typer.Argument(help="A store, or a CSV file with label and probability_<class>.")],
    metric: Annotated[
        str,
        typer.Option(
            help="The metric to compare by; choose it before you look.",
            autocompletion=options.completed("evaluation.metrics", "METRICS"),
        ),
    ] = "accuracy",
    level: Annotated[float, typer.Option(help="Of the intervals.")] = 0.95,
    estimand: Annotated[str, typer.Option(help="models (these), or procedure (training anew: two seeds).")] = "models",
    side: Annotated[str, typer.Option(help="Which rows of the column side.")] = "test",
    protocol: Annotated[str | None, typer.Option(help="Which rows of the column protocol.")] = None,
    unique_cells: Annotated[bool, typer.Option("--unique-cells", help="Count images of one cell once.")] = False,
    csv: Annotated[Path | None, typer.Option(help="File for every metric.", callback=options.in_folder)] = None,
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
    filled = [name for name in table if not (table[name].isna() | table[name].eq("")).all()]
    by_group, tested = table["unit"].eq("group").all(), "low" in filled
    on = f"{table['images'].max():,} images" + (f" of {table['groups'].max():,} groups of patients" if by_group else "")
    untestable = "" if tested or "rank" in filled else table["flags"].iloc[0].split("; ")[0]
    if untestable:
        typer.echo(f"Not testable, {untestable} ({on}): no ranks and no intervals.")
    formats = dict.fromkeys(map(str, table.select_dtypes("float")), ".3f") | _FORMATS
    title = f"{metric}, side {side}, " + (f"{100 * level:g}% intervals" if tested else "without intervals")
    options.print_table(table[[name for name in filled if name not in _NOT_SHOWN]], formats, title=title)
    typer.echo(on + (f"; intervals are of {table['estimand'].iloc[0]}" if tested else ""))
    if len(names := evaluation.class_names_of(frame)) == 2:
        typer.echo(f"positive class: {names[1]} (the last column probability_...)")
    for name, flags in zip(table["backbone"], table["flags"], strict=True):
        if others := "; ".join(flag for flag in flags.split("; ") if flag not in ("", untestable)):
            typer.echo(f"{name}: {others}")
    if len(table) > 1 and "sample" in frame:
        pairs = evaluation.compare(frame, metric, **settings)
        confirmatory = pairs[pairs["role"] == "confirmatory"]
        pairs = pairs if confirmatory.empty else confirmatory
        sentences = pairs.loc[pairs["p"].notna() | (not untestable), "sentence"]
        typer.echo("\n" + "\n".join(f"- {sentence}" for sentence in sentences))
    if csv is not None:
        options.write_csv(evaluation.evaluate(frame, **settings), csv, safe_csv)
        typer.echo(f"\nEvery metric: {csv}")


def _read(path: Path, protocol: str | None) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Return the predictions of one protocol in a file or in a store's records, and a store's results and timings."""
    import pandas as pd

    run, file = None, path.expanduser()
    if file.is_dir():
        from leukemia_dl.benchmark.run_files import read_run

        run = read_run(file, together=True)
        frame = run.predictions
        if frame.empty:
            raise DataError(f"The store {path} holds no predictions: no trial was finished.")
    elif not file.is_file():
        raise DataError(f"There is no file {file}. Give a CSV file of predictions, or the folder of a store.")
    else:
        try:
            # A class may be called NA or None: only what is empty is missing.
            frame = pd.read_csv(file, dtype=dict.fromkeys(_TEXT, str), keep_default_na=False, na_values=[""])
        except Exception as error:  # pandas, its parsers and its decompressors raise about anything
            raise DataError(f"{file} cannot be read as CSV: {' '.join(str(error).split())}") from error
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
