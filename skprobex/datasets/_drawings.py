"""Drawings of coloured shapes: images whose names say all that is on them.

A concept is one value of each attribute, and its name is plain English, such as
"three small striped red stars". In arrays a concept is a row of codes, the positions
of its values in `ATTRIBUTES`.
"""

from __future__ import annotations

import itertools

import numpy as np
from sklearn.utils import check_random_state

from ._synthetic import check_integer

ATTRIBUTES = {
    "count": ("one", "two", "three"),
    "size": ("small", "large"),
    "texture": ("plain", "striped", "dotted"),
    "color": ("red", "orange", "yellow", "green", "blue", "purple", "pink", "white"),
    "shape": ("circle", "square", "triangle", "star", "cross", "ring"),
}
N_VALUES = tuple(len(values) for values in ATTRIBUTES.values())

IMAGE_SIZE = 24
_RADII = np.array([3.2, 4.8])  # of small and large shapes, in pixels
# Where there are several shapes, their distance from the middle of them, in radii.
_SPREAD = np.array([0.0, 1.1, 1.2])
_PERIOD = 3.5  # of stripes and dots, in pixels
_SHADE = 0.25  # what they leave of the shape's cover
_RGB = np.array(
    [
        (0.90, 0.10, 0.10),
        (1.00, 0.50, 0.00),
        (0.95, 0.90, 0.10),
        (0.10, 0.75, 0.20),
        (0.15, 0.30, 0.95),
        (0.50, 0.15, 0.70),
        (1.00, 0.60, 0.75),
        (0.95, 0.95, 0.95),
    ]
)
_CHUNK_SIZE = 512  # images drawn together


def all_concepts() -> np.ndarray:
    """Return the codes of all combinations, ``(n_combinations, n_attributes)``."""
    return np.array(list(itertools.product(*map(range, N_VALUES))), dtype=np.int64)


def concept_name(codes: np.ndarray) -> str:
    """Say in English what the codes stand for."""
    values = [v[c] for v, c in zip(ATTRIBUTES.values(), codes, strict=True)]
    count, size, texture, color, shape = values
    if count == "one":
        count = "a"
    else:
        shape += "es" if shape.endswith("s") else "s"
    words = (count, size, texture, color, shape)
    return " ".join(word for word in words if word != "plain")


def draw_concept(
    concept: str,
    n_images: int = 1,
    *,
    random_state: int | np.random.RandomState | None = None,
) -> np.ndarray:
    """Draw images of a concept of the adapter jungle, for pictures and tests.

    Parameters
    ----------
    concept : str
        The concept's name, as in the jungle's ``concepts``.
    n_images : int, default=1
        Number of images. They differ in positions, tilts, tints and noise.
    random_state : int, RandomState instance or None, default=None
        Draws what images differ in.

    Returns
    -------
    ndarray of shape (n_images, 24, 24, 3), float32
        Colors from 0 to 1.

    Raises
    ------
    ValueError
        If there is no such concept.
    """
    check_integer("n_images", n_images, 1)
    codes_of = {concept_name(codes): codes for codes in all_concepts()}
    if concept not in codes_of:
        raise ValueError(
            f"There is no concept {concept!r}. Names are like 'a large red ring' or "
            "'three small striped blue stars', with the words "
            + "; ".join(", ".join(values) for values in ATTRIBUTES.values())
            + "."
        )
    codes = np.repeat(codes_of[concept][None], n_images, axis=0)
    return draw_images(codes, check_random_state(random_state))


