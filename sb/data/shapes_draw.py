"""How the shapes world is painted: outlines as inside tests, textures in two tones, four kinds of background.

Everything here is a function of numbers that the scene has drawn already. Lengths are pixels of a 64 px scene times
``unit``, so that a larger scene is the same picture with more pixels.

Legend: H W pixels, n window side in pixels, K samples per pixel side, u v an object's own frame with half side 1.
"""

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]  # float32
Bits = NDArray[np.bool_]
SUPERSAMPLING = 3  # K
REACH = 1.25  # a rotated shape stays within this many half sides of its centre
STRIPE_PX, DOT_PX, DOT_RADIUS_PX = 6.0, 6.5, 2.0

# colour word -> its main tone and the darker tone of its stripes and dots, sRGB in [0, 1]
TONES: dict[str, tuple[tuple[float, float, float], tuple[float, float, float]]] = {
    "red": ((0.95, 0.20, 0.17), (0.73, 0.09, 0.09)),
    "orange": ((1.00, 0.62, 0.12), (0.87, 0.44, 0.05)),
    "yellow": ((1.00, 0.95, 0.25), (0.86, 0.77, 0.11)),
    "green": ((0.28, 0.88, 0.28), (0.13, 0.67, 0.16)),
    "cyan": ((0.22, 0.93, 0.95), (0.10, 0.74, 0.78)),
    "blue": ((0.32, 0.48, 1.00), (0.17, 0.27, 0.81)),
    "purple": ((0.74, 0.38, 1.00), (0.55, 0.19, 0.80)),
    "pink": ((1.00, 0.47, 0.80), (0.89, 0.24, 0.64)),
}
COLOURS = tuple(TONES)
TEXTURES = ("plain", "striped", "dotted")
BACKGROUNDS = ("smooth", "cloudy", "checkered", "lined")


def _square(u: Array, v: Array) -> Bits:
    return np.maximum(np.abs(u), np.abs(v)) < 0.88


def _circle(u: Array, v: Array) -> Bits:
    return u * u + v * v < 1


def _triangle(u: Array, v: Array) -> Bits:
    return (v < 0.8) & (np.abs(u) < (v + 1) * np.float32(0.56))


def _star(u: Array, v: Array) -> Bits:
    """Five points: mirrors fold the plane into half a point, which one line from tip to dent bounds."""
    x, y = np.abs(u), -v
    sin, cos = np.float32(np.sin(np.radians(54))), np.float32(np.cos(np.radians(54)))
    for _ in range(2):
        beyond = 2 * np.maximum(x * sin - y * cos, 0)
        x, y = np.abs(x - beyond * sin), y + beyond * cos
    dent_x, dent_y = np.float32(0.45) * cos, np.float32(0.45) * sin
    return x * (1 - dent_y) < (1 - y) * dent_x


def _heart(u: Array, v: Array) -> Bits:
    x, y = u * np.float32(1.14), np.float32(0.12) - v * np.float32(1.1)
    y2 = y * y
    ball = x * x + y2 - 1
    return ball * ball * ball < x * x * y2 * y


def _cross(u: Array, v: Array) -> Bits:
    across, along = np.abs(u), np.abs(v)
    return (np.minimum(across, along) < 0.34) & (np.maximum(across, along) < 0.98)


def _ring(u: Array, v: Array) -> Bits:
    radius2 = u * u + v * v
    return (radius2 < 1) & (radius2 > 0.5**2)


def _crescent(u: Array, v: Array) -> Bits:
    x = u + np.float32(0.2)
    return (x * x + v * v < 1) & ((x - np.float32(0.62)) ** 2 + v * v > 0.78**2)


SHAPES: dict[str, Callable[[Array, Array], Bits]] = {
    "circle": _circle, "square": _square, "triangle": _triangle, "star": _star,
    "heart": _heart, "cross": _cross, "ring": _ring, "crescent": _crescent,
}


