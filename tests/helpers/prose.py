"""The style of the project's English, as checks of proselint, and the passages that it applies to."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from proselint.registry.checks import Check, CheckResult, Padding
from proselint.registry.checks.types import Existence

MOST_WORDS = 35
_CODE, _LINK = re.compile(r"`[^`\n]*`"), re.compile(r"!?\[([^\]]*)\]\([^)]*\)")
_ITEM = re.compile(r"(#+|[-*>]|\d+\.|!!! \w+) ")


def sentences(text: str) -> Iterator[tuple[int, str]]:
    """Yield the sentences of a passage with their positions; of a description of values, `name: ...`, each part."""
    ends, start = r"[.!?][\"')*_]*\s+(?=[A-Z\"(*])" + (r"|;\s" if re.match(r"[-*]? ?\w+(, \w+)?: ", text) else ""), 0
    for end in [*(match.end() for match in re.finditer(ends, text)), len(text)]:
        if sentence := text[start:end].strip():
            yield start, sentence
        start = end


def _long(text: str, check: Check) -> Iterator[CheckResult]:
    for start, sentence in sentences(text):
        if (words := len(sentence.split())) > MOST_WORDS:
            yield CheckResult(check.path, f"{words} words: {sentence}", (start, start + len(sentence)), None)


def _without_subject(text: str, check: Check) -> Iterator[CheckResult]:
    for start, sentence in sentences(text):
        if re.match(r"[\W_]*(What|That|Those|Whoever)\b", sentence) and not sentence.endswith("?"):
            yield CheckResult(check.path, f"begins without a noun: {sentence}", (start, start + len(sentence)), None)


def _without_zero(text: str, check: Check) -> Iterator[CheckResult]:
    for found in re.finditer(r"(?<![\w./)\]])\.\d+\b", text):
        yield CheckResult(check.path, f"write 0{found[0]}", found.span(), None)


def _words(name: str, *items: str, message: str) -> Check:
    return Check(check_type=Existence(items, padding=Padding.WORDS_IN_TEXT), path=f"ours.{name}", message=message)


_VERBS = "is|are|was|were|has|had|does|did|can|cannot|may|must|would|will|comes|goes|makes|lies|stands"
STYLE = (
    Check(check_type=_long, path="ours.long"),
    Check(check_type=_without_subject, path="ours.without_subject"),
    Check(check_type=_without_zero, path="ours.without_zero"),
    _words("relative_clause", f"(?:what|whatever) (?:{_VERBS})", message="name the thing: '{}'"),
    _words(
        "dialect", "likewise", "nobody", "told", "tells?", "telling", "mend(?:s|ed|ing)?", "whoever", "whatever",
        "of one's own", "mourned", "takes those excuses away", "crosses nothing", message="dialect: '{}'",
    ),
)  # fmt: skip


def passages(path: Path) -> Iterator[tuple[int, str]]:
    """Yield the paragraphs, items, headings and cells of a page, or of a module's docstrings, with their line."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".md":
        yield from _of_markdown(text, 1)
    elif "jupytext" in text or "# %%" in text:
        yield from _of_markdown("\n".join(line[2:] if line[:2] == "# " else "" for line in text.splitlines()), 1)
    else:
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and (found := ast.get_docstring(node)):
                yield from _of_markdown(re.sub(r"^\s*>>>.*$", "", found, flags=re.MULTILINE), node.body[0].lineno)


def _of_markdown(text: str, first: int) -> Iterator[tuple[int, str]]:
    blank = re.sub(
        r"^ *```.*?^ *```$|\A---$.*?^---$", lambda block: "\n" * block[0].count("\n"), text, flags=re.M | re.S
    )
    start, held = first, list[str]()
    for line, raw in enumerate([*blank.splitlines(), ""], first):
        words = raw.strip()
        begins = not words or words[0] == "|" or words.startswith("%%") or _ITEM.match(words)
        begins = begins or re.match(r"\w+: |\w+:$", words) or (held and held[0].startswith("#"))
        if begins and held:
            yield start, _plain(" ".join(held))
            held = []
        if words and words[0] == "|":
            yield from ((line, _plain(cell.strip())) for cell in words.strip("|").split("|"))
        elif words and not words.startswith("%%"):
            start, held = (line if not held else start), [*held, words]


def _plain(text: str) -> str:
    """Return a passage without marks, with `code` as one word."""
    return re.sub(
        r"\*\*|(?<!\w)_|_(?!\w)", "", _LINK.sub(r"\1", _CODE.sub("Code", re.sub(rf"\A{_ITEM.pattern}", "", text)))
    )
