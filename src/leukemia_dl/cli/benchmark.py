"""`leukemia-dl benchmark`: run the grid, print the table, leave results and pictures in the store."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from leukemia_dl.cli import completion, options
from leukemia_dl.errors import SettingsError

__all__ = ["benchmark"]

# What a settings file does not say, or says of the machine that it was written on.
_BESIDE_A_FILE = {
    "settings", "root", "store", "rerun", "executor", "workers", "time_limit", "shard", "on_error", "plan",
    "no_report",
}  # fmt: skip


def benchmark(
    ctx: typer.Context,
    settings: Annotated[
        Path | None,
        typer.Argument(help="A .toml file that says it all, such as the settings.toml of a store.", show_default=False),
    ] = None,
    dataset: options.DatasetName = "synthetic",
    root: options.Root = None,
    option: options.DatasetOptions = None,
    drop_class: options.DropClasses = None,
    backbones: Annotated[
        str | None,
        typer.Option(
            help="Names separated by commas.",
            show_default="the five built-in architectures",
            autocompletion=completion.backbones,
        ),
    ] = None,
    recipe: options.RecipeName = "quick",
    set_: options.Changes = None,
    image_size: options.ImageSize = None,
    weights: Annotated[
        str | None,
        typer.Option(
            help="Short for --set weights=...: pretrained (downloads), random, a name, an .h5 file, or one for each "
            "backbone: vgg16=imagenet,cnn=random.",
            show_default="the recipe's",
        ),
    ] = None,
    stain: options.Stain = None,
    crop: options.Crop = False,
    protocol: Annotated[
        str | None,
        typer.Option(
            help="official, official_clean, preliminary, kfold, holdout, fixed, published_v1 or random; or several, "
            "separated by commas.",
            autocompletion=completion.protocols,
            show_default="by the data: official_clean, fixed or kfold",
        ),
    ] = None,
    folds: Annotated[
        str | None, typer.Option(help="Test folds, such as 0,1,2, or all.", show_default="the protocol's own")
    ] = None,
    n_folds: Annotated[
        int | None, typer.Option(help="How many folds the protocol kfold draws.", show_default="5, or 3")
    ] = None,
    seeds: Annotated[str, typer.Option(help="One trial per seed, such as 0,1,2.")] = "0",
    baselines: Annotated[
        str, typer.Option(help="Floors to compare with; '' for none.", autocompletion=completion.baselines)
    ] = "majority,cell_size,cell_colour",
    store: Annotated[
        Path | None, typer.Option(help="Folder for the results.", show_default="runs/DATASET-RECIPE")
    ] = None,
    allow_leakage: Annotated[
        bool, typer.Option("--allow-leakage", help="Allow the protocol random, which mixes subjects.")
    ] = False,
    rerun: Annotated[bool, typer.Option("--rerun", help="Run trials again that the store already holds.")] = False,
    device: options.DeviceName = "auto",
    callbacks: Annotated[
        str | None,
        typer.Option(metavar="MODULE:FUNCTION", help="Makes Keras callbacks for each fit.", show_default=False),
    ] = None,
    no_models: Annotated[bool, typer.Option("--no-models", help="Do not keep the trained nets.")] = False,
    no_report: Annotated[
        bool, typer.Option("--no-report", help="Write neither report.html nor model cards; see leukemia-dl report.")
    ] = False,
    executor: Annotated[
        str,
        typer.Option(
            help="Where trials run: in-process, processes, ray (on this machine) or ray:ADDRESS of a cluster; auto: "
            "processes from two trials on.",
            autocompletion=completion.executors,
        ),
    ] = "auto",
    workers: Annotated[
        int | None, typer.Option(help="Processes at a time.", show_default="one, or one per GPU")
    ] = None,
    time_limit: Annotated[
        float | None, typer.Option(metavar="SECONDS", help="A trial that takes longer has failed.", show_default="none")
    ] = None,
    shard: Annotated[
        str | None,
        typer.Option(metavar="I/N", help="Only the I-th of N parts, for N jobs on one store.", show_default=False),
    ] = None,
    on_error: Annotated[str, typer.Option(help="When a trial fails: continue with the next, or raise.")] = "continue",
    threads: Annotated[
        int | None, typer.Option(help="Threads of one operation on a CPU.", show_default="the cores of each machine")
    ] = None,
    engine: Annotated[
        str, typer.Option(help="How batches reach a net: keras (its fit), scan (whole epochs on the device), auto.")
    ] = "auto",
    plan: Annotated[bool, typer.Option("--plan", help="Print the trials and what is known of them; run none.")] = False,
) -> None:
    """Train and compare backbones on one data set, beside what cell size and colour alone would tell."""
    # Cheap checks first: a wrong name should not cost the reading of a data set.
    from leukemia_dl.training import ComputeConfig

    how: dict[str, Any] = {"executor": executor, "workers": workers, "time_limit": time_limit, "shard": shard}
    how |= {"on_error": on_error, "existing": "rerun" if rerun else "reuse"}
    _check_run(**how)
    ComputeConfig(device=device, threads=threads, engine=engine)
    if settings is not None:
        bench = _from_file(ctx, settings, root, store)
        _plan(bench, how) if plan else _run(bench, how, not no_report)
        return
    from leukemia_dl.benchmark import Benchmark

    asked = options.recipe(recipe, set_, image_size=image_size, weights=weights)
    options.stain_step(stain)
    if callbacks or asked.callbacks:
        _look_here_for_modules()
    chosen_folds: Any = folds if folds in (None, "all") else options.whole_numbers(str(folds), "--folds")
    chosen_seeds = options.whole_numbers(seeds, "--seeds")
    chosen = options.names(backbones) if backbones is not None else None
    _check_backbones(chosen, asked)
    data = options.load_dataset(dataset, root, option or [], drop_class)
    bench = Benchmark(
        data,
        chosen,
        recipe=asked,
        protocol=None if protocol is None else options.names(protocol),
        folds=chosen_folds,
        n_folds=n_folds,
        seeds=chosen_seeds,
        baselines=options.names(baselines),
        store=store,
        pipeline=partial(options.pipeline, data, asked, stain=stain, crop=crop),
        allow_leakage=allow_leakage,
        save_models=not no_models,
        device=device,
        threads=threads,
        callbacks=callbacks,
        engine=engine,
    )
    _plan(bench, how) if plan else _run(bench, how, not no_report)


def _check_run(executor: str, workers: int | None, shard: str | None, on_error: str, **others: Any) -> None:
    from leukemia_dl.benchmark.arguments import executor_of
    from leukemia_dl.benchmark.grid import check_shard

    for option, value, allowed in (
        ("--executor", executor, completion.EXECUTORS),
        ("--on-error", on_error, ("continue", "raise")),
    ):
        if value not in allowed and not (option == "--executor" and value.startswith("ray:")):
            raise SettingsError(f"{option} must be one of {', '.join(allowed)}. Received: {value!r}.")
    if not executor.startswith("ray") or workers is not None:  # Ray itself would be started by this
        executor_of(executor, workers, 2)
    check_shard(shard)


def _from_file(ctx: typer.Context, settings: Path, root: Path | None, store: Path | None) -> Any:
    """Return the benchmark that a file describes."""
    from leukemia_dl.benchmark import Benchmark

    if settings.suffix != ".toml":
        raise SettingsError(
            f"SETTINGS is a .toml file, such as the settings.toml of a store. Received: {str(settings)!r}. A data set "
            "is named by --dataset NAME, its folder by --root."
        )
    for parameter in ctx.command.params:
        source = ctx.get_parameter_source(str(parameter.name))
        given = source is not None and not source.name.startswith("DEFAULT")
        if given and parameter.name not in _BESIDE_A_FILE:
            beside = ", ".join(f"--{name.replace('_', '-')}" for name in sorted(_BESIDE_A_FILE - {"settings"}))
            raise SettingsError(
                f"{parameter.opts[0]} is said by the file {settings}: change it there. Beside a file there may be "
                f"{beside}."
            )
    _look_here_for_modules()  # the file may name callbacks
    return Benchmark.from_toml(settings, root=root, store=store)


def _look_here_for_modules() -> None:
    """Have modules found where the command is called, which is where one with callbacks may lie.

    An installed script does not look there. Last, so that no file there stands in for a module of others.
    """
    sys.path.append(str(Path.cwd()))


def _plan(bench: Any, how: dict[str, Any]) -> None:
    """Print the trials of this part of the grid."""
    from leukemia_dl.benchmark.cost import duration
    from leukemia_dl.benchmark.grid import check_shard, shard_of

    frame = bench.plan()
    if how["shard"] is not None:
        rows = shard_of(range(len(frame)), frame["seed"].notna().tolist(), *check_shard(how["shard"]))
        frame = frame.iloc[rows].reset_index(drop=True)
    done = frame["status"].isin(["ok", "not_applicable"])
    to_do = frame if how["existing"] == "rerun" else frame[~done]
    columns = ["backbone", "protocol", "fold", "seed", "status", "seconds"]
    options.print_table(frame[columns].rename(columns={"seconds": "expected seconds"}), {"expected seconds": ".1f"})
    known = to_do["seconds"].dropna()
    told = f", about {duration(known.sum())} one after the other" if len(known) else ""
    told += f" (of {len(to_do) - len(known)} nothing is known yet)" if len(known) < len(to_do) else ""
    typer.echo(f"To do: {len(to_do)} of {len(frame)} trials{told}.")


def _run(bench: Any, how: dict[str, Any], with_report: bool) -> None:
    """Run, print the table and draw the pictures."""
    _announce(bench)
    frame = bench.run(**how)
    _print_results(bench, frame)
    from leukemia_dl.benchmark.stored import run_of
    from leukemia_dl.reporting import write_model_cards, write_pictures, write_report

    pictures = write_pictures(bench)
    # Of several jobs, the one that ends last has all to report on.
    waits = how["shard"] is not None and _left(bench) > 0
    folder = run_of(bench).folder  # the store may hold other benchmarks
    report = write_report(folder, dataset=bench.dataset) if with_report and not waits else None
    cards = write_model_cards(folder) if report is not None else []
    typer.echo(f"Store:    {bench.store.root}")
    typer.echo("Results:  results.csv, timings.csv, predictions.csv, settings.toml, grids/, trials/")
    typer.echo(f"Pictures: {', '.join(path.name for path in pictures)}")
    if with_report:
        typer.echo(f"Report:   {'when all parts are done' if report is None else report}")
    if cards:
        typer.echo(f"Cards:    {cards[0].parent} ({len(cards)})")
    if (frame["status"] == "failed").any():
        raise typer.Exit(1)


def _check_backbones(names: list[str] | None, recipe: Any) -> None:
    from leukemia_dl.benchmark.benchmark import DEFAULT_BACKBONES
    from leukemia_dl.models.build import check_size
    from leukemia_dl.models.registry import get_backbone

    for name in DEFAULT_BACKBONES if names is None else names:
        spec = get_backbone(name)
        check_size(spec, recipe.for_backbone(spec).image_size)


def _announce(bench: Any) -> None:
    info = bench.dataset.info
    typer.echo(f"{info.title}: {len(bench.dataset):,} labelled images, classes {', '.join(bench.dataset.class_names)}")
    for split in bench.splits:
        counts = ", ".join(f"{side} {len(getattr(split, side)):,}" for side in ("train", "val", "test"))
        fold = "" if split.fold is None else f" fold {split.fold}"
        typer.echo(f"{split.protocol}{fold}: {counts}" + (f"; {split.dropped:,} dropped" if split.dropped else ""))
        for flag in split.flags:
            typer.echo(f"  note: {flag}")


def _print_results(bench: Any, frame: Any) -> None:
    columns = [
        "backbone",
        *(["protocol"] if len(bench.protocols) > 1 else []),
        "fold",
        "seed",
        "accuracy",
        "loss",
        "balanced_accuracy",
        "weighted_f1",
        "auroc",
        "status",
    ]
    wanted = [name for name in columns if name in frame and not frame[name].isna().all()]
    shown = frame.sort_values("balanced_accuracy", ascending=False, kind="stable", na_position="last")[wanted]
    formats = dict.fromkeys(["accuracy", "loss", "balanced_accuracy", "weighted_f1", "auroc"], ".3f")
    kind = "synthetic cells, not real ones" if bench.dataset.info.synthetic else bench.dataset.info.title
    options.print_table(shown, formats, title=f"Test side, {bench.protocol} ({kind})")
    if len(bench.protocols) > 1:
        _print_inflation(bench)
    if left := _left(bench):
        typer.echo(f"{left} trials of this grid are not in the store yet.")
    for row in frame[frame["status"] != "ok"].itertuples():
        typer.echo(f"{row.trial}: {row.status}: {': '.join(filter(None, (row.exception, row.message)))}")


def _left(bench: Any) -> int:
    """Return how many trials of the grid are not in the store."""
    return int((~bench.plan()["status"].isin(["ok", "not_applicable", "failed"])).sum())


def _print_inflation(bench: Any) -> None:
    """Say what a protocol that leaks adds, where there are two and one of them does."""
    from leukemia_dl.benchmark.stored import run_of
    from leukemia_dl.reporting.answers import answers_of, inflation_of

    found = inflation_of(answers_of(run_of(bench)))
    for sentence in found["sentence"] if len(found) else ():
        typer.echo(f"- {sentence}")
