"""The rules of the house: which package may import which, what an import costs, how long modules may be."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

SRC = Path(__file__).parents[1] / "src" / "leukemia_dl"
# Which package may import which, from the bottom up; "helpers" are the modules of the first two lines. The arrows hold
# for every import: at the top of a module, inside a function and under TYPE_CHECKING.
ARROWS = """
errors, atomic, identity, progress, text -> nothing
checks, plugins -> errors
preprocess -> helpers
datasets   -> helpers, preprocess
models     -> helpers, preprocess
training   -> helpers, preprocess, datasets, models
evaluation -> errors, checks, identity, text
benchmark  -> helpers, preprocess, datasets, models, training, evaluation
reporting  -> helpers, preprocess, datasets, models, evaluation, benchmark
cli        -> helpers, preprocess, datasets, models, training, evaluation, benchmark, reporting
testing    -> helpers, preprocess, datasets, models, training, evaluation, benchmark
"""
# A convenience that the design names: `Dataset.load` calls the registry of data sets.
EXCEPTIONS = {("datasets.dataset", "datasets.registry")}
MODULES = sorted(path for path in SRC.rglob("*.py"))
NAMES = {".".join(path.relative_to(SRC).with_suffix("").parts).removesuffix(".__init__"): path for path in MODULES}


def allowed():
    """Return the packages that each package may import, besides itself."""
    lines = [[part.strip().split(", ") for part in line.split("->")] for line in ARROWS.strip().splitlines()]
    helpers = {name for sources, _ in lines[:2] for name in sources}
    return {
        name: set(targets) | (helpers if "helpers" in targets else set())
        for sources, targets in lines
        for name in sources
    }


def imports(path):
    """Yield (name, at_top) for every import statement of a module, wherever it stands.

    An import inside a function or under TYPE_CHECKING is not at the top.
    """
    tree = ast.parse(path.read_text())
    lazy = {
        id(node)
        for block in ast.walk(tree)
        if isinstance(block, (ast.FunctionDef, ast.Lambda))
        or (isinstance(block, ast.If) and getattr(block.test, "id", "") == "TYPE_CHECKING")
        for node in ast.walk(block)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, id(node) not in lazy
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found = [f"{node.module}.{alias.name}" for alias in node.names]
            modules = [name for name in found if name.removeprefix("leukemia_dl.") in NAMES]
            if node.module == "leukemia_dl" or len(modules) < len(found):
                yield node.module, id(node) not in lazy
            for name in found if node.module == "leukemia_dl" else modules:
                yield name, id(node) not in lazy


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
                assert there == here or there in allowed()[here], f"{here} must not import {there}. Arrows:{ARROWS}"


def circles():
    """Return the modules that reach themselves by imports."""
    edges = {
        name: {
            target.removeprefix("leukemia_dl.")
            for target, _ in imports(path)
            if target.removeprefix("leukemia_dl.") in NAMES
            and target.startswith("leukemia_dl.")
            and (name, target.removeprefix("leukemia_dl.")) not in EXCEPTIONS
        }
        for name, path in NAMES.items()
        if name not in ("__init__", "__main__")
    }

    def reached(name):
        found, to_do = set(), list(edges[name])
        while to_do:
            if (module := to_do.pop()) not in found:
                found.add(module)
                to_do += edges[module]
        return found

    return {name for name in edges if name in reached(name)}


def test_no_module_is_imported_by_what_it_imports():
    """Neither at the top, nor inside a function, nor under TYPE_CHECKING."""
    assert circles() == set()


def test_functions_have_at_most_60_lines():
    """A docstring does not count, nor do the decorators."""
    found = {}
    for path in MODULES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                first = node.body[0]
                documented = isinstance(first, ast.Expr) and ast.get_docstring(node) is not None
                docstring = first.end_lineno - first.lineno + 1 if documented else 0
                lines = node.end_lineno - node.lineno + 1 - docstring
                if lines > 60:
                    found[f"{path.relative_to(SRC)}: {node.name}"] = lines
    assert found == {}, found


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(SRC)))
def test_heavy_packages_are_imported_where_the_design_says(path):
    relative = str(path.relative_to(SRC))
    for name, at_top in imports(path):
        root = name.split(".")[0]
        if root in ("keras", "tensorflow", "jax", "torch", "sklearn", "matplotlib", "hypothesis"):
            assert not at_top or relative == "testing/strategies.py", f"{name} at the top"
        if root == "keras":
            assert package(path) in ("models", "training", "benchmark", "testing"), name
        if root in ("tensorflow", "jax", "torch"):  # Keras has no gradients of inputs, and reads no SavedModel again
            assert relative in ("training/backends.py", "models/explain.py", "models/exported.py"), name


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(SRC)))
def test_no_module_is_longer_than_400_lines(path):
    assert len(path.read_text().splitlines()) <= 400


# Every line counts, blank lines and docstrings too. This number may only fall: what is new replaces something.
MOST_LINES = 15_800


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

    for name in leukemia_dl.__all__:
        value = getattr(leukemia_dl, name)
        assert name == "__version__" or value.__doc__, name
    with pytest.raises(AttributeError, match="no attribute 'Datset'"):
        leukemia_dl.Datset  # noqa: B018