def paint_object(
    image: Array, shape: str, colour: str, texture: str, *, centre: tuple[float, float], half: float, aspect: float,
    angle: float, shade: tuple[float, float], unit: float,
) -> Bits:
    """Paint one object onto ``image`` (H, W, 3) in place; returns its outline (H, W), where its coverage is > 0.5.

    centre x y and half (half of its longer side) in px; aspect in (0, 1]: width over height; angle in radians;
    shade: the change of brightness per half side along x and y.
    """
    size = image.shape[0]
    rows, columns = (_window(middle, half, size) for middle in (centre[1], centre[0]))
    steps = (np.arange(rows.start * SUPERSAMPLING, rows.stop * SUPERSAMPLING, dtype=np.float32) + 0.5)
    y = steps / SUPERSAMPLING - np.float32(centre[1])
    steps = (np.arange(columns.start * SUPERSAMPLING, columns.stop * SUPERSAMPLING, dtype=np.float32) + 0.5)
    x = steps / SUPERSAMPLING - np.float32(centre[0])
    cos, sin = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    across = (x * cos)[None, :] + (y * sin)[:, None]  # px in the object's frame (K n, K n)
    down = (y * cos)[:, None] - (x * sin)[None, :]
    inside = SHAPES[shape](across / np.float32(half * aspect), down / np.float32(half))
    coverage = _pixels(inside)  # (n, n)
    main, dark = (np.array(tone, np.float32) for tone in TONES[colour])
    body: Array = main
    if texture != "plain":
        second = _pixels(inside & _second_tone(texture, across, down, unit))[..., None]
        body = main + (dark - main) * (second / np.maximum(coverage[..., None], np.float32(1e-6)))
    middle_y, middle_x = y[1::SUPERSAMPLING] / np.float32(half), x[1::SUPERSAMPLING] / np.float32(half)
    light = 1 + np.float32(shade[0]) * middle_x[None, :] + np.float32(shade[1]) * middle_y[:, None]
    window = image[rows, columns]
    window += (body * light[..., None] - window) * coverage[..., None]
    outline = np.zeros(image.shape[:2], np.bool_)
    outline[rows, columns] = coverage > 0.5
    return outline


def paint_background(kind: str, tones: Sequence[float], numbers: Sequence[float], size: int, unit: float) -> Array:
    """A muted background (H, W, 3) in two tones (6 numbers in [0, 1]), from at least 40 numbers in [0, 1)."""
    first, second = np.array(tones[:3], np.float32), np.array(tones[3:6], np.float32)
    place = (np.arange(size, dtype=np.float32) + 0.5) / np.float32(unit)
    angle = np.float32(2 * np.pi * numbers[0])
    along = (place * np.cos(angle))[None, :] + (place * np.sin(angle))[:, None]
    if kind == "smooth":
        low, high = along.min(), along.max()
        weight = (along - low) / (high - low)
    elif kind == "cloudy":
        spread = _cloud_weights(size)  # (H, 6)
        weight = spread @ np.array(numbers[4:40], np.float32).reshape(6, 6) @ spread.T
        weight = np.clip((weight - np.float32(0.5)) * 2 + np.float32(0.5), 0, 1)
    else:
        pitch = np.float32(np.pi / (8 + 6 * numbers[1] if kind == "checkered" else 4.5 + 3 * numbers[1]))
        wave = np.sin(along * pitch + np.float32(6 * numbers[2]))
        if kind == "checkered":
            across = (place * np.cos(angle))[:, None] - (place * np.sin(angle))[None, :]
            wave = wave * np.sin(across * pitch + np.float32(6 * numbers[3]))
        weight = np.clip(wave / (2 * pitch) * np.float32(unit) + np.float32(0.5), 0, 1)  # an edge of about one pixel
    return first + (second - first) * weight[..., None]


def _second_tone(texture: str, across: Array, down: Array, unit: float) -> Bits:
    """Where the darker tone lies: diagonal bands, or round dots on a grid, both fixed to the object."""
    if texture == "striped":
        period = np.float32(STRIPE_PX * unit)
        return np.remainder((across + down) * np.float32(0.5**0.5), period) < period / 2
    period = np.float32(DOT_PX * unit)
    x, y = (np.remainder(value + period / 2, period) - period / 2 for value in (across, down))
    return x * x + y * y < np.float32((DOT_RADIUS_PX * unit) ** 2)


def _window(middle: float, half: float, size: int) -> slice:
    return slice(max(int(middle - half * REACH) - 1, 0), min(int(middle + half * REACH) + 2, size))


def _pixels(samples: Bits) -> Array:
    """The share of true samples per pixel (n, n)."""
    bits, k = samples.view(np.uint8), SUPERSAMPLING
    lines = bits[0::k] + bits[1::k] + bits[2::k]
    total = lines[:, 0::k] + lines[:, 1::k] + lines[:, 2::k]
    return total.astype(np.float32) * np.float32(1 / k**2)


@lru_cache(maxsize=8)
def _cloud_weights(size: int) -> Array:
    """Smooth interpolation from 6 knots to ``size`` pixels, rows sum to 1."""
    place = np.linspace(0, 5, size)[:, None] - np.arange(6)[None, :]
    weight = np.exp(-(place**2) / 0.5)
    return (weight / weight.sum(1, keepdims=True)).astype(np.float32)
