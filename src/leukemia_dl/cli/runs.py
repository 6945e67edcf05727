"""`leukemia-dl runs`: list, show, verify and export the records of a store."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from leukemia_dl.cli import options
from leukemia_dl.errors import SettingsError, unknown_name_error
from leukemia_dl.text import counted

__all__ = ["app"]

app = typer.Typer(help="List, show, verify and export the records of a store.", no_args_is_help=True)
_COLUMNS = ["trial", "status", "recipe", "changes", "accuracy", "loss", "seconds", "finished", "model"]
StoreFolder = Annotated[Path, typer.Argument(help="The folder of the results.", show_default=False)]


@app.command("list")
def show_all(store: StoreFolder) -> None:
    """List the records of a store: failed and damaged ones last."""
    import pandas as pd

    from leukemia_dl.benchmark import Store

    opened = Store.open(store)
    rows: dict[str, dict[str, Any]] = {name: {"trial": name, "status": "damaged"} for name in opened.names()}
    for record in opened.records(arrays=False):
        row = rows[record.trial.folder]
        row |= {"status": record.status, "finished": str(record.timings.get("finished", ""))}
        row |= {name: str(record.row.get(name) or "") for name in ("recipe", "changes")}
        row |= {name: record.metrics.get(name) for name in ("accuracy", "loss")}
        row |= {"seconds": record.timings.get("seconds"), "model": "yes" if opened.has_model(record.trial) else "no"}
    order = ("ok", "not_applicable", "failed", "damaged")
    listed = sorted(rows.values(), key=lambda row: order.index(row["status"]))
    if listed:
        frame = pd.DataFrame(listed, columns=_COLUMNS).astype({"accuracy": float, "loss": float, "seconds": float})
        options.print_table(frame, {"accuracy": ".3f", "loss": ".3f", "seconds": ",.1f"})
    statuses = [row["status"] for row in listed]
    counts = "".join(f", {statuses.count(status)} {status}" for status in sorted(set(statuses)))
    typer.echo(f"{opened.root}: {counted(len(listed), 'record')}{counts}")


@app.command("show")
def show(
    store: StoreFolder,
    trial: Annotated[str, typer.Argument(help="Beginning of its folder's name or of its digest.", show_default=False)],
) -> None:
    """Show the settings and metrics of a trial and, if it failed, why."""
    from leukemia_dl.benchmark import Store

    opened = Store.open(store)
    names = opened.names()
    # A name ends in the beginning of its trial's digest.
    found = [name for name in names if name.startswith(trial) or name.rpartition("-")[2].startswith(trial.lower()[:12])]
    if len(found) > 1 and trial not in names:
        raise SettingsError(f"{len(found)} trials begin with {trial!r}: {', '.join(found)}. Give more of the name.")
    record = opened.read(trial if trial in names else found[0]) if found else None
    if record is None:
        raise unknown_name_error("trial", trial, names)
    facts = {"digest": record.trial.digest, "status": record.status, **record.row, **record.trial.to_dict()}
    facts["dataset"] = f"{record.row.get('dataset') or ''} {facts['dataset']}".strip()
    facts["pipeline"] = ", ".join(str(step.get("step")) for step in (facts["pipeline"] or {}).get("steps", []))
    facts["recipe"] = ", ".join(f"{name} {value}" for name, value in (facts["recipe"] or {}).items())
    flags = str(facts.pop("flags", None) or "").split("; ")
    sections = {record.trial.folder: facts, "Timings": record.timings, "Metrics": record.metrics}
    for title, values in {**sections, "Metrics over 8 symmetries": record.metrics_tta}.items():
        typer.echo(f"{title}\n" if values else "", nl=False)
        for name, value in values.items():
            if value not in (None, ""):
                typer.echo(f"  {name:<24}  {f'{value:.6g}' if isinstance(value, float) else value}")
    if len(record.history):
        curve = record.history.dropna(axis="columns", how="all")
        formats = dict.fromkeys(curve.select_dtypes("float").columns, ".4g")
        options.print_table(curve, formats, title="Learning curve")
    for flag in filter(None, flags):
        typer.echo(f"note: {flag}")
    if record.error:
        typer.echo(f"{record.status}: {record.error}")
    if record.status == "failed":
        typer.echo(f"\n{record.traceback.rstrip()}\n\nLog: {opened.logs(record.trial) / 'log.txt'}")


@app.command("verify")
def verify(store: StoreFolder) -> None:
    """Compare every file of every record with its checksum, trained nets included; exit status 1 if one is damaged."""
    from leukemia_dl.benchmark import Store

    opened = Store.open(store)
    damaged, count = opened.verify(), counted(len(opened.names()), "record")
    for name, problem in damaged.items():
        typer.echo(f"{name}: {problem}")
    typer.echo(f"DAMAGED: {len(damaged):,} of {count}" if damaged else f"OK: {count}")
    if damaged:
        typer.echo("Run the same benchmark again: it runs the trials of these records again.")
        raise typer.Exit(1)


@app.command("export")
def export(store: StoreFolder) -> None:
    """Write results.csv and timings.csv again from the records, sorted by trial."""
    from leukemia_dl.benchmark import Store

    opened = Store.open(store)
    opened.export()
    typer.echo(f"Written: {opened.root}/results.csv, timings.csv")
