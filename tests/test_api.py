"""The public API: which names there are, that each says what it is and takes, and that the reference shows it."""

import ast
import dataclasses
import importlib
import inspect
import itertools
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# Public module -> its public names. What comes or goes here is a change for users: see WHAT_TO_DO.
PUBLIC = {
    "leukemia_dl": (
        "Augmentation", "BackboneSpec", "Benchmark", "Classifier", "Dataset", "DatasetInfo", "DatasetSource",
        "Embeddings", "EncoderSpec", "Ensemble", "Pipeline", "PixelStore", "Recipe", "Split", "__version__", "as_keras",
        "backbone_table", "compare", "dataset_table", "evaluate", "get_backbone", "hookimpl", "inflation",
        "leaderboard",
        "list_backbones", "list_datasets", "load_classifier", "make_splits", "plugin_problems", "published_results",
        "register_backbone", "score",
    ),
    "leukemia_dl.benchmark": (
        "Benchmark", "ProcessExecutor", "RayExecutor", "Record", "SerialExecutor", "Store", "SubmitExecutor", "Trial",
        "load_classifier",
    ),
    "leukemia_dl.datasets": (
        "PROTOCOLS", "Dataset", "DatasetInfo", "DatasetSource", "PixelStore", "Split", "cache_dir", "dataset_table",
        "get_source", "list_datasets", "load_dataset", "make_splits",
    ),
    "leukemia_dl.datasets.audit": ("AuditReport", "audit"),
    "leukemia_dl.datasets.synthetic": ("SyntheticCohort", "draw_cell", "draw_cohort", "write_dataset"),
    "leukemia_dl.datasets.verify": ("VerifyReport", "read_manifest", "verify"),
    "leukemia_dl.errors": (
        "BackendError", "DamagedRecordError", "DataError", "ImageError", "LeukemiaDLError", "OutOfMemoryError",
        "PluginError", "SettingsError", "SplitError", "StoreError", "TimeLimitError", "TrainingError",
        "UnknownNameError", "WeightsError", "WorkerError", "unknown_name_error",
    ),
    "leukemia_dl.evaluation": (
        "METRICS", "accuracy_at_coverage", "apply_temperature", "calibrate", "class_names_of", "compare",
        "conformal_sets", "drop_repeated_cells", "ensembles", "error_list", "evaluate", "fit_temperature",
        "group_table", "inflation", "label_doubts", "leaderboard", "net_benefit", "operating_points",
        "patient_predictions", "plan_study", "precision_recall_curves", "probe", "published_results",
        "reliability_curves", "roc_curves", "score",
    ),
    "leukemia_dl.models": (
        "BackboneSpec", "Classifier", "Embeddings", "EncoderSpec", "Ensemble", "Explanation", "Head", "application",
        "backbone_table", "build_model", "get_backbone", "list_backbones", "register_backbone",
    ),
    "leukemia_dl.plugins": ("hookimpl", "plugin_problems"),
    "leukemia_dl.preprocess": (
        "GIEMSA", "IMAGE_SUFFIXES", "MAX_PIXELS", "CenterOnCanvas", "CropToCell", "Macenko", "PadToSquare",
        "Pipeline", "Reinhard", "Resize", "Step", "bounding_box",
        "decode_image", "foreground_mask", "foreground_pixels", "is_single_cell", "lab_to_rgb",
        "mask_colour", "measure_quality", "optical_density", "quality_frame",
        "rgb_to_lab", "silhouette",
    ),
    "leukemia_dl.reporting": (
        "model_card", "plot_comparison", "plot_confusion", "plot_cost", "plot_errors_by_size", "plot_explanations",
        "plot_features",
        "plot_inflation", "plot_learning_curves", "plot_net_benefit", "plot_precision_recall", "plot_reliability",
        "plot_roc", "plot_samples", "plot_subjects", "write_model_cards", "write_pictures", "write_report",
    ),
    "leukemia_dl.testing": ("BACKBONE_CHECKS", "check_backbone", "parametrize_with_checks"),
    "leukemia_dl.testing.strategies": ("cells", "images", "masks", "pipelines", "steps"),
    "leukemia_dl.training": (
        "Augmentation", "ComputeConfig", "FeatureCache", "FitContext", "FitResult", "ModelCache", "Recipe", "Subset",
        "as_keras", "augment", "augment_images", "fit", "load_factory",
    ),
    "leukemia_dl.training.callbacks": ("CallbackFactory", "FitContext", "load_factory", "mlflow", "tensorboard"),
}  # fmt: skip
# What these modules hand to other modules of ours only, and promise to nobody.
INTERNAL = {
    "leukemia_dl.training.callbacks": ("make_callbacks",),
}
WHAT_TO_DO = (
    "If that is meant: change PUBLIC in tests/test_api.py, add a line to CHANGELOG.md, add the name to the reference "
    "(docs/reference/api) or take it out. A name that goes is first deprecated for a minor version: "
    "docs/reference/versions.md. If it is for other modules of ours only, it belongs in INTERNAL."
)