def draw_images(codes: np.ndarray, rng: np.random.RandomState) -> np.ndarray:
    """Draw one image ``(24, 24, 3)`` for each row of codes, float32 from 0 to 1."""
    chunks = np.array_split(codes, max(1, len(codes) // _CHUNK_SIZE))
    return np.concatenate([_draw_chunk(chunk, rng) for chunk in chunks])


def _draw_chunk(codes, rng):
    n_images = len(codes)
    count, size, texture, color, shape = codes.T
    background = rng.uniform(0, 0.25, (n_images, 1, 1, 1))
    tint = _RGB[color] + rng.uniform(-0.08, 0.08, (n_images, 3))
    tilt = rng.uniform(-0.2, 0.2, n_images)
    radius = _RADII[size] * rng.uniform(0.97, 1.03, n_images)

    # Shapes stand around a middle, which may lie wherever all of them are on the image.
    spread = _SPREAD[count] * radius * rng.uniform(1, 1.1, n_images)
    room = IMAGE_SIZE / 2 - radius - spread
    middle = IMAGE_SIZE / 2 + room[:, None] * rng.uniform(-1, 1, (n_images, 2))
    turn = rng.uniform(0, 2 * np.pi, n_images)

    grid = np.arange(IMAGE_SIZE, dtype=np.float32) + 0.5
    cover = np.zeros((n_images, IMAGE_SIZE, IMAGE_SIZE), dtype=np.float32)
    for number in range(len(ATTRIBUTES["count"])):
        rows = np.flatnonzero(count >= number)
        angle = turn[rows] + 2 * np.pi * number / (count[rows] + 1)
        around = spread[rows, None] * np.column_stack([np.cos(angle), np.sin(angle)])
        center = (middle[rows] + around).astype(np.float32)
        u = grid - center[:, :1, None]  # (n_rows, 1, IMAGE_SIZE)
        v = center[:, 1:, None] - grid[:, None]  # upwards, (n_rows, IMAGE_SIZE, 1)
        cos, sin = (f(tilt[rows]).astype(np.float32) for f in (np.cos, np.sin))
        cos, sin = cos[:, None, None], sin[:, None, None]
        u, v = cos * u + sin * v, cos * v - sin * u
        cover[rows] += _cover(u, v, radius[rows], shape[rows], texture[rows])

    cover = cover.clip(0, 1)[..., None]
    images = (1 - cover) * background + cover * tint[:, None, None]
    images += 0.05 * rng.standard_normal(images.shape)
    return images.clip(0, 1).astype(np.float32)


def _cover(u, v, radius, shape, texture):
    """Share of each pixel that a shape covers, ``(n_rows, height, width)``."""
    radius = radius[:, None, None].astype(np.float32)
    cover = np.empty(u.shape, dtype=np.float32)
    for code, outline in enumerate(_OUTLINES):
        rows = shape == code
        # Half a pixel on either side of the outline is partly covered.
        outside = outline(u[rows] / radius[rows], v[rows] / radius[rows])
        cover[rows] = (0.5 - outside * radius[rows]).clip(0, 1)
    wave_u, wave_v = (np.sin(2 * np.pi / _PERIOD * w) for w in (u, v))
    striped, dotted = (
        (texture == ATTRIBUTES["texture"].index(name))[:, None, None]
        for name in ("striped", "dotted")
    )
    shaded = (striped & (wave_v > 0)) | (dotted & (wave_u > 0) & (wave_v > 0))
    return np.where(shaded, _SHADE * cover, cover)


def _circle(u, v):
    return np.hypot(u, v) - 1


def _square(u, v):
    return np.maximum(np.abs(u), np.abs(v)) - 0.85


def _triangle(u, v):
    # Three sides at the same distance from the middle of the triangle.
    side = np.maximum(-v, np.sqrt(0.75) * np.abs(u) + 0.5 * v)
    return side - 0.55


def _star(u, v):
    points = 0.3 * np.cos(5 * np.arctan2(u, v))
    return np.hypot(u, v) - 0.7 - points


def _cross(u, v):
    u, v = np.abs(u), np.abs(v)
    return np.maximum(np.minimum(u, v) - 0.3, np.maximum(u, v) - 1)


def _ring(u, v):
    return np.abs(np.hypot(u, v) - 0.78) - 0.22


# How far a point lies outside a shape of radius one, in the order of the attribute.
_OUTLINES = (_circle, _square, _triangle, _star, _cross, _ring)
