"""A package of examples/, built and installed by pip into a folder of its own."""

import contextlib
import importlib
import shutil
import subprocess
import sys
from pathlib import Path

from leukemia_dl import plugins

EXAMPLES = Path(__file__).parents[2] / "examples"


@contextlib.contextmanager
def installed(name, folder):
    """Yield the module of a package while its plugin is found; `folder` takes what is built."""
    site = folder / "site"
    shutil.copytree(EXAMPLES / name, folder / name)  # building leaves files behind
    quiet = ["--no-index", "--no-deps", "--no-build-isolation", "--disable-pip-version-check", "-q"]
    command = [sys.executable, "-m", "pip", "install", *quiet, "--target", site, folder / name]
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    sys.path.insert(0, str(site))
    plugins.forget()
    module = name.replace("-", "_")
    try:
        yield importlib.import_module(module)
    finally:
        sys.path.remove(str(site))
        sys.modules.pop(module)
        plugins.forget()
