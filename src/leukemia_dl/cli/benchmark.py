"""`leukemia-dl benchmark`: run the grid, print the table, leave results and pictures in the store."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from leukemia_dl.cli import options
from leukemia_dl.errors import SettingsError
from leukemia_dl.text import counted

if TYPE_CHECKING:
    import pandas as pd

    from leukemia_dl.benchmark import Benchmark

__all__ = ["benchmark"]

_backbones = options.completed("models.registry", "list_backbones")
_protocols = options.completed("datasets.protocols", "PROTOCOLS")
_baselines = options.completed("benchmark.baselines", "BASELINES")
SettingsFile = Annotated[
    Path | None, typer.Argument(help="A .toml file with all settings, such as that of a store.", show_default=False)
]
Backbones = Annotated[
    str | None, typer.Option(help="Names, by commas.", show_default="the five built-in", autocompletion=_backbones)
]
Protocols = Annotated[
    str | None,
    typer.Option(
        help="official, official_clean, preliminary, kfold, holdout, fixed, published_v1 or random; several by commas.",
        show_default="by the data",
        autocompletion=_protocols,
    ),
]
Folds = Annotated[str | None, typer.Option(help="Test folds: 0,1,2, or all.", show_default="the protocol's own")]
FoldCount = Annotated[int | None, typer.Option(help="Folds of the protocol kfold.", show_default="5, or 3")]
Seeds = Annotated[str, typer.Option(help="One trial per seed, such as 0,1,2.")]
Baselines = Annotated[str, typer.Option(help="Names, by commas; '' for none.", autocompletion=_baselines)]
StoreFolder = Annotated[Path | None, typer.Option(help="Folder for the results.", show_default="runs/DATASET-RECIPE")]
AllowLeakage = Annotated[bool, typer.Option("--allow-leakage", help="Allow the protocol random, which mixes patients.")]
Rerun = Annotated[bool, typer.Option("--rerun", help="Run trials again that the store already holds.")]
NoModels = Annotated[bool, typer.Option("--no-models", help="Do not keep the trained nets.")]
NoReport = Annotated[bool, typer.Option("--no-report", help="Write neither report.html nor model cards.")]
ExecutorName = Annotated[
    str, typer.Option(help="Where trials run: auto, in-process, processes, ray or ray:ADDRESS of a cluster.")
]
Workers = Annotated[int | None, typer.Option(help="Processes at a time.", show_default="one, or one per GPU")]
TimeLimit = Annotated[
    float | None, typer.Option(metavar="SECONDS", help="A trial that takes longer has failed.", show_default="none")
]
Shard = Annotated[
    str | None, typer.Option(metavar="I/N", help="One of N parts, for N jobs on one store.", show_default=False)
]
PlanOnly = Annotated[bool, typer.Option("--plan", help="Print the trials and their expected seconds; run none.")]
# Options that may stand beside a settings file, which does not have them or has them of another machine.
_BESIDE_A_FILE = ("root", "store", "rerun", "executor", "workers", "time_limit", "shard", "plan", "no_report")
_METRICS = ["accuracy", "loss", "balanced_accuracy", "weighted_f1", "auroc"]


def benchmark(
    ctx: typer.Context,
    settings: SettingsFile = None,
    dataset: options.DatasetName = "synthetic",
    root: options.Root = None,
    dataset_option: options.DatasetOptions = None,
    drop_class: options.DropClasses = None,
    backbones: Backbones = None,
    recipe: options.RecipeName = "quick",
    set_: options.Changes = None,
    image_size: options.ImageSize = None,
    stain: options.Stain = None,
    crop: options.Crop = False,
    protocol: Protocols = None,
    folds: Folds = None,
    n_folds: FoldCount = None,
    seeds: Seeds = "0",
    baselines: Baselines = "majority,cell_size,cell_colour",
    store: StoreFolder = None,
    allow_leakage: AllowLeakage = False,
    rerun: Rerun = False,
    device: options.DeviceName = "auto",
    no_models: NoModels = False,
    no_report: NoReport = False,
    executor: ExecutorName = "auto",
    workers: Workers = None,
    time_limit: TimeLimit = None,
    shard: Shard = None,
    plan: PlanOnly = False,
) -> None:
    """Train and compare backbones on one data set, beside the baselines of cell size and colour."""
    how: dict[str, Any] = {"executor": executor, "workers": workers, "time_limit": time_limit, "shard": shard}
    _check_run(**how)
    how["existing"] = "rerun" if rerun else "reuse"
    if settings is not None:
        bench = _from_file(ctx, settings, root, store)
    else:
        from leukemia_dl.benchmark import Benchmark

        # Cheap checks first: a wrong name should not cost the reading of a data set.
        asked = options.recipe(recipe, set_, image_size)
        arguments: dict[str, Any] = {
            "backbones": None if backbones is None else options.names(backbones),
            "protocol": None if protocol is None else options.names(protocol),
            "folds": folds if folds in (None, "all") else options.whole_numbers(str(folds), "--folds"),
            "seeds": options.whole_numbers(seeds, "--seeds"),
            "baselines": options.names(baselines),
        }
        _check_backbones(arguments["backbones"], asked, device)
        data = options.load_dataset(dataset, root, dataset_option, drop_class)
        pipeline = partial(options.pipeline, data, asked, stain=stain, crop=crop)
        arguments |= {"n_folds": n_folds, "allow_leakage": allow_leakage, "save_models": not no_models}
        bench = Benchmark(data, recipe=asked, store=store, pipeline=pipeline, device=device, **arguments)
    if plan:
        _print_plan(bench, how)
    else:
        _run(bench, how, not no_report)


def _check_run(executor: str, workers: int | None, shard: str | None, time_limit: float | None) -> None:
    from leukemia_dl.benchmark.plan import check_shard
    from leukemia_dl.benchmark.process_executor import choose_executor

    if not executor.startswith("ray") or workers is not None:  # Ray itself would be started by this
        choose_executor(executor, workers, 2)
    check_shard(shard)


def _check_backbones(names: list[str] | None, recipe: Any, device: str) -> None:
    """Raise if a backbone is not known or cannot be built at the size that a recipe asks for."""
    from leukemia_dl.benchmark.benchmark import DEFAULT_BACKBONES
    from leukemia_dl.models.build import check_size
    from leukemia_dl.models.registry import get_backbone
    from leukemia_dl.training import ComputeConfig

    ComputeConfig(device=device)
    if recipe.callbacks:
        _find_modules_here()
    for name in DEFAULT_BACKBONES if names is None else names:
        spec = get_backbone(name)
        check_size(spec, recipe.for_backbone(spec).image_size)


def _from_file(ctx: typer.Context, settings: Path, root: Path | None, store: Path | None) -> Benchmark:
    """Return the benchmark of a settings file."""
    from leukemia_dl.benchmark import Benchmark

    if settings.suffix != ".toml":
        raise SettingsError(f"SETTINGS is a .toml file, such as the settings.toml of a store. Received: '{settings}'.")
    for parameter in ctx.command.params:
        source = ctx.get_parameter_source(str(parameter.name))
        given = source is not None and not source.name.startswith("DEFAULT")
        if given and parameter.name not in ("settings", *_BESIDE_A_FILE):
            beside = ", ".join(f"--{name.replace('_', '-')}" for name in _BESIDE_A_FILE)
            raise SettingsError(
                f"{parameter.opts[0]} is a setting in the file {settings}: change it there. Beside a file there may be "
                f"{beside}."
            )
    _find_modules_here()  # the file may name callbacks
    return Benchmark.from_toml(settings, root=root, store=store)


def _find_modules_here() -> None:
    """Find modules with callbacks in the current folder, last, so that no file there replaces another module."""
    sys.path.append(str(Path.cwd()))


def _print_plan(bench: Benchmark, how: dict[str, Any]) -> None:
    """Print the trials of this part of the grid."""
    from leukemia_dl.benchmark.plan import check_shard, shard_of
    from leukemia_dl.benchmark.progress import duration

    frame = bench.plan()
    if how["shard"] is not None:
        rows = shard_of(range(len(frame)), frame["seed"].notna().tolist(), *check_shard(how["shard"]))
        frame = frame.iloc[rows].reset_index(drop=True)
    done = frame["status"].isin(["ok", "not_applicable"])
    to_do = frame if how["existing"] == "rerun" else frame[~done]
    columns = ["backbone", "protocol", "fold", "seed", "status", "seconds"]
    options.print_table(frame[columns].rename(columns={"seconds": "expected seconds"}), {"expected seconds": ".1f"})
    seconds, note = to_do["seconds"], ""
    if seconds.notna().any():
        note = f", about {duration(seconds.sum())} one after the other"
    if seconds.isna().any():
        unknown = "of all trials" if seconds.isna().all() else f"of {counted(int(seconds.isna().sum()), 'trial')}"
        note += f"; the time {unknown} is not known yet"
    typer.echo(f"To do: {len(to_do)} of {counted(len(frame), 'trial')}{note}.")


def _run(bench: Benchmark, how: dict[str, Any], with_report: bool) -> None:
    """Run, print the table and write the pictures and the report."""
    from leukemia_dl.reporting import write_model_cards, write_pictures, write_report

    _print_splits(bench)
    frame = bench.run(**how)
    left = int((~bench.plan()["status"].isin(["ok", "not_applicable", "failed"])).sum())
    _print_results(bench, frame, left)
    pictures = write_pictures(bench)
    typer.echo(f"Store:    {bench.store.root}")
    typer.echo("Results:  results.csv, timings.csv, predictions.csv, settings.toml, grids/, trials/")
    typer.echo(f"Pictures: {', '.join(str(path.relative_to(bench.store.root)) for path in pictures)}")
    if with_report and how["shard"] is not None and left:
        typer.echo("Report:   when all parts are done")
    elif with_report:
        folder = bench.stored().folder  # the store may hold other benchmarks
        typer.echo(f"Report:   {write_report(folder, dataset=bench.dataset)}")
        if cards := write_model_cards(folder):
            typer.echo(f"Cards:    {cards[0].parent} ({len(cards)})")
    if (frame["status"] == "failed").any():
        raise typer.Exit(1)


def _print_splits(bench: Benchmark) -> None:
    info = bench.dataset.info
    typer.echo(f"{info.title}: {len(bench.dataset):,} labelled images, classes {', '.join(bench.dataset.class_names)}")
    for split in bench.splits:
        counts = ", ".join(f"{side} {len(getattr(split, side)):,}" for side in ("train", "val", "test"))
        fold = "" if split.fold is None else f" fold {split.fold}"
        typer.echo(f"{split.protocol}{fold}: {counts}" + (f"; {split.dropped:,} dropped" if split.dropped else ""))
        for flag in split.flags:
            typer.echo(f"  note: {flag}")


def _print_results(bench: Benchmark, frame: pd.DataFrame, left: int) -> None:
    """Print the table, the inflation by a protocol that leaks, and the missing and failed trials."""
    several = ["protocol"] if len(bench.planned.protocols) > 1 else []
    columns = ["backbone", *several, "fold", "seed", *_METRICS, "status"]
    wanted = [name for name in columns if name in frame and not frame[name].isna().all()]
    shown = frame.sort_values("balanced_accuracy", ascending=False, kind="stable", na_position="last")[wanted]
    kind = "synthetic cells, not real ones" if bench.dataset.info.synthetic else bench.dataset.info.title
    options.print_table(
        shown, dict.fromkeys(_METRICS, ".3f"), title=f"Test side, {', '.join(bench.planned.protocols)} ({kind})"
    )
    if several:
        from leukemia_dl.reporting.summary import inflation_of, summaries_of

        found = inflation_of(summaries_of(bench.stored()))
        for sentence in found["sentence"] if len(found) else ():
            typer.echo(f"- {sentence}")
    if left:
        typer.echo(f"{counted(left, 'trial')} of this grid {'is' if left == 1 else 'are'} not in the store yet.")
    for row in frame[frame["status"] != "ok"].to_dict("records"):
        typer.echo(f"{row['trial']}: {row['status']}: {': '.join(filter(None, (row['exception'], row['message'])))}")
