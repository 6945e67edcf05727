"""One synthetic cell: an outline, what sticks to it, chromatin, a rim, and stain, on exact-zero black.

Shapes, colours and grain follow C-NMC 2019 as measured; nothing is copied from a real image. Colours are RGB in grey
levels, lengths are pixels of the 450-pixel frame, where 600-pixel frames have the same scale.
"""

import functools
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from scipy import fft

from leukemia_dl.identity import generator

_Floats = NDArray[np.float32]
_Points = NDArray[np.float64]
Latents = Mapping[str, Any] | pd.Series

MEAN_COLOUR = np.array([68.0, 28.5, 78.0], np.float32)
BRIGHTNESS_COLOUR = np.array([6.0, 3.9, 5.3], np.float32)
HUE_COLOUR = np.array([1.8, 0.2, -1.8], np.float32)
SPREAD = np.array([12.3, 9.4, 10.9], np.float32)
RESIDUE_COLOUR = np.array([86.0, 53.0, 91.0], np.float32)
TONE = np.array([0.82, 0.46, 0.36], np.float32)
TINT = np.array([1.3, 0.0, -1.3], np.float32)
RIM_NEAR = np.array([30.0, 32.0, 15.0], np.float32)
RIM_FAR = np.array([-4.0, 2.0, 10.0], np.float32)
RIM_WIDTH = 14.0
# Sizes of chromatin, mottling and shading in grey levels of red, and their widths.
CHROMATIN, CLUMP_WIDTH, CLUMP_PER_TEXTURE, CONTRAST_PER_TEXTURE = 3.8, 4.7, 0.23, 0.12
MOTTLING, MOTTLING_WIDTH = 2.8, 11.0
SHADING, SHADING_WIDTH = 6.5, 28.0
SKEW, BLUR = 0.018, 1.2
VERTICES, HARMONICS, MARGIN = 720, 60, 12
ANGLES = np.linspace(0.0, 2 * np.pi, VERTICES, endpoint=False)
ORDERS = np.arange(2, HARMONICS + 2)
COSINES, SINES = np.cos(np.outer(ORDERS, ANGLES)), np.sin(np.outer(ORDERS, ANGLES))


def draw_cell(latents: Latents, seed: int, size: int = 450) -> NDArray[np.uint8]:
    """Draw the cell of one row of `draw_cohort`, and return it as uint8 (size, size, 3), RGB, 0 outside the cell.

    `latents` is the row: `sample` and the columns `LATENTS`. The `seed` of the cohort and `sample` fix everything that
    the latent values leave open. `size` is the height and width of the frame in pixels.
    """
    rng = generator(seed, "synthetic", "cell", str(latents["sample"]))
    outline = _outline(rng, float(np.exp(latents["log_area"])))
    radius = float(np.sqrt(np.mean(outline**2) * 2))
    smears = rng.integers(1, 3) if rng.random() < 0.30 else 0
    attached = [_smear(rng, outline, radius) for _ in range(smears)]
    if rng.random() < 0.07:
        attached.append(_neighbour(rng, outline, radius))
    centre = size / 2 + rng.normal(0.0, 2.0, 2)
    (row, column), regions = _rasterise(outline + centre, [polygon + centre for polygon in attached], size)
    colours = _paint(rng, latents, regions)
    image = np.zeros((size, size, 3), np.uint8)
    height, width = min(len(regions), size - row), min(len(regions), size - column)
    image[row : row + height, column : column + width] = colours[:height, :width]
    return image


def _outline(rng: np.random.Generator, area: float) -> _Points:
    """Return the corners (VERTICES, 2), x and y, of an outline around the origin that encloses `area`."""
    irregular = np.exp(0.5 * rng.standard_normal())
    rough = np.exp(0.5 * rng.standard_normal())
    amplitudes = 0.105 * irregular * ORDERS**-1.6 + 0.0012 * rough * np.exp(-((ORDERS / 24) ** 2))
    amplitudes[:2] *= (1.7, 1.3)
    radius = 1.0 + (amplitudes * rng.standard_normal(HARMONICS)) @ COSINES
    radius += (amplitudes * rng.standard_normal(HARMONICS)) @ SINES
    if rng.random() < 0.15:
        away = (ANGLES - rng.uniform(0, 2 * np.pi) + np.pi) % (2 * np.pi) - np.pi
        radius *= 1 - rng.uniform(0.08, 0.32) * np.exp(-0.5 * (away / rng.uniform(0.15, 0.45)) ** 2)
    if rng.random() < 0.18:
        # Segmentation cut touching cells apart along straight, often axis-parallel lines.
        direction = rng.integers(8) * np.pi / 4
        for turn in (0.0, rng.choice([-1, 1]) * np.pi / 4):
            facing = np.cos((ANGLES - (direction + turn) + np.pi) % (2 * np.pi) - np.pi)
            reach = rng.uniform(0.84, 0.97)
            radius = np.where(facing > 0.3, np.minimum(radius, reach / np.maximum(facing, 0.3)), radius)
    radius = np.maximum(radius, 0.25)
    radius *= np.sqrt(area / (0.5 * np.sin(2 * np.pi / VERTICES) * float(radius @ np.roll(radius, 1))))
    return np.stack([radius * np.cos(ANGLES), radius * np.sin(ANGLES)], axis=1)


