"""What `pip install` brings: built here, looked into, and used in an environment that does not know the repository."""

import ast
import re
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import zipfile
from email.parser import HeaderParser
from pathlib import Path

import pytest

import leukemia_dl

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def run(*command, **keywords):
    answer = subprocess.run([str(part) for part in command], capture_output=True, text=True, timeout=600, **keywords)
    assert answer.returncode == 0, answer.stdout + answer.stderr
    return answer.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """Return the wheel and the sdist."""
    pytest.importorskip("hatchling")
    folder = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "hatchling", "build", "-d", folder, cwd=ROOT)
    (wheel,), (sdist,) = folder.glob("*.whl"), folder.glob("*.tar.gz")
    return wheel, sdist


@pytest.fixture(scope="module")
def installed(built, tmp_path_factory):
    """A fresh environment with the wheel, that sees the dependencies of this one, but no file of the repository."""
    root = tmp_path_factory.mktemp("environment")
    run(sys.executable, "-m", "venv", "--without-pip", root)
    (site,) = root.glob("lib/python*/site-packages") if sys.platform != "win32" else root.glob("Lib/site-packages")
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    scripts = root / ("Scripts" if sys.platform == "win32" else "bin")
    run(
        sys.executable,
        "-m",
        "pip",
        "--python",
        scripts / "python",
        "install",
        "-q",
        "--no-index",
        "--no-deps",
        "--force-reinstall",
        built[0],
    )
    return scripts


def names_in(wheel):
    with zipfile.ZipFile(wheel) as archive:
        return sorted(name for name in archive.namelist() if ".dist-info/" not in name)


def test_the_wheel_holds_the_package_and_nothing_else(built):
    source = ROOT / "src"
    ours = [path for path in (source / "leukemia_dl").rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    assert names_in(built[0]) == sorted(path.relative_to(source).as_posix() for path in ours)
    assert {path.suffix for path in ours} == {".py", ".typed", ".csv", ".html", ".css", ".js", ".md", ".toml"}
    assert built[0].stat().st_size < 1e6
    assert built[0].name.endswith("-py3-none-any.whl")


def test_the_wheel_says_what_pyproject_says(built):
    with zipfile.ZipFile(built[0]) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith("METADATA")]
        metadata = HeaderParser().parsestr(archive.read(name).decode())
    assert metadata["License-Expression"] == "MIT"
    assert metadata["Requires-Python"] == PROJECT["requires-python"]
    required = [line for line in metadata.get_all("Requires-Dist") if "extra ==" not in line]
    assert len(required) == len(PROJECT["dependencies"])
    assert set(metadata.get_all("Provides-Extra")) == set(PROJECT["optional-dependencies"])


def test_a_wheel_from_the_sdist_is_the_same(built, tmp_path):
    with tarfile.open(built[1]) as archive:
        names = archive.getnames()
        archive.extractall(tmp_path, filter="data")
    (folder,) = tmp_path.iterdir()
    for there in (".ci/run", "Makefile", "constraints.txt", "tests/test_packaging.py", "docs/hooks.py", "SECURITY.md"):
        assert (folder / there).is_file(), there
    pictures = [name.split("/", 1)[1] for name in names if re.search(r"\.(bmp|png|jpe?g|tiff?|npz|npy)$", name)]
    assert all(name.startswith(("docs/images/", "tests/reporting/pictures/")) for name in pictures)
    run(sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", tmp_path / "again", cwd=folder)
    (wheel,) = (tmp_path / "again").glob("*.whl")
    assert names_in(wheel) == names_in(built[0])


def test_it_works_where_the_repository_is_not(installed, tmp_path):
    pytest.importorskip("tensorflow")
    where = run(installed / "python", "-c", "import leukemia_dl; print(leukemia_dl.__file__)", cwd=tmp_path).strip()
    assert Path(where).is_relative_to(installed.parent)
    version = f"leukemia-dl {leukemia_dl.__version__}\n"
    assert run(installed / "leukemia-dl", "--version", cwd=tmp_path) == version
    assert run(installed / "python", "-m", "leukemia_dl", "--version", cwd=tmp_path) == version
    sizes = ("subjects=12", "images=72", "preliminary_images=12", "final_images=2")
    table = run(
        installed / "leukemia-dl", "benchmark", "--dataset", "synthetic", *(f"-o{size}" for size in sizes),
        "--backbones", "cnn", "--image-size", "32", "--set", "epochs=1", "--store", "store", cwd=tmp_path,
    )  # fmt: skip
    assert "cell_size" in table
    assert (tmp_path / "store" / "report.html").stat().st_size > 50_000  # with templates, style and published results
    program = "import leukemia_dl as l; print(len(l.published_results('c_nmc_2019')), l.plugin_problems().empty)"
    rows, without_problems = run(installed / "python", "-c", program, cwd=tmp_path).split()
    assert int(rows) > 10
    assert without_problems == "True"


def test_one_version_everywhere():
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert f"\nversion: {PROJECT['version']}\n" in citation
    assert PROJECT["version"] == leukemia_dl.__version__


def test_every_extra_is_documented():
    guide = (ROOT / "docs" / "guides" / "install.md").read_text(encoding="utf-8")
    for extra in PROJECT["optional-dependencies"]:
        assert f"`{extra}`" in guide, extra


def test_the_workflows_pin_every_action():
    used = [
        line
        for path in (ROOT / ".github" / "workflows").glob("*.yml")
        for line in path.read_text(encoding="utf-8").splitlines()
        if "uses:" in line
    ]
    assert len(used) >= 8
    for line in used:
        assert re.search(r"uses: [\w-]+/[\w-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+$", line), line


def test_the_constraints_name_versions_only():
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    assert sum("==" in line for line in lines) > 100
    assert all(line.startswith("#") or re.fullmatch(r"[A-Za-z0-9._-]+==[0-9A-Za-z.+]+", line) for line in lines)


def test_scikit_learn_is_one_whose_shuffled_grouped_folds_are_right():
    """20.34: before 1.8 StratifiedGroupKFold with shuffle drew other, wrong folds; constraints.txt keeps to it too."""
    (floor,) = re.findall(r"scikit-learn>=(\d+)\.(\d+)", " ".join(PROJECT["dependencies"]))
    (fixed,) = re.findall(r"^scikit-learn==(\d+)\.(\d+)", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert (1, 8) <= tuple(map(int, floor)) <= tuple(map(int, fixed))


def test_the_group_docs_has_what_the_tutorials_import():
    """20.35: `make docs` works as the first target of a fresh clone, without the packages of `make test`."""
    groups = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["dependency-groups"]
    known = {re.split(r"[^\w-]", name)[0] for name in [*PROJECT["dependencies"], *groups["docs"]]}
    known |= {"leukemia_dl", *sys.stdlib_module_names}
    imported = set()
    for path in [*(ROOT / "docs").rglob("*.py"), *(ROOT / "docs").rglob("*.md")]:
        text = path.read_text(encoding="utf-8")
        code = [text] if path.suffix == ".py" else re.findall(r"```python exec.*?\n(.*?)```", text, re.DOTALL)
        for node in (node for part in code for node in ast.walk(ast.parse(part))):
            if isinstance(node, ast.Import):
                imported |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                imported.add(node.module.split(".")[0])
    assert "hypothesis" in imported
    assert {{"PIL": "pillow", "sklearn": "scikit-learn"}.get(name, name) for name in imported} <= known
