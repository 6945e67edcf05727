"""`leukemia-dl benchmark`: run the grid, print the table, leave results and pictures in the store."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from leukemia_dl.cli import options

__all__ = ["benchmark"]


def benchmark(
    dataset: options.DatasetName = "synthetic",
    root: options.Root = None,
    option: options.DatasetOptions = None,
    backbones: Annotated[
        str | None, typer.Option(help="Names separated by commas.", show_default="the five built-in architectures")
    ] = None,
    recipe: options.RecipeName = "quick",
    set_: options.Changes = None,
    image_size: options.ImageSize = None,
    weights: Annotated[
        str | None,
        typer.Option(
            help="Short for --set weights=...: imagenet (downloads), an .h5 file, or random.",
            show_default="the recipe's",
        ),
    ] = None,
    stain: options.Stain = None,
    crop: options.Crop = False,
    protocol: Annotated[
        str, typer.Option(help="official, official_clean, preliminary, kfold, holdout, fixed, source_v1 or random.")
    ] = "official_clean",
    folds: Annotated[
        str | None, typer.Option(help="Test folds, such as 0,1,2, or all.", show_default="the protocol's own")
    ] = None,
    seeds: Annotated[str, typer.Option(help="One trial per seed, such as 0,1,2.")] = "0",
    baselines: Annotated[str, typer.Option(help="Floors to compare with; '' for none.")] = (
        "majority,cell_size,cell_colour"
    ),
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
) -> None:
    """Train and compare backbones on one data set, beside what cell size and colour alone would tell."""
    from leukemia_dl.benchmark import Benchmark

    # Cheap checks first: a wrong name should not cost the reading of a data set.
    settings = options.recipe(recipe, set_, image_size=image_size, weights=weights)
    options.stain_step(stain)
    if callbacks or settings.callbacks:
        # An installed script does not look for modules where it is called, which is where such a one may lie: last, so
        # that no file there stands in for a module of others.
        sys.path.append(str(Path.cwd()))
    chosen_folds: Any = folds if folds in (None, "all") else options.whole_numbers(str(folds), "--folds")
    chosen_seeds = options.whole_numbers(seeds, "--seeds")
    chosen = options.names(backbones) if backbones is not None else None
    _check_backbones(chosen, settings)
    data = options.load_dataset(dataset, root, option or [])
    bench = Benchmark(
        data,
        chosen,
        recipe=settings,
        protocol=protocol,
        folds=chosen_folds,
        seeds=chosen_seeds,
        baselines=options.names(baselines),
        store=store,
        pipeline=partial(options.pipeline, data, settings, stain=stain, crop=crop),
        allow_leakage=allow_leakage,
        save_models=not no_models,
        device=device,
        callbacks=callbacks,
    )
    _announce(bench)
    frame = bench.run(existing="rerun" if rerun else "reuse")
    from leukemia_dl.reporting import write_pictures

    pictures = write_pictures(bench)
    _print_results(bench, frame)
    typer.echo(f"Store:    {bench.store.root}")
    typer.echo("Results:  results.csv, timings.csv, predictions.csv, settings.toml, trials/")
    typer.echo(f"Pictures: {', '.join(path.name for path in pictures)}")
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
    columns = ["backbone", "fold", "seed", "accuracy", "loss", "balanced_accuracy", "weighted_f1", "auroc", "status"]
    wanted = [name for name in columns if name in frame and not frame[name].isna().all()]
    shown = frame[wanted].sort_values("balanced_accuracy", ascending=False, kind="stable", na_position="last")
    formats = dict.fromkeys(["accuracy", "loss", "balanced_accuracy", "weighted_f1", "auroc"], ".3f")
    kind = "synthetic cells, not real ones" if bench.dataset.info.synthetic else bench.dataset.info.title
    options.print_table(shown, formats, title=f"Test side, {bench.protocol} ({kind})")
    for row in frame[frame["status"] != "ok"].itertuples():
        typer.echo(f"{row.backbone}: {row.status}: {': '.join(filter(None, (row.exception, row.message)))}")
