"""`leukemia-dl evaluate`: intervals, ranks and comparisons from a file of predictions, whoever made them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from leukemia_dl.cli import options
from leukemia_dl.errors import DataError, SettingsError, unknown_name_error

if TYPE_CHECKING:
    import pandas as pd

    from leukemia_dl.benchmark.stored import StoredRun

__all__ = ["evaluate"]

_NAMES = ("protocol", "sample", "subject", "group", "same_cell", "label", "backbone", "kind", "side")


def evaluate(
    predictions: Annotated[
        Path,
        typer.Argument(
            help="A store, or a CSV file with columns label and probability_<class>; further backbone, kind, seed, "
            "fold, side, sample, group.",
            show_default=False,
        ),
    ],
    metric: Annotated[
        str,
        typer.Option(
            help="The metric to compare by; choose it before you look.",
            autocompletion=options.completed("evaluation.metrics", "METRICS"),
        ),
    ] = "accuracy",
    level: Annotated[float, typer.Option(help="Of the intervals.")] = 0.95,
    estimand: Annotated[
        str, typer.Option(help="models: these fitted models. procedure: training anew too; needs two seeds.")
    ] = "models",
    side: Annotated[str, typer.Option(help="Which rows of the column side.")] = "test",
    protocol: Annotated[
        str | None, typer.Option(help="Which rows of the column protocol, if there are several.", show_default=False)
    ] = None,
    unique_cells: Annotated[
        bool, typer.Option("--unique-cells", help="Count images of one cell (column same_cell) once.")
    ] = False,
    csv: Annotated[
        Path | None,
        typer.Option(
            help="Write every metric with its interval to this file.", show_default=False, callback=options.in_folder
        ),
    ] = None,
    safe_csv: options.SafeCsv = False,
) -> None:
    """Rank backbones with intervals over groups of patients, and say which of them differ."""
    from leukemia_dl import evaluation

    if csv is not None and csv.exists() and predictions.exists() and csv.samefile(predictions):
        raise SettingsError(f"--csv {csv} is the file of predictions itself: give another name.")
    frame, run = _read(predictions)
    frame = _of_protocol(frame, protocol)
    frame = evaluation.drop_repeated_cells(frame) if unique_cells else frame
    settings: dict[str, Any] = {"level": level, "estimand": estimand, "side": side}
    table = evaluation.leaderboard(frame, metric, **_costs(run, frame), **settings)
    hidden = {"flags", "estimand", "kind", "images", "groups"}
    shown = [name for name in table if not (table[name].isna() | table[name].eq("")).all() and name not in hidden]
    formats = dict.fromkeys(table.select_dtypes("float").columns, ".3f") | {
        "fit_seconds": ".0f",
        "images_per_second": ".0f",
    }
    known = bool({"low", "low_image_level"} & {*shown})
    title = f"{metric}, side {side}, " + (f"{100 * level:g}% intervals" if known else "without intervals")
    groups = "" if table["groups"].isna().all() else f" of {table['groups'].max():,} groups of patients"
    on = f"{table['images'].max():,} images{groups}"
    untestable = table["flags"].iloc[0].split("; ")[0] if not known and table["rank"].isna().all() else ""
    if untestable:
        typer.echo(f"Not testable, {untestable} ({on}): no ranks and no intervals.")
    options.print_table(table[shown], formats, title=title)
    typer.echo(on + (f"; intervals are of {table['estimand'].iloc[0]}" if known else ""))
    if len(names := evaluation.class_names_of(frame)) == 2:
        typer.echo(f"positive class: {names[1]} (the last column probability_...)")
    for name, flags in zip(table["backbone"], table["flags"], strict=True):
        if others := "; ".join(flag for flag in flags.split("; ") if flag not in ("", untestable)):
            typer.echo(f"{name}: {others}")
    if len(table) > 1 and "sample" in frame:
        found = evaluation.compare(frame, metric, **settings)
        confirmatory = found["role"] == "confirmatory"
        chosen = found[confirmatory] if confirmatory.any() else found
        typer.echo("")
        for sentence in chosen.loc[chosen["p"].notna() | (not untestable), "sentence"]:
            typer.echo(f"- {sentence}")
    if csv is not None:
        options.write_csv(evaluation.evaluate(frame, **settings), csv, safe_csv)
        typer.echo(f"\nEvery metric: {csv}")


def _of_protocol(frame: pd.DataFrame, name: str | None) -> pd.DataFrame:
    known = sorted(frame["protocol"].astype(str).unique()) if "protocol" in frame else []
    if name is None and len(known) > 1:
        raise DataError(f"The predictions are of the protocols {', '.join(known)}: choose one by --protocol.")
    if name is None:
        return frame
    if name not in known:
        raise unknown_name_error("protocol", name, known, "These are the protocols that the predictions are of.")
    return frame[frame["protocol"] == name]


def _read(path: Path) -> tuple[pd.DataFrame, StoredRun | None]:
    """Return the predictions in a file, or those of a store's records with what the store knows of their trials."""
    import pandas as pd

    file = path.expanduser()
    if file.is_dir():
        from leukemia_dl.benchmark.stored import read_run

        run = read_run(file, together=True)
        if len(run.predictions):
            return run.predictions, run
        raise DataError(f"The store {path} holds no predictions: no trial was finished.")
    if not file.is_file():
        raise DataError(f"There is no file {file}. Give a CSV file of predictions, or the folder of a store.")
    try:
        # A class may be called NA or None: only what is empty is missing.
        return pd.read_csv(file, dtype=dict.fromkeys(_NAMES, str), keep_default_na=False, na_values=[""]), None
    except Exception as error:  # pandas, its parsers and its decompressors raise about anything
        raise DataError(f"{file} cannot be read as CSV: {' '.join(str(error).split())}") from error


def _costs(run: StoredRun | None, frame: pd.DataFrame) -> dict[str, Any]:
    """Return the results and timings of the protocols that are evaluated; none of other benchmarks in the store."""
    if run is None:
        return {}
    results = run.results[run.results["protocol"].isin(frame["protocol"])]
    return {"results": results, "timings": run.timings[run.timings["trial"].isin(results["trial"])]}
