"""What mkdocs cannot do by itself: run the tutorials, write them out as notebooks, and list what no build has run.

A tutorial is a script in the py:percent format, `tutorials/NAME.py`: every code cell is run, in a folder of its own,
and the page is made of what came out. A cell that draws says what is to be seen: `# %% alt="..."`. What cannot run
here is no code cell but a block of text that says what it needs, on a tutorial as on any other page:

    ```python needs="a GPU"
"""

from __future__ import annotations

import functools
import os
import re
import tempfile
from pathlib import Path
from typing import Any

DOCS = Path(__file__).parent
_BLOCK = re.compile(r"^```(?P<language>\w+)(?P<options>[^\n`]*)\n(?P<code>.*?)^```$", re.DOTALL | re.MULTILINE)
_NEEDS = re.compile(r'needs="([^"]*)"')
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
_LIST = "<!-- what no build has run -->"


def blocks(text: str) -> list[tuple[str, str, str, str | None]]:
    """Return language, options, code and what it needs (None: nothing) of each fenced block of a Markdown page."""
    found = []
    for match in _BLOCK.finditer(text):
        needs = _NEEDS.search(match["options"])
        found.append((match["language"], match["options"].strip(), match["code"], needs and needs[1]))
    return found


def tutorials() -> list[Path]:
    """Return the scripts of the tutorials."""
    return sorted((DOCS / "tutorials").glob("*.py"))


def on_files(files: Any, config: Any) -> Any:
    """Add a page and a notebook for each tutorial, and the changelog."""
    from mkdocs.structure.files import File

    changes = (DOCS.parent / "CHANGELOG.md").read_text(encoding="utf-8")
    files.append(File.generated(config, "reference/changelog.md", content=changes))
    for script in tutorials():
        for name, content in run(script.stem, script.read_text(encoding="utf-8")).items():
            files.append(File.generated(config, f"tutorials/{name}", content=content))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Say of each block what it needs; fill the page that lists them all."""
    if _LIST in markdown:
        markdown = markdown.replace(_LIST, _listed(files))
    depth = page.file.src_uri.count("/")
    return _BLOCK.sub(lambda match: _marked(match, "../" * depth + "reference/needs.md"), markdown)


def _marked(match: re.Match[str], listed: str) -> str:
    needs = _NEEDS.search(match["options"])
    if needs is None:
        return match[0]
    return (
        f"*Not run when this page was built: it needs {needs[1]} ([all of these]({listed})).*\n\n"
        f"```{match['language']}\n{match['code']}```"
    )


def _listed(files: Any) -> str:
    lines = []
    for file in sorted(files.documentation_pages(), key=lambda file: file.src_uri):
        marked = [(needs, code) for _, _, code, needs in blocks(file.content_string) if needs is not None]
        if marked:
            lines.append(f"- [{file.src_uri.removesuffix('.md')}](../{file.src_uri})")
        for needs, code in marked:
            first, *rest = code.strip().split("\n")
            lines.append(f"    - {needs}: `{first.rstrip(chr(92)).strip()}`{' ...' if rest else ''}")
    return "\n".join(lines)


@functools.cache  # `mkdocs serve` runs a tutorial again when it has changed, and no other
def run(name: str, script: str) -> dict[str, str | bytes]:
    """Return the files that a tutorial becomes: NAME.md, NAME.ipynb and its pictures.

    Raises:
        RuntimeError: If a cell fails.
        ValueError: If it has no title, or a picture no text for those who cannot see it.
    """
    import jupytext
    import nbclient
    import nbformat

    notebook = jupytext.reads(script, fmt="py:percent")
    if not notebook.cells or not str(notebook.cells[0].source).startswith("# "):
        raise ValueError(f"tutorials/{name}.py must begin with a text cell whose first line is the title, '# ...'.")
    for cell in notebook.cells:
        if cell.cell_type == "code" and re.search(r"^\s*[!%]", cell.source, re.MULTILINE):
            raise ValueError(f"tutorials/{name}.py: a line for the shell fails without a word:\n{cell.source}")
    with tempfile.TemporaryDirectory() as folder:
        resources = {"metadata": {"path": folder}}
        environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "COLUMNS": "100"}
        client = nbclient.NotebookClient(
            notebook, timeout=900, kernel_name="python3", resources=resources, force_raise_errors=True
        )
        try:
            client.execute(env=environment)
        except Exception as error:
            raise RuntimeError(f"tutorials/{name}.py: {_COLOUR.sub('', str(error))}") from None
    files: dict[str, str | bytes] = {}
    page = []
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
        page.append(_page_of(cell, name, files))
    how = "[how](index.md#how-to-use-one)"
    where = f"[This page as a notebook]({name}.ipynb) and [as a script]({name}.py), to run it yourself ({how})."
    title, _, rest = "\n\n".join(page).partition("\n")
    files[f"{name}.md"] = f"{title}\n\n{where}\n{rest}\n"
    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    files[f"{name}.ipynb"] = nbformat.writes(notebook)
    return files


def _page_of(cell: Any, name: str, files: dict[str, str | bytes]) -> str:
    if cell.cell_type == "markdown":
        return str(cell.source)
    parts = [_fenced("python", cell.source)] if cell.source else []
    # Progress is for who waits; and what was printed is one text, however it arrived.
    kept: list[Any] = []
    for output in cell.get("outputs", []):
        if output.get("name") == "stdout" and kept and kept[-1].get("name") == "stdout":
            kept[-1].text += output.text
        elif output.get("name") != "stderr":
            kept.append(output)
    cell.outputs = kept
    for output in cell.outputs:
        data = output.get("data", {})
        if output.output_type == "stream":
            parts.append(_fenced("{.text .output}", _COLOUR.sub("", output.text)))
        elif "image/png" in data:
            parts.append(_picture(data["image/png"], cell, name, files))
        elif 'class="dataframe"' in data.get("text/html", ""):
            parts.append(_table(data["text/html"]))
        elif "text/markdown" in data:
            parts.append(data["text/markdown"])
        elif "text/plain" in data:
            parts.append(_fenced("{.text .output}", data["text/plain"]))
    return "\n\n".join(parts)


def _fenced(language: str, text: str) -> str:
    """Return a block whose fence is longer than any in the text."""
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{text.rstrip()}\n{fence}"


def _picture(png: str, cell: Any, name: str, files: dict[str, str | bytes]) -> str:
    import base64

    if not str(cell.metadata.get("alt", "")).strip():
        raise ValueError(f"tutorials/{name}.py: this cell draws, and has no alt=:\n{cell.source}")
    number = sum(file.endswith(".png") for file in files)
    files[f"{name}-{number}.png"] = base64.b64decode(png)
    return f"![{cell.metadata['alt']}]({name}-{number}.png)"


def _table(html: str) -> str:
    """Return a data frame's table without pandas's own style, so that it looks as the other tables of the site."""
    html = re.sub(r"<style.*?</style>", "", html, flags=re.DOTALL)
    html = re.sub(r"<table[^>]*>", "<table>", html).replace("<div>", "").replace("</div>", "")
    html = re.sub(r"\n\s*", "", html)  # in one line: Markdown would end a table at an empty one
    return f'<div class="frame">{html}</div>'
