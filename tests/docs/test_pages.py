"""What the pages show runs, in the order of each page, on smaller data; what has a mark is at least read."""

import re
import shlex
import shutil
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner
from typer.main import get_command

DOCS = Path(__file__).parents[2] / "docs"
sys.path.insert(0, str(DOCS))
from hooks import blocks, tutorials  # noqa: E402

PAGES = sorted(DOCS.rglob("*.md"))
SIZES = "subjects=24, images=150, preliminary_images=12, final_images=2"
SMALLER = {
    "subjects=40, seed=1": f"{SIZES}, seed=1",
    "subjects=40": SIZES,
    'recipe="quick"': 'recipe=ldl.Recipe.preset("quick", image_size=32, epochs=1)',
    "head_epochs=20": "head_epochs=2",
    'seeds=[0, 1], store="runs/leak"': 'folds=[0], store="runs/leak"',
    'seeds=[0, 1], store="runs/long"': 'store="runs/long"',
}
# For the command line, which takes five nets by default.
FAST = ["--backbones", "cnn", "--no-report", "--set", "epochs=1", "--image-size", "32"]
FAST += [f"-o{size}" for size in SIZES.split(", ")]


def name(page):
    return str(page.relative_to(DOCS))


def text_of(page):
    """Return a page's text; of a tutorial that of its cells."""
    text = page.read_text(encoding="utf-8")
    return text if page.suffix == ".md" else re.sub(r"^# ?", "", text, flags=re.MULTILINE)


def command_lines(code):
    """Yield the words of each `leukemia-dl` line of a console block, without comments and what the shell does."""
    for line in code.replace("\\\n", " ").splitlines():
        words = shlex.split(line.removeprefix("$ "), comments=True)
        if words[:1] == ["leukemia-dl"]:
            end = next((i for i, word in enumerate(words) if word in (">", "|", "&&")), len(words))
            yield words[1:end]


def command():
    from leukemia_dl.cli import app

    return get_command(app)


@pytest.fixture(scope="module")
def laptop(tmp_path_factory):
    """A folder with what pages take for granted: a run, predictions of some program, a cell."""
    import leukemia_dl as ldl

    folder = tmp_path_factory.mktemp("laptop")
    sizes = {key: int(value) for key, value in (pair.split("=") for pair in SIZES.split(", "))}
    dataset = ldl.Dataset.load("synthetic", root=folder / "data" / "synthetic", **sizes)
    recipe = ldl.Recipe.preset("quick", image_size=32, epochs=1)
    bench = ldl.Benchmark(dataset, ["cnn"], recipe=recipe, protocol="kfold", folds=[0], store=folder / "runs" / "quick")
    bench.run()
    bench.predictions().to_csv(folder / "predictions.csv", index=False)
    shutil.copytree(folder / "runs" / "quick", folder / "runs" / "first")
    shutil.copy(dataset.paths[0], folder / "cell.bmp")
    return folder


RUNNABLE = [
    page
    for page in PAGES
    if any(
        needs is None and "exec=" not in options and language in ("python", "console")
        for language, options, _, needs in blocks(page.read_text(encoding="utf-8"))
    )
]


@pytest.mark.parametrize("page", RUNNABLE, ids=name)
def test_what_a_page_shows_runs(page, laptop, tmp_path, monkeypatch):
    pytest.importorskip("tensorflow")
    shutil.copytree(laptop, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    names = {"__name__": f"page_{page.stem}"}
    for language, options, code, needs in blocks(page.read_text(encoding="utf-8")):
        if needs is not None or "exec=" in options:
            continue
        if language == "python":
            for printed, smaller in SMALLER.items():
                code = code.replace(printed, smaller) if smaller not in code else code
            exec(compile(code, name(page), "exec"), names)
        elif language == "console":
            for words in command_lines(code):
                fast = FAST if words[0] == "benchmark" else FAST[-4:] if words[0] == "preview" else []
                answer = CliRunner().invoke(command(), [*words, *fast], env={"COLUMNS": "200"})
                assert answer.exit_code == 0, (words, answer.output, answer.exception)
    for test in [value for key, value in names.items() if key.startswith("test_")]:
        if not getattr(test, "pytestmark", None):
            test()


@pytest.mark.parametrize("page", [*PAGES, *tutorials()], ids=name)
def test_command_lines_can_be_parsed(page):
    """Also those that need a download or a cluster: the command and its options are there, and take such values."""
    for language, _, code, _ in blocks(text_of(page)):
        assert language != "bash", "console, like the others"
        for words in command_lines(code) if language == "console" else ():
            parsed = command()
            while hasattr(parsed, "commands") and not words[0].startswith("-"):
                parsed = parsed.commands[words.pop(0)]
            if hasattr(parsed, "commands"):
                assert words[0] in [option for one in parsed.params for option in one.opts]
            else:
                parsed.make_context(parsed.name, words)


@pytest.mark.parametrize("page", [*PAGES, *tutorials()], ids=name)
def test_marked_python_is_python(page):
    for language, _, code, needs in blocks(text_of(page)):
        if language == "python" and needs is not None:
            compile(code, name(page), "exec")
            assert needs.strip()


@pytest.mark.parametrize("page", [*PAGES, *tutorials(), DOCS.parent / "README.md"], ids=lambda page: page.name)
def test_every_block_is_in_a_form_that_is_read(page):
    """Plain fences from the first column: in others a mark, or a command that is wrong, would not be seen."""
    text = text_of(page)
    assert "\r" not in text
    for language, options, code, needs in blocks(text):
        assert ("needs" in options) == bool(needs), options
        assert not re.search(r"^(python -m leukemia_dl|\w+=\S+ leukemia-dl)", code, re.MULTILINE), code
        assert language in ("python", "console", "text", "toml", "sh", "csv"), language
    rest = hooks_rest(text)
    assert not re.search(r"^\s*(`{3,}|~{3,})", rest, re.MULTILINE), rest


def hooks_rest(text):
    """Return a page without the blocks that are read."""
    from hooks import _BLOCK

    return _BLOCK.sub("", text)


def test_pages_were_found():
    assert len(RUNNABLE) >= 8
    assert len(PAGES) >= 25


def anchors(page):
    """Return the anchors of a page's headings, as mkdocs makes them."""
    text = re.sub(r"^```.*?^```$", "", text_of(page), flags=re.DOTALL | re.MULTILINE)
    headings = re.findall(r"^#+ (.*)$", text, flags=re.MULTILINE)
    plain = [re.sub(r"[^\w\s-]", "", heading).strip().lower() for heading in headings]
    return {re.sub(r"[-\s]+", "-", heading) for heading in plain}


@pytest.mark.parametrize("page", [*PAGES, *tutorials(), DOCS.parent / "README.md"], ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    text = re.sub(r"^```.*?^```$", "", text_of(page), flags=re.DOTALL | re.MULTILINE)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if target.startswith("http"):
            continue
        path, _, anchor = target.partition("#")
        there = (page.parent / path).resolve() if path else page
        script = there.with_suffix(".py")
        if script in tutorials():
            there = script
        generated = there.relative_to(DOCS.parent).as_posix() == "docs/reference/changelog.md"
        assert generated or there.exists(), target
        if anchor and "reference/api" not in str(there):
            assert anchor in anchors(there), target
