"""`leukemia-dl backbones | datasets | recipes | doctor | cache`: the available parts, and the state of this machine."""

from __future__ import annotations

import os
import platform
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from typer import Option

from leukemia_dl.cli import options
from leukemia_dl.plugins import DISTRIBUTION, installed_version, plugin_problems

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["backbones", "cache", "datasets", "doctor", "recipes"]

Format = Annotated[Literal["table", "csv"], Option("--format", help="csv has every column.")]
cache = typer.Typer(help="List or clear files that can be made again; LEUKEMIA_DL_CACHE chooses the folder.")
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

    show = options.write_csv if form == "csv" else options.print_table
    show(dataset_table())


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
    rows = [{"recipe": found, **Recipe.preset(found).to_dict()} for found in Recipe.presets()]
    options.print_table(pd.DataFrame(rows, columns=["recipe", *_RECIPES]).fillna({"weights": "random"}))


@cache.command("list")
def list_cache() -> None:
    """List the content of the cache folder, with sizes."""
    from leukemia_dl.datasets import cache_dir

    options.print_table(_cached(), {"MB": ",.1f"}, title=str(cache_dir()))
    typer.echo(_cache_use())


@cache.command("clear")
def clear_cache(synthetic: bool = Option(False, "--synthetic", help="The drawn synthetic cells, too.")) -> None:
    """Delete decoded images and features, which are made again when they are needed. Not beside a benchmark."""
    from leukemia_dl.datasets import cache_dir

    found = _cached()
    found = found if synthetic else found[~found["name"].str.startswith("synthetic-")]
    for path in map(cache_dir().joinpath, found["name"]):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    typer.echo(f"Deleted: {len(found)}, {found['MB'].sum():,.1f} MB.")


def _cached() -> pd.DataFrame:
    """Return name and megabytes of everything in the cache folder that can be made again."""
    import pandas as pd

    from leukemia_dl.datasets import cache_dir

    root, rows = cache_dir(), []
    for path in sorted(path for pattern in ("pixels/*", "features/*", "synthetic-*") for path in root.glob(pattern)):
        size = sum(file.lstat().st_size for file in (path, *path.rglob("*")) if file.is_file())
        rows.append((str(path.relative_to(root)), size / 1e6))
    return pd.DataFrame(rows, columns=["name", "MB"]).astype({"name": "str", "MB": float})


def _cache_use() -> str:
    from leukemia_dl.datasets.cache import cache_limit, cache_use

    taken = sum(size for _, size, _ in cache_use()) / 1e9
    return f"Pixels and features: {taken:,.1f} GB of at most {cache_limit() / 1e9:g} GB (LEUKEMIA_DL_CACHE_LIMIT)"


def doctor() -> None:
    """Print backend, devices, precision, versions and writable folders, and what to do about problems."""
    from leukemia_dl.datasets import cache_dir

    _print_fact("Python", f"{platform.python_version()} on {platform.system()} {platform.machine()}")
    for name in _VERSIONS:
        _print_fact(name, installed_version(name).replace("unknown", "not installed"))
    fine = _check_folder("Cache", cache_dir(), "set LEUKEMIA_DL_CACHE to a folder that can be written")
    fine &= _check_folder("Here", Path.cwd(), "give --store a folder that can be written")
    fine &= _check_backend()
    _print_fact("Cache limit", _cache_use())
    problems = _print_plugins()
    ready = "Ready, but for the plugins named above." if problems else "Ready."
    typer.echo(ready if fine else "Not ready: see above.")
    if not fine:
        raise typer.Exit(1)


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


def _print_plugins() -> bool:
    """Print the packages that provide backbones or data sets besides this one; return whether any has a problem."""
    import pandas as pd

    from leukemia_dl.datasets import dataset_table
    from leukemia_dl.models.backbones import backbone_table

    tables = [backbone_table().rename(columns={"backbone": "name"}), dataset_table()]  # which log the problems
    found = pd.concat([table[["plugin", "version", "name"]] for table in tables])
    others = found[found["plugin"] != DISTRIBUTION].groupby(["plugin", "version"])["name"]
    texts = [f"{plugin} {version} ({', '.join(names)})" for (plugin, version), names in others]
    _print_fact("Plugins", "; ".join(texts) or "none besides the built-in one")
    return not plugin_problems().empty
