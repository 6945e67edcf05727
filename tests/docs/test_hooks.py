"""What the site's build does with a page and a tutorial."""

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

DOCS = Path(__file__).parents[2] / "docs"
sys.path.insert(0, str(DOCS))
import hooks  # noqa: E402

PAGE = """# Title

```python
x = 1
```

```console needs="a network"
pip install nothing | cat
```

```python exec="true" source="above"
print("```")
```
"""


def test_blocks_know_their_language_options_and_needs():
    found = hooks.blocks(PAGE)
    assert found[0] == ("python", "", "x = 1\n", None)
    assert found[1] == ("console", 'needs="a network"', "pip install nothing | cat\n", "a network")
    assert found[2][:2] == ("python", 'exec="true" source="above"')


def test_a_mark_becomes_a_sentence_and_the_other_blocks_stay():
    page = SimpleNamespace(file=SimpleNamespace(src_uri="guides/here.md"))
    text = hooks.on_page_markdown(PAGE, page, None, None)
    assert "needs=" not in text
    assert "it needs a network ([all of these](../reference/needs.md))" in text
    assert "```console\npip install nothing | cat\n```" in text
    assert '```python exec="true" source="above"\n' in text
    assert text.startswith("# Title\n\n```python\nx = 1\n```\n")


def test_the_list_names_every_mark_and_where_it_is():
    pages = [SimpleNamespace(src_uri="guides/here.md", content_string=PAGE)]
    files = SimpleNamespace(documentation_pages=lambda: pages)
    page = SimpleNamespace(file=SimpleNamespace(src_uri="reference/needs.md"))
    text = hooks.on_page_markdown("<!-- what no build has run -->", page, None, files)
    assert text == "- [guides/here](../guides/here.md)\n    - a network: `pip install nothing | cat`"


def test_a_tutorial_becomes_a_page_a_notebook_and_pictures():
    pytest.importorskip("nbclient")
    script = (
        "# %% [markdown]\n# # A title\n#\n# Text.\n\n"
        "# %%\nimport sys\nprint('out')\nprint('progress', file=sys.stderr)\n\n"
        "# %%\nimport pandas as pd\npd.DataFrame({'a': [1]})\n\n"
        '# %% alt="a line"\nfrom matplotlib.figure import Figure\n'
        "from leukemia_dl.reporting.plots import new_figure\nnew_figure(4, 3)\n"
    )
    files = hooks.run("small", script)
    page = files["small.md"]
    assert page.startswith("# A title\n\n[This page as a notebook](small.ipynb)")
    assert "```{.text .output}\nout\n```" in page
    assert page.count("progress") == 1  # in the code
    assert '<div class="frame"><table><thead>' in page
    assert "![a line](small-0.png)" in page
    assert files["small-0.png"].startswith(b"\x89PNG")
    assert '"nbformat"' in files["small.ipynb"]
    with pytest.raises(ValueError, match="has no alt="):
        hooks.run("mute", script.replace(' alt="a line"', ""))


@pytest.mark.parametrize(
    ("script", "error", "says"),
    [
        ("# %% [markdown]\n# # T\n\n# %%\n1 / 0\n", RuntimeError, r"tutorials/odd\.py: .*ZeroDivisionError"),
        ('# %% [markdown]\n# # T\n\n# %% tags=["raises-exception"]\n1 / 0\n', RuntimeError, "ZeroDivisionError"),
        ("# %%\nprint(1)\n", ValueError, "must begin with a text cell"),
        ("# %% [markdown]\n# # T\n\n# %%\n# !ls\n", ValueError, "a line for the shell"),
    ],
)
def test_a_tutorial_that_fails_is_named(script, error, says):
    pytest.importorskip("nbclient")
    with pytest.raises(error, match=f"(?s){says}"):
        hooks.run("odd", script)


def test_what_a_cell_prints_stays_in_its_block():
    pytest.importorskip("nbclient")
    files = hooks.run("fence", "# %% [markdown]\n# # T\n\n# %%\nprint('`' * 3)\nprint('<b>bold</b>')\n")
    assert "````{.text .output}\n```\n<b>bold</b>\n````" in files["fence.md"]
