"""One cell in files that differ, by their pixels."""

import numpy as np
import pytest

from cells import draw_cell
from leukemia_dl.datasets.same_cells import cell_key, likeness, same_cells


@pytest.mark.parametrize("number", range(5))
def test_a_cell_is_known_again_wherever_it_lies(number):
    place = np.random.default_rng(number).integers(0, 290, 2)
    one, two = draw_cell(number), draw_cell(number, 600, *place)
    assert likeness(one, two) == (1.0, 0.0)
    assert same_cells([cell_key(one), cell_key(two)], ["x", "y"], [one, two].__getitem__) == [[0, 1]]
    assert same_cells([cell_key(one), cell_key(two)], ["x", "x"], [one, two].__getitem__) == []


def test_cells_that_only_look_alike_are_not_the_same():
    cell = draw_cell()
    brighter = draw_cell(level=2)
    other = draw_cell(number=1)
    bitten = cell.copy()
    rows, columns = np.mgrid[:450, :450]
    bitten[rows + columns < 280] = 0  # between the extremes of its outline, so its box stays
    assert cell_key(bitten)[:2] == cell_key(cell)[:2]
    assert 0.96 < cell_key(bitten).area / cell_key(cell).area < 0.995
    assert likeness(cell, brighter) is None
    assert likeness(cell, other) is None
    assert likeness(cell, bitten) is None
    assert likeness(cell, draw_cell(level=0)) is not None
    images = [cell, brighter, other, bitten]
    assert same_cells([cell_key(image) for image in images], list("abcd"), images.__getitem__) == []
    speckled = cell.copy()
    speckled[::7, ::7] += (cell[::7, ::7] > 0).astype(np.uint8) * 3
    assert 0 < likeness(cell, speckled)[1] < 0.1
    assert same_cells([cell_key(cell), cell_key(speckled)], list("ab"), [cell, speckled].__getitem__) == [[0, 1]]


def test_only_likely_images_are_decoded_again():
    images = [draw_cell(number) for number in range(40)]
    asked = []

    def decode(row):
        asked.append(row)
        return images[row]

    assert same_cells([cell_key(image) for image in images], [str(n) for n in range(40)], decode) == []
    assert asked == [], "same box and area, other colours"
    assert cell_key(np.full((32, 32, 3), 200, np.uint8)) is None
    assert cell_key(np.zeros((32, 32, 3), np.uint8)) is None