def changed(module, names):
    """Return what `__all__` of a public module has too many and too few, and what to do; "" if nothing."""
    expected = {*PUBLIC[module], *INTERNAL.get(module, ())}
    added, gone = sorted(set(names) - expected), sorted(expected - set(names))
    said = [f"new: {', '.join(added)}"] * bool(added) + [f"gone: {', '.join(gone)}"] * bool(gone)
    return f"The public names of {module} changed ({'; '.join(said)}). {WHAT_TO_DO}" if said else ""


@pytest.mark.parametrize("module", PUBLIC)
def test_public_names_are_these(module):
    names = importlib.import_module(module).__all__
    assert len(set(names)) == len(names)
    message = changed(module, names)
    assert not message, message


def test_internal_names_are_not_public():
    for module, names in INTERNAL.items():
        assert not set(names) & set(PUBLIC[module])


def test_a_name_that_comes_or_goes_is_told_with_what_to_do():
    names = [*PUBLIC["leukemia_dl.errors"], "NewError"]
    names.remove("SplitError")
    message = changed("leukemia_dl.errors", names)
    assert "new: NewError; gone: SplitError" in message
    assert all(word in message for word in ("CHANGELOG.md", "docs/reference/api", "deprecated"))


def test_top_level_names_are_listed_before_anything_is_loaded():
    program = (
        "import sys, leukemia_dl; print(*dir(leukemia_dl)); "
        "print(*(name for name in sys.modules if name.startswith('leukemia_dl.')))"
    )
    answer = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    listed, loaded = answer.stdout.split("\n")[:2]
    assert set(PUBLIC["leukemia_dl"]) <= set(listed.split())
    assert not loaded.split()


@pytest.mark.parametrize("module", PUBLIC)
def test_public_names_can_be_reached(module):
    found = importlib.import_module(module)
    for name in PUBLIC[module]:
        assert getattr(found, name) is getattr(found, name)
        assert name in dir(found)


# What a docstring has to say.

RETURNS = re.compile(r"\b(returns?|yields?|tells?|whether|true)\b", re.IGNORECASE)


def public_objects():
    """Return every public function and class once, by a name under which it is public."""
    found = {}
    for module in PUBLIC:
        for name in PUBLIC[module]:
            value = getattr(importlib.import_module(module), name)
            if inspect.isfunction(value) or inspect.isclass(value):
                found.setdefault(id(value), (f"{module}.{name}", value))
    return dict(found.values())


OBJECTS = public_objects()


def section(text, *headings):
    """Return what stands below the headings of a Google docstring."""
    found = ""
    for heading in headings:
        match = re.search(rf"^{heading}:\n((?:[ ]+.*\n?|\n)*)", text, re.MULTILINE)
        found += match[1] if match else ""
    return found


def describes(text, name, *headings):
    """Return whether a docstring has an entry for a name below one of the headings, or `name` in its text."""
    entry = re.search(rf"^ *\*{{0,2}}{re.escape(name)}(, \w+)*:", section(text, *headings), re.MULTILINE)
    return bool(entry) or f"`{name}`" in text or f"`{name}." in text


