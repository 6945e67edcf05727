"""Fonts of figures."""

import warnings

import numpy as np
from matplotlib.font_manager import findfont
from matplotlib.ft2font import FT2Font

from leukemia_dl.reporting import plot_samples


def drawn(names, path):
    figure = plot_samples(np.zeros((len(names), 2, 2, 3), np.uint8), names, title="".join(names))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figure.savefig(path)
    return figure


def test_an_installed_font_that_has_the_characters_is_used(tmp_path):
    """20.33: as Chinese names where the system has a Chinese font; here a sign of a font that matplotlib brings."""
    figure = drawn(["hem \u24b6"], tmp_path / "a.png")
    (family, *others) = figure.axes[0].title.get_fontfamily()
    assert family == "sans-serif"
    assert any(FT2Font(findfont(name)).get_char_index(0x24B6) for name in others)
    assert drawn(["hem", "Lymphozyt \u00e4"], tmp_path / "a.png").axes[0].title.get_fontfamily() == ["sans-serif"]


def test_a_character_without_a_font_is_drawn_as_a_box(tmp_path):
    figure = plot_samples(np.zeros((1, 2, 2, 3), np.uint8), ["\U00013000"])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        figure.savefig(tmp_path / "a.png")
    assert "missing from font" in str(caught[0].message)
