"""Text from files and plugins, such as names and messages, made safe to show."""

import unicodedata

__all__ = ["printable"]


def printable(text: str, kept: str = "\n\t") -> str:
    r"""Return a text whose control, direction and surrogate characters are escaped but `kept`: "\x1b" for ESC."""
    if text.isprintable():
        return text
    # Joiners shape words of several scripts and emoji.
    unusual = set(text) - {*kept, "\u200c", "\u200d"}
    odd = [c for c in unusual if unicodedata.category(c) in ("Cc", "Cf", "Cs", "Zl", "Zp")]
    return text.translate({ord(c): c.encode("unicode_escape").decode() for c in odd})