def own_errors(function):
    """Return the names of our errors that the body of a function raises itself."""
    errors = set(PUBLIC["leukemia_dl.errors"])
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(inspect.unwrap(function))))
    except OSError:  # made by Hypothesis from another function
        return set()
    found, waiting = set(), list(tree.body[0].body)
    while waiting:
        node = waiting.pop()
        if isinstance(node, (ast.FunctionDef, ast.ClassDef, ast.Lambda)):
            continue
        waiting += ast.iter_child_nodes(node)
        if isinstance(node, ast.Raise) and node.exc is not None:
            raised = node.exc.func if isinstance(node.exc, ast.Call) else node.exc
            name = getattr(raised, "id", "")
            found |= {"UnknownNameError" if name == "unknown_name_error" else name} & errors
    return found


def lacks(function, text, context=""):
    """Return what the docstring of a function does not say; `context` holds further ones that count."""
    if not text:
        return ["a docstring"]
    everything = f"{text}\n{context}"
    parameters = inspect.signature(function).parameters
    missing = [
        f"what {name} is"
        for name in parameters
        if name not in ("self", "cls") and not any(describes(part, name, "Args") for part in (text, context))
    ]
    returned = inspect.signature(function).return_annotation
    silent = returned in (None, "None", inspect.Signature.empty)
    if not silent and not section(text, "Returns", "Yields") and not RETURNS.search(everything):
        missing.append("what it returns")
    return missing + [f"when it raises {name}" for name in sorted(own_errors(function)) if name not in everything]


def documented_in(cls, name):
    """Return the docstrings of a method: its own one first, then those that it overrides."""
    texts = [vars(base)[name].__doc__ or "" for base in cls.__mro__ if name in vars(base) and ours(base)]
    return [inspect.cleandoc(text) for text in texts if text]


def ours(value):
    return (getattr(value, "__module__", None) or "").startswith("leukemia_dl")


def class_lacks(cls):
    """Return what the docstrings of a class, its fields, methods and properties do not say."""
    texts = [inspect.cleandoc(base.__doc__ or "") for base in cls.__mro__ if ours(base)]
    missing = [] if texts[0] else ["a docstring"]
    whole = "\n".join(texts)
    if dataclasses.is_dataclass(cls):
        for field in dataclasses.fields(cls):
            said = any(describes(text, field.name, "Attributes") for text in texts)
            missing += [] if field.name.startswith("_") or said else [f"what the field {field.name} is"]
    elif "__init__" in vars(cls):
        text = f"{whole}\n{inspect.getdoc(cls.__init__) or ''}"
        missing += lacks(cls.__init__, text, whole)
    if "__post_init__" in vars(cls):
        missing += [f"when it raises {name}" for name in own_errors(cls.__post_init__) if name not in whole]
    for name, member in inspect.getmembers_static(cls):
        if name.startswith("_") and name not in ("__call__", "__getitem__"):
            continue
        inner = getattr(member, "fget", None) or getattr(member, "func", None) or getattr(member, "__func__", member)
        if not inspect.isfunction(inner) or not ours(inner):
            continue
        documented = [*documented_in(cls, name), ""]
        if inner is not member and not isinstance(member, (classmethod, staticmethod)):  # a property
            missing += [] if documented[0] else [f"{name}: a docstring"]
            errors = [error for error in own_errors(inner) if error not in documented[0]]
            missing += [f"{name}: when it raises {error}" for error in errors]
        else:
            # What the parameters of several methods are, their class may say.
            context = "\n".join([*documented[1:], whole])
            missing += [f"{name}: {what}" for what in lacks(inner, documented[0], context)]
    return missing


@pytest.mark.parametrize("name", OBJECTS)
def test_docstrings_say_what_comes_in_what_comes_out_and_what_is_raised(name):
    value = OBJECTS[name]
    missing = class_lacks(value) if inspect.isclass(value) else lacks(value, inspect.getdoc(value) or "")
    assert not missing, f"{name} does not say: {'; '.join(missing)}"


