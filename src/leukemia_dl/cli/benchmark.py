"""`leukemia-dl benchmark`: run the grid, print the table, leave results and pictures in the store."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from typer import Argument, Option

from leukemia_dl.cli import options, results
from leukemia_dl.errors import SettingsError
from leukemia_dl.text import counted

if TYPE_CHECKING:
    import pandas as pd

    from leukemia_dl.benchmark import Benchmark

_PROTOCOLS = "official, official_clean, preliminary, kfold, holdout, fixed, published_v1 or random; several by commas."
# Options that may stand beside a settings file, which does not have them or has them of another machine.
_BESIDE_A_FILE = (
    "root", "embeddings", "store", "rerun", "executor", "workers", "time_limit", "shard", "plan", "no_report"
)  # fmt: skip
_METRICS = ["accuracy", "loss", "balanced_accuracy", "weighted_f1", "auroc"]
_FINISHED = ["ok", "not_applicable"]


def benchmark(
    ctx: typer.Context,
    settings: Path | None = Argument(None, help="A .toml file with all settings, as in a store.", show_default=False),
    dataset: options.DatasetName = "synthetic",
    root: options.Root = None,
    dataset_option: options.DatasetOptions = None,
    drop_class: options.DropClasses = None,
    backbones: str | None = Option(None, help="Names, by commas.", show_default="the five built-in"),
    embeddings: options.EmbeddingFiles = None,
    recipe: options.RecipeName = "quick",
    set_: options.Changes = None,
    image_size: options.ImageSize = None,
    stain: options.Stain = None,
    crop: options.Crop = False,
    protocol: str | None = Option(None, help=_PROTOCOLS, show_default="by the data"),
    folds: str | None = Option(None, help="Test folds: 0,1,2, or all.", show_default="the protocol's own"),
    n_folds: int | None = Option(None, help="Folds of the protocol kfold.", show_default="5, or 3"),
    primary_metric: str | None = Option(None, help="Metric to rank by.", show_default="by the shares of the classes"),
    n_repeats: int = Option(1, help="How many times the protocol kfold draws folds."),
    shots: str = Option("all", help="Training patients of each class, such as 1,5,25,all."),
    seeds: str = Option("0", help="One trial per seed, such as 0,1,2."),
    baselines: str = Option("majority,cell_size,cell_colour", help="Names, by commas; '' for none."),
    store: Path | None = Option(None, help="Folder for the results.", show_default="runs/DATASET-RECIPE"),
    allow_leakage: bool = Option(False, "--allow-leakage", help="Allow the protocol random, which mixes patients."),
    rerun: bool = Option(False, "--rerun", help="Run trials again that the store already holds."),
    device: options.DeviceName = "auto",
    no_report: bool = Option(False, "--no-report", help="Write neither report.html nor model cards."),
    executor: str = Option("auto", help="Where trials run: auto, in-process, processes, ray or ray:ADDRESS."),
    workers: int | None = Option(None, help="Processes at a time.", show_default="one, or one per GPU"),
    time_limit: float | None = Option(None, metavar="SECONDS", help="Of each trial.", show_default="none"),
    shard: str | None = Option(None, metavar="I/N", help="One of N parts of the grid.", show_default=False),
    plan: bool = Option(False, "--plan", help="Print the trials; run none."),
) -> None:
    """Train and compare backbones on one data set, beside the baselines of cell size and colour."""
    from leukemia_dl.benchmark import Benchmark

    own = options.embeddings(embeddings)
    if settings is not None:
        _check_options_beside(settings, ctx)
        sys.path.append(str(Path.cwd()))  # of modules with callbacks; last, so that no file there replaces another
        bench = Benchmark.from_toml(settings, root=root, store=store)
    else:
        asked = options.recipe(recipe, set_, image_size)
        sys.path += [str(Path.cwd())] if asked.callbacks else []
        data = options.load_dataset(dataset, root, dataset_option, drop_class)
        given: Any = {"n_folds": n_folds, "n_repeats": n_repeats, "primary_metric": primary_metric, "device": device}
        given |= {"store": store, "allow_leakage": allow_leakage, "baselines": options.parts(baselines)}
        given |= {"seeds": options.parts(seeds), "shots": options.parts(shots), "recipe": asked}
        bench = Benchmark(
            data,
            [*options.parts(backbones or ""), *own] if backbones or own else None,
            protocol=None if protocol is None else options.parts(protocol),
            folds="all" if folds == "all" else options.parts(folds) if folds else None,
            pipeline=partial(options.pipeline, data, asked, stain=stain, crop=crop),
            **given,
        )
    if plan:
        _print_plan(bench, shard, rerun)
    else:
        how = {"executor": executor, "workers": workers, "time_limit": time_limit, "shard": shard}
        _run(bench, not no_report, existing="rerun" if rerun else "reuse", **how)


def _check_options_beside(settings: Path, ctx: typer.Context) -> None:
    for parameter in ctx.command.params:
        source = ctx.get_parameter_source(str(parameter.name))
        given = source is not None and not source.name.startswith("DEFAULT")
        if given and parameter.name not in ("settings", *_BESIDE_A_FILE):
            option = f"{parameter.opts[0]} is a setting in the file {settings}: change it there"
            beside = ", ".join(f"--{name.replace('_', '-')}" for name in _BESIDE_A_FILE)
            raise SettingsError(f"{option}. Beside a file there may be {beside}.")


def _print_plan(bench: Benchmark, shard: str | None, rerun: bool) -> None:
    frame = bench.plan()
    frame = frame[frame["trial"].isin([planned.trial.folder for planned in bench.planned.part(shard)])]
    options.print_table(frame[["backbone", "protocol", "fold", "seed", "status"]])
    to_do = frame if rerun else frame[~frame["status"].isin(_FINISHED)]
    typer.echo(f"To do: {len(to_do)} of {counted(len(frame), 'trial')}.")


def _run(bench: Benchmark, with_report: bool, **how: Any) -> None:
    from leukemia_dl.reporting import write_pictures

    _print_splits(bench)
    frame = bench.run(**how)
    left = int((~bench.plan()["status"].isin([*_FINISHED, "failed"])).sum())
    _print_results(bench, frame, left)
    write_pictures(bench)
    typer.echo(f"Store:    {bench.store.root}")
    if with_report and left and how["shard"]:
        typer.echo("Report:   when all parts are done")
    elif with_report:
        results.write_page(bench.stored().folder, dataset=bench.dataset)  # the store may hold other benchmarks
    if (frame["status"] == "failed").any():
        raise typer.Exit(1)


def _print_splits(bench: Benchmark) -> None:
    title, names = bench.dataset.info.title, ", ".join(bench.dataset.class_names)
    typer.echo(f"{title}: {len(bench.dataset):,} labelled images, classes {names}")
    for split in bench.splits:
        fold = "" if split.fold is None else f" fold {split.fold}"
        sizes = ", ".join(f"{side} {len(getattr(split, side)):,}" for side in ("train", "val", "test"))
        notes = "".join(f"\n  note: {flag}" for flag in split.flags)
        typer.echo(f"{split.protocol}{fold}: {sizes}, dropped {split.dropped:,}{notes}")


def _print_results(bench: Benchmark, frame: pd.DataFrame, left: int) -> None:
    protocols = bench.planned.protocols
    columns = ["backbone", *["protocol"] * (frame["protocol"].nunique() > 1), "fold", "seed", *_METRICS, "status"]
    shown = frame.sort_values("balanced_accuracy", ascending=False, kind="stable", na_position="last")
    shown = shown[[name for name in columns if name in frame and not frame[name].isna().all()]]
    kind = "synthetic cells, not real ones" if bench.dataset.info.synthetic else bench.dataset.info.title
    options.print_table(shown, dict.fromkeys(_METRICS, ".3f"), f"Test side, {', '.join(protocols)} ({kind})")
    if len(protocols) > 1:
        from leukemia_dl.reporting.summary import inflation_of, summaries_of

        for sentence in inflation_of(summaries_of(bench.stored())).get("sentence", ()):
            typer.echo(f"- {sentence}")
    if left:
        typer.echo(f"{counted(left, 'trial')} of this grid {'is' if left == 1 else 'are'} not in the store yet.")
    for row in frame[frame["status"] != "ok"].to_dict("records"):
        typer.echo(f"{row['trial']}: {row['status']}: {': '.join(filter(None, (row['exception'], row['message'])))}")
