"""`leukemia-dl backbones | datasets | recipes | doctor`: what there is, and whether this machine is ready."""

from __future__ import annotations

import os
import platform
import shutil
import tempfile
from pathlib import Path
from typing import Annotated

import typer

from leukemia_dl.cli import options
from leukemia_dl.cli.cache import limit_line
from leukemia_dl.errors import LeukemiaDLError

__all__ = ["backbones", "datasets", "doctor", "recipes"]

CsvOption = Annotated[bool, typer.Option("--csv", help="As CSV, with every column.")]


def backbones(csv: CsvOption = False) -> None:
    """List the backbones that can be compared, built-in and from plugins."""
    from leukemia_dl.models.registry import backbone_table

    frame = backbone_table()
    if csv:
        options.write_csv(frame)
        return
    shown = frame[["backbone", "title", "parameters", "native_size", "min_size", "weights", "plugin", "version"]]
    options.print_table(shown, {"parameters": ","})


def datasets(csv: CsvOption = False) -> None:
    """List the data sets that can be loaded by name, with licence and citation."""
    from leukemia_dl.datasets import dataset_table

    frame = dataset_table()
    if csv:
        options.write_csv(frame)
    else:
        options.print_table(frame)


def recipes(
    name: Annotated[str | None, typer.Argument(help="Print its settings, as TOML.", show_default=False)] = None,
) -> None:
    """List the recipes; or print one as TOML, to change and pass as --recipe FILE.toml."""
    import pandas as pd

    from leukemia_dl.training.recipe import Recipe

    if name is not None:
        # Without its name: changed, it is another recipe, and is called after its file.
        lines = Recipe.preset(name).to_toml().splitlines(keepends=True)
        typer.echo("".join(line for line in lines if not line.startswith("name = ")), nl=False)
        return
    shown = ["weights", "image_size", "head", "head_epochs", "epochs", "batch_size", "learning_rate", "class_balance"]
    rows = [{"recipe": found, **Recipe.preset(found).to_dict()} for found in Recipe.presets()]
    frame = pd.DataFrame(rows, columns=["recipe", *shown])
    options.print_table(frame.fillna({"weights": "random"}))


def doctor() -> None:
    """Say which backend, devices, precision, versions and writable folders there are, and what to do about the rest."""
    from importlib import metadata

    typer.echo(f"Python        {platform.python_version()} on {platform.system()} {platform.machine()}")
    for name in ("leukemia-dl", "keras", "tensorflow", "jax", "torch", "numpy", "pandas", "scikit-learn", "pillow"):
        try:
            typer.echo(f"{name:<14}{metadata.version(name)}")
        except metadata.PackageNotFoundError:
            typer.echo(f"{name:<14}not installed")
    fine = _check_backend()
    fine &= _check_folders()
    typer.echo(f"{'Cache limit':<14}{limit_line()}")
    problems = _tell_plugins()
    ready = "Ready, but for the plugins named above." if problems else "Ready."
    typer.echo(ready if fine else "Not ready: see above.")
    if not fine:
        raise typer.Exit(1)


def _check_backend() -> bool:
    from leukemia_dl.training.backends import device_names, prepare

    try:
        device = prepare()
        devices = device_names()
    except LeukemiaDLError as error:
        typer.echo(f"Backend       PROBLEM: {error}")
        return False
    except Exception as error:
        typer.echo(f"Backend       PROBLEM: Keras could not be imported ({type(error).__name__}: {error}).")
        typer.echo("              Reinstall it: pip install --force-reinstall keras tensorflow")
        return False
    typer.echo(f"Backend       {device.backend}, XLA {'off' if device.jit_compile is False else device.jit_compile}")
    typer.echo(f"Devices       {', '.join(devices)} ({device.name})")
    typer.echo(f"Precision     {device.dtype_policy}")
    typer.echo(f"CPU cores     {os.cpu_count()}")
    if device.kind == "cpu":
        if shutil.which("nvidia-smi"):
            typer.echo("              There is an NVIDIA driver, but the backend sees no GPU.")
            typer.echo(
                "              For TensorFlow: pip install 'leukemia-dl[gpu]'; for JAX: pip install 'jax[cuda12]'"
            )
        else:
            typer.echo("              No GPU: training runs on the CPU. Choose small images and few epochs.")
    return True


def _check_folders() -> bool:
    from leukemia_dl.datasets import cache_dir

    fine = True
    for what, folder, cure in (
        ("Cache", cache_dir(), "set LEUKEMIA_DL_CACHE to a folder that can be written"),
        ("Here", Path(), "give --store a folder that can be written"),
    ):
        try:
            folder = folder.absolute()
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder):
                free = shutil.disk_usage(folder).free / 2**30
            typer.echo(f"{what:<14}{folder} (writable, {free:.0f} GiB free)")
        except OSError as error:
            fine = False
            typer.echo(f"{what:<14}{folder} PROBLEM: {error.strerror or error}; {cure}")
    return fine


def _tell_plugins() -> bool:
    """Say which packages provide backbones or data sets besides this one; return whether any has a problem.

    What is wrong with one is logged when it is found, here by the tables.
    """
    import pandas as pd

    from leukemia_dl.datasets import dataset_table
    from leukemia_dl.models.registry import backbone_table
    from leukemia_dl.plugins import DISTRIBUTION, plugin_problems

    tables = [backbone_table().rename(columns={"backbone": "name"}), dataset_table()]
    found = pd.concat([table[["plugin", "version", "name"]] for table in tables])
    others = found[found["plugin"] != DISTRIBUTION].groupby(["plugin", "version"])["name"]
    told = [f"{plugin} {version} ({', '.join(names)})" for (plugin, version), names in others]
    typer.echo(f"Plugins       {'; '.join(told) or 'none but our own'}")
    return not plugin_problems().empty