def _smear(rng: np.random.Generator, outline: _Points, radius: float) -> _Points:
    """Return a ragged strip that starts inside the outline and tapers off."""
    start = outline[rng.integers(VERTICES)]
    away = start / np.hypot(*start)
    lean = rng.uniform(-1.3, 1.3)
    along = np.array([away[0] * np.cos(lean) - away[1] * np.sin(lean), away[0] * np.sin(lean) + away[1] * np.cos(lean)])
    steps = np.linspace(0.0, 1.0, 6)
    length = radius * rng.uniform(0.2, 0.5)
    bend = np.cumsum(rng.normal(0.0, 0.03 * radius, 6))
    side = np.array([-along[1], along[0]])
    path = start - 0.12 * radius * away + np.outer(steps * length, along) + np.outer(bend - bend[0], side)
    half_width = radius * rng.uniform(0.05, 0.18) * (1.2 - steps) * rng.uniform(0.8, 1.2, 6)
    edge = np.outer(half_width, side)
    return np.concatenate([path + edge, (path - edge)[::-1]])


def _neighbour(rng: np.random.Generator, outline: _Points, radius: float) -> _Points:
    """Return the part of a red cell beside the outline that a box with cut corners leaves standing."""
    start = outline[rng.integers(VERTICES)]
    away = start / np.hypot(*start)
    turns = np.linspace(0.0, 2 * np.pi, 64, endpoint=False)
    cosine, sine = np.abs(np.cos(turns)), np.abs(np.sin(turns))
    width, height = radius * rng.uniform(0.22, 0.45, 2)
    box = np.minimum(width / np.maximum(cosine, 1e-6), height / np.maximum(sine, 1e-6))
    reach = np.minimum(box, 0.8 * (width + height) / (cosine + sine)) * (1 + 0.02 * rng.standard_normal(64))
    disc = np.stack([reach * np.cos(turns), reach * np.sin(turns)], axis=1)
    return np.asarray(start + 0.1 * radius * away + disc)


def _rasterise(outline: _Points, attached: list[_Points], size: int) -> tuple[tuple[int, int], NDArray[np.uint8]]:
    """Return the corner (row, column) of a square patch and its regions (side, side): 1 cell, 2 attached, 0 nothing."""
    corners = np.concatenate([outline, *attached])
    low = np.clip(np.floor(corners.min(axis=0)).astype(int) - MARGIN, 0, size)
    high = np.clip(np.ceil(corners.max(axis=0)).astype(int) + MARGIN, 0, size)
    side = fft.next_fast_len(int((high - low).max()), real=True)
    canvas = Image.new("L", (side, side))
    draw = ImageDraw.Draw(canvas)
    for polygon in (*attached, outline):
        draw.polygon([*map(tuple, (polygon - low).tolist())], fill=1 if polygon is outline else 2)
    return (int(low[1]), int(low[0])), np.asarray(canvas)


