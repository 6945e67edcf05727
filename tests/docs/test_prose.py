"""README, pages, tutorials and docstrings keep the style of tests/helpers/prose.py."""

from pathlib import Path

import pytest

pytest.importorskip("proselint")
import prose

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md")]
PAGES += [*sorted(ROOT.glob("docs/**/*.md")), *sorted(ROOT.glob("docs/tutorials/*.py"))]
SOURCES = sorted((ROOT / "src").rglob("*.py"))


def findings(path):
    return [
        f"{path.relative_to(ROOT)}:{line} {result.check_path}: {result.message}"
        for line, text in prose.passages(path)
        for check in prose.STYLE
        for result in check.check_with_flags(text)
    ]


@pytest.mark.parametrize("paths", [PAGES, SOURCES], ids=["pages", "docstrings"])
def test_no_finding(paths):
    found = [finding for path in paths for finding in findings(path)]
    assert not found, "\n".join(found)
