"""`leukemia-dl backbones | datasets | recipes | doctor`: the available parts, and the state of this machine."""

from __future__ import annotations

import os
import platform
import shutil
import tempfile
from importlib import metadata
from pathlib import Path
from typing import Annotated, Literal

import typer

from leukemia_dl.cli import options
from leukemia_dl.cli.cache import limit_line
from leukemia_dl.errors import LeukemiaDLError

__all__ = ["backbones", "datasets", "doctor", "recipes"]

Format = Annotated[Literal["table", "csv"], typer.Option("--format", help="csv has every column.")]


def backbones(form: Format = "table") -> None:
    """List the backbones that can be compared, built-in and from plugins."""
    from leukemia_dl.models.registry import backbone_table

    frame = backbone_table()
    if form == "csv":
        options.write_csv(frame)
        return
    shown = frame[["backbone", "title", "parameters", "native_size", "min_size", "weights", "plugin", "version"]]
    options.print_table(shown, {"parameters": ","})


def datasets(form: Format = "table") -> None:
    """List the data sets that can be loaded by name, with licence and citation."""
    from leukemia_dl.datasets import dataset_table

    if form == "csv":
        options.write_csv(dataset_table())
    else:
        options.print_table(dataset_table())


def recipes(
    name: Annotated[str | None, typer.Argument(help="Print its settings, as TOML.", show_default=False)] = None,
) -> None:
    """List the recipes; or print one as TOML, to change and pass as --recipe FILE.toml."""
    import pandas as pd

    from leukemia_dl.training.recipe import Recipe

    if name is not None:
        # Without its name: a changed recipe is called after its file.
        lines = Recipe.preset(name).to_toml().splitlines(keepends=True)
        typer.echo("".join(line for line in lines if not line.startswith("name = ")), nl=False)
        return
    shown = ["weights", "image_size", "head", "head_epochs", "epochs", "batch_size", "learning_rate", "class_balance"]
    rows = [{"recipe": found, **Recipe.preset(found).to_dict()} for found in Recipe.presets()]
    frame = pd.DataFrame(rows, columns=["recipe", *shown])
    options.print_table(frame.fillna({"weights": "random"}))


def doctor() -> None:
    """Print backend, devices, precision, versions and writable folders, and what to do about problems."""
    _print_fact("Python", f"{platform.python_version()} on {platform.system()} {platform.machine()}")
    for name in ("leukemia-dl", "keras", "tensorflow", "jax", "torch", "numpy", "pandas", "scikit-learn", "pillow"):
        try:
            _print_fact(name, metadata.version(name))
        except metadata.PackageNotFoundError:
            _print_fact(name, "not installed")
    folders_are_fine = _check_folders()
    fine = _check_backend() and folders_are_fine
    _print_fact("Cache limit", limit_line())
    problems = _print_plugins()
    ready = "Ready, but for the plugins named above." if problems else "Ready."
    typer.echo(ready if fine else "Not ready: see above.")
    if not fine:
        raise typer.Exit(1)


def _print_fact(name: str, text: str) -> None:
    typer.echo(f"{name:<14}{text}")


def _check_backend() -> bool:
    from leukemia_dl.training.backends import prepare

    try:
        device = prepare()
    except Exception as error:  # a broken installation may raise anything
        _print_fact("Backend", f"PROBLEM: {error}")
        if not isinstance(error, LeukemiaDLError):
            _print_fact("", "Reinstall it: pip install --force-reinstall keras tensorflow")
        return False
    _print_fact("Backend", f"{device.backend}, XLA {'off' if device.jit_compile is False else device.jit_compile}")
    devices = ["cpu:0", *(f"gpu:{number}" for number in range(device.gpus))]
    _print_fact("Devices", f"{', '.join(devices)} ({device.name})")
    _print_fact("Precision", device.dtype_policy)
    _print_fact("CPU cores", str(os.cpu_count()))
    if device.kind == "cpu" and shutil.which("nvidia-smi"):
        _print_fact("", "There is an NVIDIA driver, but the backend sees no GPU.")
        _print_fact("", "For TensorFlow: pip install 'leukemia-dl[gpu]'; for JAX: pip install 'jax[cuda12]'")
    elif device.kind == "cpu":
        _print_fact("", "No GPU: training runs on the CPU. Choose small images and few epochs.")
    return True


def _check_folders() -> bool:
    from leukemia_dl.datasets import cache_dir

    fine = True
    for name, folder, cure in (
        ("Cache", cache_dir(), "set LEUKEMIA_DL_CACHE to a folder that can be written"),
        ("Here", Path.cwd(), "give --store a folder that can be written"),
    ):
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder):
                free = shutil.disk_usage(folder).free / 2**30
            _print_fact(name, f"{folder} (writable, {free:.0f} GiB free)")
        except OSError as error:
            fine = False
            _print_fact(name, f"{folder} PROBLEM: {error.strerror or error}; {cure}")
    return fine


def _print_plugins() -> bool:
    """Print the packages that provide backbones or data sets besides this one; return whether any has a problem.

    Problems are logged when they are found, here by the tables.
    """
    import pandas as pd

    from leukemia_dl.datasets import dataset_table
    from leukemia_dl.models.registry import backbone_table
    from leukemia_dl.plugins import DISTRIBUTION, plugin_problems

    tables = [backbone_table().rename(columns={"backbone": "name"}), dataset_table()]
    found = pd.concat([table[["plugin", "version", "name"]] for table in tables])
    others = found[found["plugin"] != DISTRIBUTION].groupby(["plugin", "version"])["name"]
    texts = [f"{plugin} {version} ({', '.join(names)})" for (plugin, version), names in others]
    _print_fact("Plugins", "; ".join(texts) or "none besides the built-in one")
    return not plugin_problems().empty
