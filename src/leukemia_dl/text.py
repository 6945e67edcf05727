"""Text from files and plugins, such as names and messages, made safe to show."""

from __future__ import annotations

import unicodedata

__all__ = ["printable"]

# Joiners shape words of several scripts and emoji.
_JOINERS = "\u200c\u200d"
_CATEGORIES = {"Cc", "Cf", "Cs", "Zl", "Zp"}


def printable(text: str, kept: str = "\n\t") -> str:
    r"""Return a text in which control, direction and surrogate characters are escaped, such as "\x1b" for ESC.

    Args:
        text: Any text; a `markupsafe.Markup` stays one.
        kept: Control characters that stay as they are.
    """
    if text.isprintable():
        return text
    odd = {c for c in set(text) - {*kept, *_JOINERS} if unicodedata.category(c) in _CATEGORIES}
    return text.translate({ord(c): c.encode("unicode_escape").decode() for c in odd})
