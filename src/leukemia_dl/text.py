"""Text for people: names from files and plugins made safe to show, counts and lists in words."""

import unicodedata
from collections.abc import Sequence


def printable(text: str, kept: str = "\n\t") -> str:
    r"""Return a text whose control, direction and surrogate characters are escaped but `kept`: "\x1b" for ESC."""
    if text.isprintable():
        return text
    unusual = set(text) - {*kept, "\u200c", "\u200d"}  # joiners shape words of several scripts and emoji
    odd = [c for c in unusual if unicodedata.category(c) in ("Cc", "Cf", "Cs", "Zl", "Zp")]
    return text.translate({ord(c): c.encode("unicode_escape").decode() for c in odd})


def duration(seconds: float) -> str:
    """Return seconds as people say them: "40 s", "12 min", "3 h 10 min"."""
    if seconds < 99.5:
        return "less than 1 s" if seconds < 1 else f"{round(seconds)} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60} min"


def counted(number: int, noun: str) -> str:
    """Return "1 image" or "1,200 images"."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def listed(names: Sequence[str]) -> str:
    """Return "a, b and c"."""
    return f"{', '.join(names[:-1])} and {names[-1]}" if len(names) > 1 else "".join(names)
