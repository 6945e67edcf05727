"""Third-party plugins, installed for real: a folder with an entry point in it, on the path of a fresh process."""

import subprocess
import sys
import textwrap

import pytest

import command
from leukemia_dl import plugins
from leukemia_dl.models.backbones import registries

GOOD = """
from leukemia_dl import BackboneSpec, hookimpl

def build(inputs, weights):
    import keras
    return keras.layers.Conv2D(4, 3, strides=4, activation="relu")(inputs)

@hookimpl
def leukemia_dl_backbones():
    yield BackboneSpec(name="tiny", build=build, scaling="unit", native_size=32, min_size=8)
"""
PRINT = """
import leukemia_dl as ldl
print(",".join(ldl.list_backbones()))
for row in ldl.plugin_problems().itertuples():
    print(row.plugin, "|", row.problem)
"""


HOOK = "from leukemia_dl import hookimpl\n@hookimpl\ndef leukemia_dl_"
ODD_HOOK = """
import leukemia_dl as l
@l.hookimpl
def leukemia_dl_backbones():
    {}
"""


@pytest.fixture
def install(tmp_path):
    def install(name, source, version="1.2"):
        module = name.replace("-", "_")
        (tmp_path / f"{module}.py").write_text(source)
        info = tmp_path / f"{module}-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        (info / "entry_points.txt").write_text(f"[leukemia_dl]\n{module} = {module}\n")

    return install


@pytest.fixture
def python(tmp_path):
    def python(code, **environment):
        import os

        path = os.pathsep.join(filter(None, [str(tmp_path), os.environ.get("PYTHONPATH")]))
        env = {**os.environ, "PYTHONPATH": path, **environment}
        command = [sys.executable, "-c", textwrap.dedent(code)]
        return subprocess.run(command, capture_output=True, text=True, env=env, cwd=tmp_path)

    return python


def test_a_plugin_is_listed_with_its_version(install, python):
    install("leukemia-dl-tiny", GOOD)
    answer = python(
        "import leukemia_dl as ldl; print(ldl.backbone_table().set_index('backbone').loc['tiny'].to_dict())"
    )
    assert "'plugin': 'leukemia-dl-tiny', 'version': '1.2'" in answer.stdout, answer.stderr
    assert "'min_size': 8" in answer.stdout


BROKEN = [
    ("import not_there_at_all", "could not be loaded: ModuleNotFoundError"),
    ("raise SystemError('boom')", "could not be loaded: SystemError: boom"),
    ("x = 1", "no function marked with leukemia_dl.hookimpl"),
    ("from leukemia_dl import hookimpl\n@hookimpl\ndef leukemia_dl_backbone(): yield 1", "unknown hook"),
    (
        "from leukemia_dl import hookimpl\n@hookimpl\ndef leukemia_dl_backbones(value): yield 1",
        "Argument(s) {'value'} are declared in the hookimpl",
    ),
    (f"{HOOK}backbones(): yield 1", "must yield leukemia_dl.BackboneSpec or leukemia_dl.EncoderSpec records"),
    (
        "from leukemia_dl import hookimpl\nclass Odd: name = 'odd'\n@hookimpl\n"
        "def leukemia_dl_backbones(): yield Odd()",
        "must yield leukemia_dl.BackboneSpec or leukemia_dl.EncoderSpec records",
    ),
    (f"{HOOK}backbones(): return 1 / 0", "ZeroDivisionError"),
    (GOOD.replace("min_size=8", "min_size=64"), "min_size must be from 1 to native_size=32"),
    (GOOD.replace('scaling="unit"', 'scaling="imagenet"'), "scaling must be one of"),
]


def test_broken_plugins_are_reported_and_hide_no_other(install, python):
    for number, (source, _) in enumerate(BROKEN):
        install(f"aaa-broken-{number}", source)
    install("zzz-good", GOOD)
    answer = python(PRINT)
    listed, *problems = answer.stdout.splitlines()
    built_in = [spec.name for spec in registries["leukemia_dl_backbones"][1]]
    assert listed.split(",") == sorted([*built_in, "tiny"]), answer.stderr
    for number, (source, says) in enumerate(BROKEN):
        (line,) = (line for line in problems if line.startswith(f"aaa-broken-{number} |"))
        assert says in line, source
    assert "zzz-good" not in answer.stdout


