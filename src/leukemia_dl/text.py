"""Text for people: names from files and plugins made safe to show, counts and lists in words."""

import re
import unicodedata
from collections.abc import Sequence
from typing import Any

__all__ = ["UNKNOWN_NAMES", "counted", "duration", "is_unknown", "listed", "name_key", "printable"]

_POINT_ZERO = re.compile(r"(\d+)\.0+", re.ASCII)
UNKNOWN_NAMES = frozenset({"", "-", "?", "#n/a", "<na>", "n/a", "na", "nan", "none", "null", "unknown"})


def is_unknown(name: Any) -> bool:
    """Return whether a patient's name is empty or a word for an unknown one, such as "n/a" or "-"."""
    return name is None or str(name).strip().lower() in UNKNOWN_NAMES


def name_key(name: str) -> str:
    """Return a key that is equal for spellings of a name that differ only in case, spaces or a trailing `.0`."""
    text = " ".join(unicodedata.normalize("NFC", name).casefold().split())
    return found[1] if (found := _POINT_ZERO.fullmatch(text)) else text


def printable(text: str, kept: str = "\n\t") -> str:
    r"""Return a text whose control, direction and surrogate characters are escaped but `kept`: "\x1b" for ESC."""
    if text.isprintable():
        return text
    # Joiners shape words of several scripts and emoji.
    unusual = set(text) - {*kept, "\u200c", "\u200d"}
    odd = [c for c in unusual if unicodedata.category(c) in ("Cc", "Cf", "Cs", "Zl", "Zp")]
    return text.translate({ord(c): c.encode("unicode_escape").decode() for c in odd})


def duration(seconds: float) -> str:
    """Return seconds as people say them: "less than 1 s", "40 s", "12 min", "3 h 10 min", "5 d 2 h"."""
    if seconds < 1:
        return "less than 1 s"
    if seconds < 99.5:
        return f"{round(seconds)} s"
    minutes = round(seconds / 60)
    if minutes < 100:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours < 48 else f"{hours // 24} d {hours % 24} h"


def counted(number: int, noun: str) -> str:
    """Return "1 image" or "1,200 images"."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def listed(names: Sequence[str]) -> str:
    """Return "a, b and c"."""
    return f"{', '.join(names[:-1])} and {names[-1]}" if len(names) > 1 else "".join(names)
