"""`leukemia-dl backbones | datasets | recipes | doctor`: the available parts, and the state of this machine."""

import os
import platform
import shutil
import tempfile
from pathlib import Path
from typing import Annotated, Literal

import typer
from typer import Argument, Option

from leukemia_dl.cli import options
from leukemia_dl.plugins import DISTRIBUTION, installed_version, plugin_problems

Format = Annotated[Literal["table", "csv"], Option("--format", help="csv has every column.")]
_BACKBONES = ["backbone", "title", "parameters", "native_size", "min_size", "weights", "plugin", "version"]
_RECIPES = ["weights", "image_size", "head", "head_epochs", "epochs", "batch_size", "learning_rate", "class_balance"]
_VERSIONS = ("leukemia-dl", "keras", "tensorflow", "jax", "torch", "numpy", "pandas", "scikit-learn", "pillow")


def backbones(form: Format = "table") -> None:
    """List the backbones that can be compared, built-in and from plugins."""
    from leukemia_dl.models.backbones import backbone_table

    if form == "csv":
        options.write_csv(backbone_table())
    else:
        options.print_table(backbone_table()[_BACKBONES], {"parameters": ","})


def datasets(form: Format = "table") -> None:
    """List the data sets that can be loaded by name, with licence and citation."""
    from leukemia_dl.datasets import dataset_table

    (options.write_csv if form == "csv" else options.print_table)(dataset_table())


def recipes(name: str | None = Argument(None, help="Print its settings, as TOML.", show_default=False)) -> None:
    """List the recipes; or print one as TOML, to change and pass as --recipe FILE.toml."""
    import pandas as pd

    from leukemia_dl.training.recipe import Recipe

    if name is not None:
        # Without its name: a changed recipe is called after its file.
        lines = Recipe.preset(name).to_toml().splitlines(keepends=True)
        typer.echo("".join(line for line in lines if not line.startswith("name = ")), nl=False)
    else:
        rows = [{"recipe": found, **Recipe.preset(found).to_dict()} for found in Recipe.presets()]
        options.print_table(pd.DataFrame(rows, columns=["recipe", *_RECIPES]).fillna({"weights": "random"}))


def doctor() -> None:
    """Print backend, devices, precision, versions and writable folders, and what to do about problems."""
    from leukemia_dl.datasets import dataset_table
    from leukemia_dl.datasets.cache import cache_dir, cache_limit, cache_use
    from leukemia_dl.models.backbones import backbone_table

    _print_fact("Python", f"{platform.python_version()} on {platform.system()} {platform.machine()}")
    for name in _VERSIONS:
        _print_fact(name, installed_version(name).replace("unknown", "not installed"))
    fine = _check_folder("Cache", cache_dir(), "set LEUKEMIA_DL_CACHE to a folder that can be written")
    fine &= _check_folder("Here", Path.cwd(), "give --store a folder that can be written")
    fine &= _check_backend()
    taken = sum(size for _, size, _ in cache_use()) / 1e9
    limit = f"of at most {cache_limit() / 1e9:g} GB (LEUKEMIA_DL_CACHE_LIMIT)"
    _print_fact("Cache limit", f"pixels and features: {taken:,.1f} GB {limit}")
    tables = [backbone_table(), dataset_table()]  # which log the problems of plugins
    plugins = {tuple(row) for table in tables for row in table[["plugin", "version"]].to_numpy()}
    others = [f"{plugin} {version}" for plugin, version in sorted(plugins) if plugin != DISTRIBUTION]
    _print_fact("Plugins", "; ".join(others) or "none besides the built-in one")
    ready = "Ready." if plugin_problems().empty else "Ready, but for the plugins named above."
    typer.echo(ready if fine else "Not ready: see above.")
    raise typer.Exit(int(not fine))


def _print_fact(name: str, text: str) -> None:
    typer.echo(f"{name:<14}{text}")


def _check_folder(name: str, folder: Path, cure: str) -> bool:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            free = shutil.disk_usage(folder).free / 2**30
    except OSError as error:
        _print_fact(name, f"{folder} PROBLEM: {error.strerror or error}; {cure}")
        return False
    _print_fact(name, f"{folder} (writable, {free:.0f} GiB free)")
    return True


def _check_backend() -> bool:
    from leukemia_dl.training.backends import prepare

    try:
        device = prepare()
    except Exception as error:  # a broken installation may raise anything
        _print_fact("Backend", f"PROBLEM: {error}")
        return False
    _print_fact("Backend", f"{device.backend}, XLA {'off' if device.jit_compile is False else device.jit_compile}")
    devices = ["cpu:0", *(f"gpu:{number}" for number in range(device.gpus))]
    _print_fact("Devices", f"{', '.join(devices)} ({device.name})")
    _print_fact("Precision", device.dtype_policy)
    _print_fact("CPU cores", str(os.cpu_count()))
    if device.kind == "cpu" and shutil.which("nvidia-smi"):
        _print_fact("", "There is an NVIDIA driver, but the backend sees no GPU.")
        _print_fact("", "For TensorFlow: pip install 'leukemia-dl[gpu]'; for JAX: pip install 'jax[cuda12]'")
    return True
