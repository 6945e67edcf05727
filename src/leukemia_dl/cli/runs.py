"""`leukemia-dl runs`: list, show, verify, clean up and export the records of a store."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Annotated, Any

import typer

from leukemia_dl.cli import options
from leukemia_dl.errors import SettingsError, StoreError, unknown_name_error

__all__ = ["app"]

app = typer.Typer(help="List, show, verify, clean up and export the records of a store.", no_args_is_help=True)
_COLUMNS = ["trial", "status", "recipe", "changes", "accuracy", "loss", "seconds", "finished", "model"]
StoreFolder = Annotated[Path, typer.Argument(help="The folder of the results.", show_default=False)]


@app.command("list")
def show_all(store: StoreFolder) -> None:
    """List the records of a store: failed and damaged ones last."""
    import pandas as pd

    from leukemia_dl.benchmark import Store

    opened = Store.open(store)
    records = sorted(opened.records(arrays=False), key=lambda record: record.status == "failed")
    rows: list[dict[str, Any]] = []
    for record in records:
        rows.append({"trial": record.trial.folder, "status": record.status})
        rows[-1] |= {name: str(record.row.get(name) or "") for name in ("recipe", "changes")}
        rows[-1] |= {name: record.metrics.get(name) for name in ("accuracy", "loss")}
        rows[-1] |= {"seconds": record.timings.get("seconds"), "finished": str(record.timings.get("finished", ""))}
        rows[-1] |= {"model": "yes" if opened.has_model(record.trial.folder) else "no"}
    readable = {record.trial.folder for record in records}
    rows += [{"trial": name, "status": "damaged"} for name in opened.names() if name not in readable]
    if rows:
        frame = pd.DataFrame(rows, columns=_COLUMNS).astype({"accuracy": float, "loss": float, "seconds": float})
        options.print_table(frame, {"accuracy": ".3f", "loss": ".3f", "seconds": ",.1f"})
    statuses = [row["status"] for row in rows]
    counts = "".join(f", {statuses.count(status)} {status}" for status in sorted(set(statuses)))
    typer.echo(f"{opened.root}: {_count(len(rows), 'record')}{counts}")


@app.command("show")
def show(
    store: StoreFolder,
    trial: Annotated[
        str, typer.Argument(help="Its folder's name, or the beginning of it or of its digest.", show_default=False)
    ],
) -> None:
    """Show the settings and metrics of a trial and, if it failed, why."""
    import pandas as pd

    from leukemia_dl.benchmark import Store

    opened = Store.open(store)
    names = opened.names()
    # A name ends in the beginning of its trial's digest.
    found = [name for name in names if name.startswith(trial) or name.rpartition("-")[2].startswith(trial.lower()[:12])]
    if len(found) > 1 and trial not in names:
        raise SettingsError(f"{len(found)} trials begin with {trial!r}: {', '.join(found)}. Give more of the name.")
    if not found:
        raise unknown_name_error("trial", trial, names)
    name = trial if trial in names else found[0]
    record = opened.read_folder(name)
    if record is None:
        raise StoreError(f"{opened.trials / name} holds no record.")
    facts = record.trial.to_dict()
    facts["dataset"] = " ".join(filter(None, (record.row.get("dataset"), facts["dataset"])))
    facts["pipeline"] = ", ".join(str(step.get("step")) for step in (facts["pipeline"] or {}).get("steps", []))
    facts["recipe"] = ", ".join(f"{name} {value}" for name, value in (facts["recipe"] or {}).items())
    facts |= {name: value for name, value in record.row.items() if name not in facts and name != "flags"}
    facts = {"digest": record.trial.digest, "status": record.status, **facts}
    for title, values in ((record.trial.folder, facts), ("Timings", record.timings)):
        typer.echo(title)
        for name, value in values.items():
            if value is not None and value != "":
                typer.echo(f"  {name:<24}  {f'{value:.6g}' if isinstance(value, float) else value}")
        typer.echo("")
    if record.metrics:
        columns = {"metric": list(record.metrics), "value": list(record.metrics.values())}
        if record.metrics_tta:
            columns["8 symmetries"] = [record.metrics_tta.get(name) for name in record.metrics]
        options.print_table(pd.DataFrame(columns), {"value": ".4f", "8 symmetries": ".4f"}, title="Metrics")
    if len(record.history):
        curve = record.history.dropna(axis="columns", how="all")
        formats = dict.fromkeys(curve.select_dtypes("float").columns, ".4g")
        options.print_table(curve, formats, title="Learning curve")
    for flag in filter(None, str(record.row.get("flags") or "").split("; ")):
        typer.echo(f"note: {flag}")
    if record.error:
        typer.echo(f"{record.status}: {record.error}")
    if record.status == "failed":
        log = opened.logs(record.trial) / "log.txt"
        typer.echo(f"\n{record.traceback.rstrip()}\n")
        typer.echo(f"Log: {log}" if log.is_file() else f"Log: none at {log}")


@app.command("verify")
def verify(store: StoreFolder) -> None:
    """Compare every file of every record with its checksum, trained nets included; exit status 1 if one is damaged."""
    from leukemia_dl.benchmark import Store

    opened = Store.open(store)
    damaged, count = opened.verify(), _count(len(opened.names()), "record")
    for name, problem in damaged.items():
        typer.echo(f"{name}: {problem}")
    typer.echo(f"DAMAGED: {len(damaged):,} of {count}" if damaged else f"OK: {count}")
    if damaged:
        typer.echo("Run the same benchmark again: it runs the trials of these records again.")
        raise typer.Exit(1)


@app.command("gc")
def gc(
    store: StoreFolder, delete: Annotated[bool, typer.Option("--delete", help="Delete, and do not only list.")] = False
) -> None:
    """List, or delete, records and fits that are not finished and were not touched within a day."""
    from leukemia_dl.benchmark import Store

    opened = Store.open(store)
    found = opened.unfinished()
    for path in found:
        typer.echo(path.relative_to(opened.root))
        try:
            if delete:
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        except OSError as error:
            raise StoreError(f"{path} cannot be deleted: {error.strerror or error}. Change its permissions.") from error
    count = _count(len(found), "unfinished item")
    hint = f". To delete: leukemia-dl runs gc {store} --delete" if found else ""
    typer.echo(f"Deleted {count}." if delete else f"{count}{hint}")


@app.command("export")
def export(store: StoreFolder) -> None:
    """Write results.csv and timings.csv again from the records, sorted by trial."""
    from leukemia_dl.benchmark import Store
    from leukemia_dl.benchmark.frames import result_frame, timing_frame

    opened = Store.open(store)
    records = list(opened.records(arrays=False))
    results, timings = result_frame(records), timing_frame(records)
    opened.export(results, timings)
    for name, frame in (("results", results), ("timings", timings)):
        typer.echo(f"{opened.root / name}.csv: {_count(len(frame), 'row')}")


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"
