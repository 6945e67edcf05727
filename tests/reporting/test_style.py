"""Fonts of figures."""

import logging
import warnings

import numpy as np
import pytest
from matplotlib.font_manager import findfont
from matplotlib.ft2font import FT2Font

from leukemia_dl.reporting import plot_samples, style


def drawn(names, path):
    figure = plot_samples(np.zeros((len(names), 2, 2, 3), np.uint8), names, title="".join(names))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figure.savefig(path)
    return figure


@pytest.fixture
def fresh():
    style._warned.clear()
    style._fonts_for.cache_clear()


def test_characters_without_a_font_are_one_warning(fresh, caplog, tmp_path):
    """20.33: one line for all names and figures, where matplotlib warned of each character of each figure."""
    with caplog.at_level(logging.WARNING):
        for names in (["\U00013000\U00013001"], ["\U00013002", "\U00013003"], ["hem", "Lymphozyt ä"]):
            drawn(names, tmp_path / "a.png")
    (line,) = [record.getMessage() for record in caplog.records]
    assert line == "No installed font has EGYPTIAN characters: figures show boxes in their place. Install one."


def test_an_installed_font_that_has_the_characters_is_used(fresh, caplog, tmp_path):
    """20.33: as Chinese names where the system has a Chinese font; here a sign of a font that matplotlib brings."""
    with caplog.at_level(logging.WARNING):
        figure = drawn(["hem \u24b6"], tmp_path / "a.png")
    assert not caplog.records
    (family, *others) = figure.axes[0].title.get_fontfamily()
    assert family == "sans-serif"
    assert any(FT2Font(findfont(name)).get_char_index(0x24B6) for name in others)
    assert drawn(["hem"], tmp_path / "a.png").axes[0].title.get_fontfamily() == ["sans-serif"]
