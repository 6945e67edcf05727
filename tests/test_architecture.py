"""The rules of the house: which package may import which, what an import costs, how long a module may be."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

SRC = Path(__file__).parents[1] / "src" / "leukemia_dl"
BASE = {"atomic", "checks", "errors", "identity", "progress", "plugins", "text"}
# package -> what it may import of ours, besides itself.
ALLOWED = {
    "atomic": set(),
    "checks": {"errors"},
    "errors": set(),
    "identity": set(),
    "progress": set(),
    "plugins": {"errors"},
    "text": set(),
    "preprocess": BASE,
    "datasets": BASE | {"preprocess"},
    "models": BASE | {"preprocess"},
    "training": BASE | {"preprocess", "datasets", "models"},
    "evaluation": {"checks", "errors"},
    "benchmark": BASE | {"preprocess", "datasets", "models", "training", "evaluation"},
    "reporting": BASE | {"preprocess", "datasets", "models", "evaluation", "benchmark"},
    "cli": BASE | {"preprocess", "datasets", "models", "training", "evaluation", "benchmark", "reporting"},
    "testing": BASE | {"preprocess", "datasets", "models", "training", "evaluation", "benchmark"},
}
MODULES = sorted(path for path in SRC.rglob("*.py"))


def imports(path):
    """Yield (name, at_top) for every import statement of a module; `TYPE_CHECKING` blocks do not count."""
    tree = ast.parse(path.read_text())
    inner = {id(n) for f in ast.walk(tree) if isinstance(f, (ast.FunctionDef, ast.Lambda)) for n in ast.walk(f)}
    typing_only = {
        id(n)
        for block in ast.walk(tree)
        if isinstance(block, ast.If) and getattr(block.test, "id", "") == "TYPE_CHECKING"
        for n in ast.walk(block)
    }
    for node in ast.walk(tree):
        if id(node) in typing_only:
            continue
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, id(node) not in inner
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield node.module, id(node) not in inner
            if node.module == "leukemia_dl":
                for alias in node.names:
                    yield f"leukemia_dl.{alias.name}", id(node) not in inner


def package(path):
    return path.relative_to(SRC).parts[0].removesuffix(".py")


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(SRC)))
def test_imports_go_down_only(path):
    here = package(path)
    if here in ("__init__", "__main__"):
        return
    for name, _ in imports(path):
        if name.startswith("leukemia_dl."):
            there = name.split(".")[1]
            if there != "__version__":
                assert there == here or there in ALLOWED[here], f"{here} must not import {there}"


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(SRC)))
def test_heavy_packages_are_imported_where_the_design_says(path):
    relative = str(path.relative_to(SRC))
    for name, at_top in imports(path):
        root = name.split(".")[0]
        if root in ("keras", "tensorflow", "jax", "torch", "sklearn", "matplotlib", "hypothesis"):
            assert not at_top or relative == "testing/strategies.py", f"{name} at the top"
        if root == "keras":
            assert package(path) in ("models", "training", "benchmark", "testing"), name
        if root in ("tensorflow", "jax", "torch"):
            assert relative == "training/backends.py", name


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(SRC)))
def test_no_module_is_longer_than_400_lines(path):
    assert len(path.read_text().splitlines()) <= 400


# Every line counts, blank lines and docstrings too. This number may only fall.
MOST_LINES = 22_944


def test_src_does_not_grow():
    assert sum(len(path.read_text().splitlines()) for path in MODULES) <= MOST_LINES


@pytest.mark.parametrize(
    "code",
    [
        "import leukemia_dl",
        "import leukemia_dl; leukemia_dl.Dataset, leukemia_dl.Pipeline, leukemia_dl.Recipe",
        "import leukemia_dl; leukemia_dl.Benchmark, leukemia_dl.list_backbones(), leukemia_dl.backbone_table()",
        "import leukemia_dl.cli",
    ],
)
def test_import_loads_nothing_heavy(code):
    watched = ["keras", "tensorflow", "jax", "torch", "matplotlib.pyplot", "sklearn"]
    program = f"import sys, json; {code}; print(json.dumps([m for m in {watched} if m in sys.modules]))"
    answer = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert json.loads(answer.stdout) == []


def test_public_names_are_the_documented_ones():
    import leukemia_dl

    assert set(" ".join(leukemia_dl._WHERE.values()).split()) | {"__version__"} == set(leukemia_dl.__all__)
    for name in leukemia_dl.__all__:
        value = getattr(leukemia_dl, name)
        assert name == "__version__" or value.__doc__, name
    with pytest.raises(AttributeError, match="no attribute 'Datset'"):
        leukemia_dl.Datset  # noqa: B018