def test_two_plugins_with_one_name_leave_the_others_listed(install, python):
    """20.41: neither is used, a lookup names both, and everything else is listed."""
    install("one", GOOD)
    install("two", GOOD, version="3.4")
    install("zzz", GOOD.replace('"tiny"', '"other"'))
    answer = python("import leukemia_dl as ldl; print(*ldl.list_backbones()); ldl.get_backbone('tiny')")
    built_in = [spec.name for spec in registries["leukemia_dl_backbones"][1]]
    assert answer.stdout.split() == sorted([*built_in, "other"]), answer.stderr
    said = "two provides 'tiny' (leukemia_dl_backbones), as one 1.2 does. Neither is used: uninstall one of them"
    assert said in answer.stderr.splitlines()[-1]


@pytest.mark.parametrize(("kind", "name"), [("backbones", "vgg16"), ("datasets", "folder")])
def test_a_plugin_does_not_take_the_name_of_a_built_in(install, python, kind, name):
    """20.41: the built-in one is used, and the plugin is named in a warning."""
    source = GOOD.replace('"tiny"', '"vgg16"')
    if kind == "datasets":
        source = f"{HOOK}datasets():\n    import leukemia_dl as l\n"
        source += "    yield l.DatasetSource('folder', print, l.DatasetInfo('folder', 'Mine', 'none', 'me'))"
    install("thief", source)
    table = {"backbones": "backbone_table", "datasets": "dataset_table"}[kind]
    answer = python(f"import leukemia_dl as ldl; print(*ldl.{table}()['plugin'].unique())\n{PRINT}")
    assert answer.stdout.splitlines()[0] == "leukemia-dl"
    said = f"provides {name!r} (leukemia_dl_{kind}), as leukemia-dl"
    assert said in answer.stdout.splitlines()[-1]
    assert "The one of leukemia-dl is used" in answer.stderr


@pytest.mark.parametrize(
    "where", ["import time; time.sleep({})", ODD_HOOK.format("import time; time.sleep({}); return ()")]
)
def test_a_plugin_that_takes_long_is_named_while_it_does(install, python, where):
    """20.41: a plugin that hangs at import or in a hook is named, with the way to do without it."""
    install("aaa-slow", where.format(1))
    program = "from leukemia_dl import plugins; plugins._PATIENCE_SECONDS = 0.2\n"
    answer = python(program + "import leukemia_dl as ldl; print(*ldl.list_backbones())")
    assert answer.stdout.startswith("cnn "), answer.stderr
    assert "Plugin aaa-slow (entry point aaa_slow) has been loading for 0.2 s." in answer.stderr


def test_problems_are_told_without_a_look_up(install, python):
    install("aaa", f"{HOOK}backbones(): return 1 / 0")
    install("bbb", f"{HOOK}datasets(): yield 1")
    install("one", GOOD)
    install("two", GOOD, version="3.4")
    code = """
        import leukemia_dl as ldl
        for row in ldl.plugin_problems().itertuples():
            print(row.plugin, row.entry_point, row.problem, sep=" | ")
    """
    answer = python(code)
    assert [line.split(": ")[0] for line in answer.stdout.splitlines()] == [
        "aaa | aaa | leukemia_dl_backbones raised ZeroDivisionError",
        "two | two | provides 'tiny' (leukemia_dl_backbones), as one 1.2 does. Neither is used",
        "bbb | bbb | leukemia_dl_datasets raised PluginError",
    ], answer.stderr


def test_plugins_can_be_switched_off(install, python):
    install("leukemia-dl-tiny", GOOD)
    assert ",tiny," not in python(PRINT, LEUKEMIA_DL_DISABLE_PLUGINS="1").stdout
    assert ",tiny," in python(PRINT, LEUKEMIA_DL_DISABLE_PLUGINS="0").stdout


def test_a_failed_lookup_mentions_plugins_with_problems(install, python):
    install("aaa-broken", "import not_there_at_all")
    answer = python("import leukemia_dl as ldl; ldl.get_backbone('resnet5')")
    assert "Did you mean 'resnet50'?" in answer.stderr
    assert "aaa-broken" in answer.stderr


def test_the_doctor_names_plugins_and_tells_a_problem_once(install, tmp_path, monkeypatch):
    pytest.importorskip("keras")
    install("leukemia-dl-tiny", GOOD)
    install("aaa-broken", "raise RuntimeError('no luck')")
    monkeypatch.syspath_prepend(tmp_path)
    plugins.forget()
    try:
        answer = command.run("doctor")
    finally:
        monkeypatch.undo()
        plugins.forget()
    assert "\nPlugins       leukemia-dl-tiny 1.2\n" in answer.stdout, answer.stderr
    assert answer.stdout.endswith("\nReady, but for the plugins named above.\n")
    assert (answer.stdout + answer.stderr).count("no luck") == 1