def _paint(rng: np.random.Generator, latents: Latents, regions: NDArray[np.uint8]) -> Any:
    """Return the colours (side, side, 3), uint8, of a patch. Inside, colours are float32 (3, pixels of the cell)."""
    side = len(regions)
    cell = np.flatnonzero(regions == 1)
    tone = _tone(rng, latents, side, cell)
    # How near the pixels are to the edge of the cell: 1 there, 0 far inside; gently and steeply falling.
    blurred = fft.rfft2((regions == 1).astype(np.float32)) * _gaussian(_frequencies_squared(side), RIM_WIDTH)
    far = np.maximum(2 - 2 * fft.irfft2(blurred, regions.shape).ravel()[cell], 0)
    near = far**2 * np.sqrt(far)
    empty = np.pad(regions == 0, 1, constant_values=True)
    on_edge = (empty[2:, 1:-1] | empty[:-2, 1:-1] | empty[1:-1, 2:] | empty[1:-1, :-2]).ravel()
    slope = rng.standard_normal(2, np.float32)
    tint = _standardised(slope[0] * (cell // side).astype(np.float32) + slope[1] * (cell % side).astype(np.float32))
    strength = np.float32(np.exp(0.3 * rng.standard_normal()))
    uneven = np.maximum(1 + np.float32(0.35) * tint, 0)

    # Cell by cell the mean and the spread are fixed, which keeps colour free of size and texture, hence of the class.
    spread = SPREAD * np.float32(np.exp(0.12 * rng.standard_normal()))
    stain = np.float32(latents["brightness"]) * BRIGHTNESS_COLOUR + np.float32(latents["hue"]) * HUE_COLOUR
    light = np.where(on_edge[cell], np.float32(rng.uniform(0.35, 0.65)), np.float32(1))
    grain = np.float32(0.5 * np.exp(0.55 * latents["grain"]))
    noise = grain * rng.standard_normal(len(cell), np.float32)
    image = np.zeros((side * side, 3), np.uint8)
    for channel in range(3):
        values = TONE[channel] * tone + TINT[channel] * tint + MEAN_COLOUR[channel]
        values += strength * uneven * (RIM_NEAR[channel] * near + RIM_FAR[channel] * far)
        values = MEAN_COLOUR[channel] + stain[channel] + spread[channel] * _standardised(values * light) + noise
        image[cell, channel] = np.clip(np.rint(values), 1, 255)
    attached = np.flatnonzero(regions == 2)
    if len(attached):
        colour = RESIDUE_COLOUR + stain + rng.normal(0.0, 5.0, 3).astype(np.float32)
        values = colour + np.float32(1.5) * rng.standard_normal((len(attached), 1), np.float32)
        image[attached] = np.clip(np.rint(values), 1, 255)
    return image.reshape(side, side, 3)


def _tone(rng: np.random.Generator, latents: Latents, side: int, cell: NDArray[np.intp]) -> _Floats:
    """Return chromatin, its unevenness and nucleoli as one tone, in grey levels of red, for the pixels of the cell."""
    squares, texture = _frequencies_squared(side), float(latents["texture"])
    clump = CLUMP_WIDTH * float(np.exp(CLUMP_PER_TEXTURE * texture))
    transfer = CHROMATIN * float(np.exp(CONTRAST_PER_TEXTURE * texture)) * _band(squares, clump, 2.5 * clump)
    transfer += MOTTLING * _band(squares, MOTTLING_WIDTH, 2.5 * MOTTLING_WIDTH)
    transfer *= _gaussian(squares, BLUR * float(np.exp(0.55 * latents["blur"])))
    transfer += SHADING * (_gaussian(squares, SHADING_WIDTH) * np.float32(2 * np.pi**0.5 * SHADING_WIDTH))
    spectrum = rng.standard_normal((side, side // 2 + 1, 2), np.float32).view(np.complex64)[..., 0]
    field = fft.irfft2(spectrum * transfer, (side, side)).ravel()[cell] * np.float32(side / 2**0.5)
    field += SKEW * field**2
    field += _nucleoli(rng, texture, side, cell).ravel()[cell]
    return np.asarray(field)


def _nucleoli(rng: np.random.Generator, texture: float, side: int, cell: NDArray[np.intp]) -> _Floats:
    """Return the tone (side, side) of pale round nucleoli with a darker border: clearer in finer chromatin."""
    tone = np.zeros((side, side), np.float32)
    clearness = 1 / (1 + float(np.exp(1.2 * texture)))
    middle = np.array([np.mean(cell // side), np.mean(cell % side)])
    reach = 0.3 * (len(cell) / np.pi) ** 0.5
    for _ in range(rng.integers(1, 4)):
        row, column = middle + reach * rng.standard_normal(2)
        width, height = rng.uniform(6.0, 9.5), clearness * rng.uniform(11.0, 22.0)
        top, left = max(int(row - 4 * width), 0), max(int(column - 4 * width), 0)
        window = tone[top : int(row + 4 * width), left : int(column + 4 * width)]
        down = np.arange(top, top + window.shape[0]) - row
        across = np.arange(left, left + window.shape[1]) - column
        distance = (down[:, None] ** 2 + across[None, :] ** 2) / width**2
        window += height * (1.4 * np.exp(-0.5 * distance) - 0.6 * np.exp(-0.2 * distance))
    return tone


def _standardised(values: NDArray[Any]) -> NDArray[Any]:
    return np.asarray((values - values.mean()) / values.std())


def _gaussian(squares: _Floats, sd: float) -> _Floats:
    return np.asarray(np.exp(np.float32(-2 * np.pi**2 * sd**2) * squares))


def _band(squares: _Floats, narrow: float, wide: float) -> _Floats:
    """Return the transfer function of a difference of two Gaussian blurs that turns white noise into unit variance."""
    variance = (1 / narrow**2 + 1 / wide**2 - 4 / (narrow**2 + wide**2)) / (4 * np.pi)
    return (_gaussian(squares, narrow) - _gaussian(squares, wide)) / np.float32(variance**0.5)


@functools.lru_cache(maxsize=64)
def _frequencies_squared(side: int) -> _Floats:
    down, across = fft.fftfreq(side), fft.rfftfreq(side)
    return np.asarray(down[:, None] ** 2 + across[None, :] ** 2, np.float32)