def test_what_a_docstring_lacks_is_found():
    from leukemia_dl.errors import DataError

    def function(first: int, second: int) -> int:
        """Do it.

        Args:
            first: One.
        """
        if first:
            raise DataError("")
        return second

    @dataclasses.dataclass
    class Thing:
        """A thing."""

        field: int

        def method(self, value: int) -> None: ...

        @property
        def state(self) -> int:
            return 1

    Thing.__module__ = Thing.method.__module__ = Thing.state.fget.__module__ = "leukemia_dl.invented"
    assert lacks(function, inspect.getdoc(function)) == [
        "what second is", "what it returns", "when it raises DataError",
    ]  # fmt: skip
    assert class_lacks(Thing) == ["what the field field is", "method: a docstring", "state: a docstring"]


def test_public_values_say_what_they_are():
    """A constant has a docstring below it, where it is made."""
    wanted = {name for names in PUBLIC.values() for name in names if name.isupper() or name == "CallbackFactory"}
    said = set()
    for path in (ROOT / "src" / "leukemia_dl").rglob("*.py"):
        text = path.read_text()
        body = ast.parse(text).body if any(f"\n{name}" in text for name in wanted) else []
        for node, after in itertools.pairwise(body):
            targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
            below = isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
            said |= {target.id for target in targets if below and isinstance(target, ast.Name)}
    assert wanted <= said, sorted(wanted - said)


# What the reference shows.

NOT_SHOWN = {"__version__"}


def resolved(path):
    """Return the module, class or function of a dotted path."""
    parts = path.split(".")
    for count in range(len(parts), 0, -1):
        try:
            value = importlib.import_module(".".join(parts[:count]))
        except ModuleNotFoundError:
            continue
        for name in parts[count:]:
            value = getattr(value, name)
        return value
    raise LookupError(path)


def shown(text):
    """Return (name, id) of everything that the mkdocstrings directives of a page show."""
    found = set()
    for path, options in re.findall(r"^::: (\S+)[ ]*\n?((?:[ ]{2,}.*\n?|[ ]*\n)*)", text, re.MULTILINE):
        value = resolved(path)
        found.add((path.rsplit(".", 1)[-1], id(value)))
        listed = re.search(r"members:\s*\[([^\]]*)\]|members:\s*\n((?:\s*- .*\n?)+)", options)
        if listed:
            names = re.findall(r"\w+", listed[1] or listed[2])
        else:
            names = value.__all__ if inspect.ismodule(value) else []
        found |= {(name, id(getattr(value, name))) for name in names}
    return found


def test_directives_are_read():
    text = (
        "::: leukemia_dl.Dataset\n\n"
        "::: leukemia_dl.evaluation\n    options:\n      members: [score,\n        compare]\n\n"
        "::: leukemia_dl.reporting\n    options:\n      members:\n        - plot_roc\n\n# End\n\n"
        "::: leukemia_dl.errors\n"
    )
    names = {name for name, _ in shown(text)}
    modules = {"evaluation", "reporting", "errors"}
    assert names == {"Dataset", "score", "compare", "plot_roc", *modules, *PUBLIC["leukemia_dl.errors"]}


def test_the_reference_shows_every_public_name():
    pages = sorted((ROOT / "docs").rglob("*.md"))
    there = set().union(*(shown(page.read_text(encoding="utf-8")) for page in pages))
    missing = [
        f"{module}.{name}"
        for module, names in PUBLIC.items()
        for name in names
        if (name, id(getattr(importlib.import_module(module), name))) not in there and name not in NOT_SHOWN
    ]
    assert not missing, f"No page below docs/ has a directive `::: ...` for: {', '.join(missing)}."


# The examples.


def test_examples_run_with_the_tests(pytestconfig):
    """`pytest` without arguments runs the examples of src: this is how it is told to, and that there are some."""
    assert "src" in pytestconfig.getini("testpaths")
    assert pytestconfig.getoption("doctestmodules")
    sources = [path.read_text() for path in (ROOT / "src").rglob("*.py")]
    examples = [line for text in sources for line in text.splitlines() if line.strip().startswith(">>> ")]
    assert len([line for line in examples if "+SKIP" not in line]) > 40