ENDS = ("import sys; sys.exit(0)", "class Odd(BaseException): pass\n    raise Odd('SystemExit')")


def test_plugins_that_end_the_process_do_not(install, python):
    """20.41: nor by an exception that `except Exception` does not catch."""
    sources = [ENDS[0], *map(ODD_HOOK.format, ENDS)]
    for number, source in enumerate(sources):
        install(f"aaa-exits-{number}", source)
    answer = python(PRINT)
    listed, *problems = answer.stdout.splitlines()
    assert listed.startswith("cnn,"), (answer.stdout, answer.stderr)
    found = [line for line in problems if line.startswith("aaa-exits-") and "SystemExit" in line]
    assert len(found) == len(sources), problems


def test_what_a_plugin_prints_is_no_part_of_a_table(install, python):
    install("loud", "print('at import')\n" + ODD_HOOK.format("print('in hook'); yield from ()"))
    call = (
        "from leukemia_dl.cli import main; import sys; sys.argv = 'leukemia-dl backbones --format csv'.split(); main()"
    )
    answer = python(call)
    assert answer.stdout.startswith("backbone,"), answer.stdout
    assert "at import" in answer.stderr
    assert "in hook" in answer.stderr


def test_a_source_without_its_record_is_a_problem(install, python):
    install("odd-source", "import leukemia_dl as l\n@l.hookimpl\ndef leukemia_dl_datasets():\n"
            "    yield l.DatasetSource('odd', lambda root: None, None)\n")  # fmt: skip
    answer = python("import leukemia_dl as l; print(len(l.dataset_table())); print(l.plugin_problems()['problem'][0])")
    assert answer.stdout.startswith("6\n"), answer.stderr
    assert "and a DatasetInfo" in answer.stdout


OWN_LAYER = """
from leukemia_dl import BackboneSpec, hookimpl

def build(name):
    def build(inputs, weights):
        import keras
        import own_layers
        return getattr(own_layers, name)()(keras.layers.Conv2D(4, 3, strides=4, activation="relu")(inputs))
    return build

@hookimpl
def leukemia_dl_backbones():
    for name in ("Twice", "Lost"):
        yield BackboneSpec(name=name.lower(), build=build(name), scaling="unit", native_size=32, min_size=8)
"""
LAYERS = """
import keras

@keras.saving.register_keras_serializable('twice')
class Twice(keras.layers.Layer):
    def call(self, x):
        return 2 * x

class Lost(keras.layers.Layer):
    def call(self, x):
        return x
"""


def test_a_net_with_a_layer_of_a_plugin_loads_in_a_new_process(install, python, tmp_path):
    """20.25: the plugin that the file names registers its layers; without it the error says what to install.

    `check_saving` loads in a new process: a layer that only this process registers does not pass.
    """
    pytest.importorskip("keras")
    install("leukemia-dl-twice", OWN_LAYER)
    (tmp_path / "own_layers.py").write_text(LAYERS)
    made = python("""
        import keras, own_layers
        import leukemia_dl as ldl
        from leukemia_dl.models import Classifier, build_model
        from leukemia_dl.testing.checks import check_saving
        spec = ldl.get_backbone("twice")
        check_saving(spec)
        trial = {"backbone": "twice", "plugin": "leukemia-dl-twice", "plugin_version": "1.2"}
        Classifier(build_model(spec, 16, 2), ("a", "b"), ldl.Pipeline.default(16), {"trial": trial}).save("net.keras")
        keras.saving.register_keras_serializable("here")(own_layers.Lost)
        check_saving(ldl.get_backbone("lost"))
    """)
    assert "AssertionError: lost: a saved classifier does not load in a new process: " in made.stderr, made.stderr
    assert "Lost" in made.stderr.splitlines()[-1]
    load = """
        import os
        import leukemia_dl as ldl
        from leukemia_dl import plugins
        os.environ["LEUKEMIA_DL_DISABLE_PLUGINS"] = "1"
        try:
            ldl.load_classifier("net.keras")
        except ldl.errors.LeukemiaDLError as error:
            print(error)
        del os.environ["LEUKEMIA_DL_DISABLE_PLUGINS"]
        plugins.forget()
        print(ldl.load_classifier("net.keras").model.name)
    """
    *said, name = python(load).stdout.splitlines()
    assert "Its backbone 'twice' is of leukemia-dl-twice 1.2, which has to be there." in said[-1]
    assert name == "twice"
