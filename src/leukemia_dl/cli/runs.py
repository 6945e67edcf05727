"""`leukemia-dl runs`: look at a store, prove that it is whole, free its space and write its tables again."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from leukemia_dl.cli import options

if TYPE_CHECKING:
    from leukemia_dl.benchmark import Record

__all__ = ["app"]

app = typer.Typer(help="List, show, verify, clean up and export what is in a store.", no_args_is_help=True)
StoreFolder = Annotated[Path, typer.Argument(help="The folder of the results.", show_default=False)]


@app.command("list")
def show_all(store: StoreFolder) -> None:
    """List the trials of a store: failed and damaged ones last."""
    import pandas as pd

    from leukemia_dl.benchmark import maintenance

    opened = maintenance.open_store(store)
    found = maintenance.entries(opened)
    rows = []
    for entry in found:
        said = {**entry.record.metrics, **entry.record.timings} if entry.record else {}
        row: dict[str, Any] = {"trial": entry.name, "status": entry.status}
        row |= {name: (entry.record.row.get(name) or "") if entry.record else "" for name in ("recipe", "changes")}
        row |= {name: float(said.get(name, "nan")) for name in ("accuracy", "loss", "seconds")}
        row["finished"] = said.get("finished", "")
        rows.append(row | {"size": f"{_size(entry.size):>8}", "model": "yes" if entry.model else "no"})
    if rows:
        options.print_table(pd.DataFrame(rows), {"accuracy": ".3f", "loss": ".3f", "seconds": ",.1f"})
    counts = {status: sum(e.status == status for e in found) for status in sorted({e.status for e in found})}
    told = f" ({', '.join(f'{count} {status}' for status, count in counts.items())})" if counts else ""
    unfinished, quarantined = (
        sum(path.is_dir() for path in maintenance.paths_in(opened.root / name)) for name in ("unfinished", "quarantine")
    )
    size = _size(sum(entry.size for entry in found))
    typer.echo(
        f"{opened.root}: {_count(len(found), 'record')}{told}, {size}; {_count(unfinished, 'unfinished fit')}; "
        f"{_count(quarantined, 'record')} in quarantine"
    )


@app.command("show")
def show(
    store: StoreFolder,
    trial: Annotated[
        str, typer.Argument(help="Its folder's name, or the beginning of it or of its digest.", show_default=False)
    ],
) -> None:
    """Show what a trial was, what it reached and, if it failed, why."""
    from leukemia_dl.benchmark import maintenance

    opened = maintenance.open_store(store)
    record = opened.read_folder(maintenance.find_trial(opened, trial))
    if record is None:
        typer.echo(f"{opened.trials / trial} holds no record.")
        raise typer.Exit(1)
    facts = record.trial.to_dict()
    facts["dataset"] = " ".join(filter(None, (record.row.get("dataset"), facts["dataset"])))
    facts["pipeline"] = ", ".join(str(step.get("step")) for step in (facts["pipeline"] or {}).get("steps", []))
    facts["recipe"] = ", ".join(f"{name} {value}" for name, value in (facts["recipe"] or {}).items())
    counts = {name: value for name, value in record.row.items() if name not in facts and name != "flags"}
    _print_facts(record.trial.folder, {"digest": record.trial.digest, "status": record.status, **facts, **counts})
    _print_facts("Timings", record.timings)
    _print_numbers(record)
    for flag in filter(None, str(record.row.get("flags") or "").split("; ")):
        typer.echo(f"note: {flag}")
    if record.error:
        typer.echo(f"{record.status}: {record.error}")
    if record.status == "failed":
        log = opened.logs(record.trial) / "log.txt"
        typer.echo(f"\n{record.traceback.rstrip()}\n")
        typer.echo(f"Log: {log}" if log.is_file() else f"Log: none at {log}")


def _print_facts(title: str, facts: Any) -> None:
    typer.echo(title)
    said = {name: value for name, value in facts.items() if value is not None and value != ""}
    width = max(map(len, said), default=0)
    for name, value in said.items():
        typer.echo(f"  {name:<{width}}  {f'{value:.6g}' if isinstance(value, float) else value}")
    typer.echo("")


def _print_numbers(record: Record) -> None:
    """Print metrics, beside them those of averaged predictions, and the learning curve."""
    import pandas as pd

    if record.metrics:
        columns = {"metric": list(record.metrics), "value": list(record.metrics.values())}
        if record.metrics_tta:
            columns["8 symmetries"] = [record.metrics_tta.get(name) for name in record.metrics]
        options.print_table(pd.DataFrame(columns), {"value": ".4f", "8 symmetries": ".4f"}, title="Metrics")
    if len(record.history):
        curve = record.history.dropna(axis="columns", how="all")
        formats = dict.fromkeys(curve.select_dtypes("float").columns, ".4g")
        options.print_table(curve, formats, title="Learning curve")


@app.command("verify")
def verify(store: StoreFolder) -> None:
    """Compare every file of every trial with its checksum, trained nets included; exit status 1 if one is damaged."""
    from leukemia_dl.benchmark import maintenance

    opened = maintenance.open_store(store)
    damaged, count = maintenance.verify(opened), _count(len(opened.names()), "record")
    for name, problem in damaged.items():
        typer.echo(f"{name}: {problem}")
    if not damaged:
        typer.echo(f"OK: {count}")
        return
    typer.echo(f"DAMAGED: {len(damaged):,} of {count}")
    typer.echo("Run the same benchmark again: it runs the trials of these records anew.")
    raise typer.Exit(1)


@app.command("gc")
def gc(
    store: StoreFolder,
    delete: Annotated[bool, typer.Option("--delete", help="Delete, and do not only list.")] = False,
    failed: Annotated[bool, typer.Option("--failed", help="Failed records and their logs, too.")] = False,
    models: Annotated[
        bool, typer.Option("--models", help="The trained nets, too; only a run with --no-models does without them.")
    ] = False,
) -> None:
    """List, or delete, unfinished records and fits that were not touched within a day, and the quarantine."""
    import pandas as pd

    from leukemia_dl.benchmark import maintenance

    opened = maintenance.open_store(store)
    found = maintenance.items(opened, failed=failed, models=models)
    if not found:
        typer.echo(f"{opened.root} holds nothing that could go.")
        return
    rows = [
        {"what": i.kind, "path": str(i.path.relative_to(opened.root)), "size": f"{_size(i.size):>8}"} for i in found
    ]
    options.print_table(pd.DataFrame(rows))
    if not delete:
        total = _size(sum(item.size for item in found))
        typer.echo(f"Would free {total} ({_count(len(found), 'item')}). Delete them: the same with --delete.")
        return
    freed = maintenance.delete(opened, found)
    typer.echo(f"Freed {_size(freed)}.")
    if any(item.kind == "failed" for item in found):
        typer.echo(f"The tables still name what failed; write them again: leukemia-dl runs export {store}")


@app.command("export")
def export(store: StoreFolder) -> None:
    """Write results.csv and timings.csv again from the records, sorted by trial."""
    from leukemia_dl.benchmark import maintenance
    from leukemia_dl.benchmark.frames import result_frame, timing_frame

    opened = maintenance.open_store(store)
    records = list(opened.records(arrays=False))
    results, timings = result_frame(records), timing_frame(records)
    opened.export(results, timings)
    for name, frame in (("results", results), ("timings", timings)):
        typer.echo(f"{opened.root / name}.csv: {_count(len(frame), 'row')}")


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def _size(size: int) -> str:
    """Return bytes as people say them."""
    for unit, one in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= one:
            return f"{size / one:,.1f} {unit}"
    return f"{size} B"
