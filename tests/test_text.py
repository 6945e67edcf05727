"""Names and messages of strangers, made safe to show."""

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st
from markupsafe import Markup

from leukemia_dl.text import duration, printable


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\x1b[2Jb", "a\\x1b[2Jb"),
        ("gnp.\u202efdp", "gnp.\\u202efdp"),
        ("\u2066x\u2069\x85\x7f\u2028", "\\u2066x\\u2069\\x85\\x7f\\u2028"),
        ("half \ud800", "half \\ud800"),
        ("line\n\tnext", "line\n\tnext"),
        ("正常 é \u200d", "正常 é \u200d"),
    ],
)
def test_control_and_direction_characters_are_escaped(text, shown):
    """20.40: ESC and right-to-left overrides are written as escapes, other characters stay."""
    assert printable(text) == shown


@given(st.text(st.characters(), max_size=30))
def test_no_text_keeps_a_control_character(text):
    """20.40: also of any text, which can then be written as UTF-8."""
    shown = printable(text, kept="")
    left = {unicodedata.category(c) for c in shown if c not in "\u200c\u200d"}
    assert not left & {"Cc", "Cf", "Cs", "Zl", "Zp"}
    shown.encode("utf-8")


def test_markup_stays_markup():
    assert printable(Markup("<b>\x1b</b>")) == Markup("<b>\\x1b</b>")
    assert isinstance(printable(Markup("<b>\x1b</b>")), Markup)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.01, "less than 1 s"), (1, "1 s"), (40.4, "40 s"),
        (99, "99 s"), (100, "2 min"), (720, "12 min"), (5_900, "98 min"),
        (11_400, "3 h 10 min"), (170_000, "47 h 13 min"), (180_000, "50 h 0 min"),
    ],
)  # fmt: skip
def test_durations_are_said_as_people_say_them(seconds, text):
    assert duration(seconds) == text
