"""Drawn cells for the tests of the audit."""

import numpy as np


def draw_cell(number=0, frame=450, top=100, left=120, level=0):
    """Draw a mottled ellipse on exact black: uint8 (frame, frame, 3); `level` is added to each pixel of the cell."""
    image = np.zeros((frame, frame, 3), np.uint8)
    rows, columns = np.mgrid[-1:1:160j, -1:1:140j]
    spots = np.random.default_rng(number).integers(40, 120, (160, 140, 3))
    coarse = np.repeat(np.repeat(np.random.default_rng(number + 1000).integers(0, 90, (8, 7, 3)), 20, 0), 20, 1)
    cell = np.where((rows**2 + columns**2 < 1)[:, :, None], spots + coarse + level, 0)
    image[top : top + 160, left : left + 140] = cell
    return image
