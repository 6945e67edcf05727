"""The example plugin, built and installed by pip into an environment of its own, used there, and uninstalled again."""

import json
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "examples" / "leukemia-dl-tiny"


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    """A fresh environment that sees the packages of this one, but for what is installed into it."""
    root = tmp_path_factory.mktemp("environment")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", root], check=True)
    (site,) = root.glob("lib/python*/site-packages") if sys.platform != "win32" else root.glob("Lib/site-packages")
    lines = [sysconfig.get_path("purelib"), str(Path(__file__).parents[2] / "src")]
    (site / "shared.pth").write_text("\n".join(lines) + "\n")
    return root / ("Scripts" if sys.platform == "win32" else "bin")


def run(*command, status=0):
    answer = subprocess.run([str(part) for part in command], capture_output=True, text=True, timeout=600)
    assert answer.returncode == status, answer.stdout + answer.stderr
    return answer.stdout + answer.stderr


@pytest.fixture(scope="module")
def installed(environment, tmp_path_factory):
    source = tmp_path_factory.mktemp("source") / FOLDER.name
    shutil.copytree(FOLDER, source)  # building leaves files behind
    python = environment / "python"
    assert "tiny" not in run(python, "-m", "leukemia_dl", "backbones").split()
    quiet = ["--no-index", "--no-deps", "--no-build-isolation", "--disable-pip-version-check", "-q"]
    run(python, "-m", "pip", "install", *quiet, source)
    yield python
    run(python, "-m", "pip", "uninstall", "-y", "-q", "leukemia-dl-tiny")
    assert "tiny" not in run(python, "-m", "leukemia_dl", "backbones").split()


def test_it_is_listed_with_its_plugin_and_version(installed):
    program = "import leukemia_dl as l; print(l.backbone_table().set_index('backbone').T.to_json())"
    table = json.loads(run(installed, "-c", program).splitlines()[-1])
    for name in ("tiny", "mobilenet_v2", "resnet101"):
        assert (table[name]["plugin"], table[name]["version"]) == ("leukemia-dl-tiny", "0.1.0")
    assert table["vgg16"]["plugin"] == "leukemia-dl"


def test_it_holds_every_check(installed):
    pytest.importorskip("keras")
    run(installed, "-c", "import leukemia_dl as l, leukemia_dl.testing as t; t.check_backbone(l.get_backbone('tiny'))")


@pytest.mark.parametrize(
    ("others", "size"),
    [
        pytest.param(("cnn",), 32, marks=pytest.mark.slow, id="one"),
        pytest.param(("vgg16", "resnet50", "inception_v3", "xception", "cnn"), 75, marks=pytest.mark.slow, id="five"),
    ],
)
def test_it_trains_beside_others(installed, tmp_path, others, size):
    pytest.importorskip("keras")
    small = [f"-o{pair}" for pair in ("subjects=12", "images=60", "preliminary_images=12", "final_images=2")]
    names = ["tiny", *others]
    output = run(
        installed, "-m", "leukemia_dl", "benchmark", "--dataset", "synthetic", *small, "--backbones", ",".join(names),
        "--image-size", size, "--set", "epochs=1", "--store", tmp_path / "store",
    )  # fmt: skip
    assert "tiny" in output
    import pandas as pd

    frame = pd.read_csv(tmp_path / "store" / "results.csv").set_index("backbone")
    assert frame.loc[names, "status"].tolist() == ["ok"] * len(names)
    assert frame.loc["tiny", "plugin"] == "leukemia-dl-tiny"
    assert frame.loc["tiny", "plugin_version"] == "0.1.0"
    assert frame.loc["tiny", "parameters"] == 5_088 + 32 * 2 + 2
