"""The demo data set: a small illustrated world, rendered once into the VOC layout, with exact masks.

It is built to show what weak supervision gets wrong. Classes come in pairs that share a large body and differ in a
small part (cat and dog: the head; bus and train: wheels, roof and front; sailboat and steamboat: mast or funnel), so a
classifier needs only the part. Most classes have a context that comes with them but is background (road, rails, water,
smoke, a ball), sizes run from about 2% to 45% of the image, and masts, tails and pantographs are a few pixels wide.

Everything drawn is a `Thing`, a list of `Part`s: an outline in the thing's own units (y up, 0 on the ground) and a
material. Picture and mask are made from the same outlines, at twice the final resolution.
"""

from __future__ import annotations

import colorsys
import contextlib
import glob
import json
import math
import os
import shutil
import socket
import time
import uuid
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from wsss.errors import DataError
from wsss.palette import voc_palette

CLASSES: tuple[str, ...] = ("cat", "dog", "bus", "train", "sailboat", "steamboat")
"""Names of the classes 1..6, in the order of their ids."""

VERSION = 1
"""Raised whenever the same parameters would give other pixels."""

CAT, DOG, BUS, TRAIN, SAILBOAT, STEAMBOAT = range(1, len(CLASSES) + 1)
PETS, BOATS = {CAT, DOG}, {SAILBOAT, STEAMBOAT}
OVERSAMPLING = 2
MIN_SIZE = 32
RECORD = "demo.json"
COUNT_SHARES = (0.05, 0.50, 0.32, 0.13)  # images with 0, 1, 2, 3 classes
AREA_RANGES = ((0.02, 0.45), (0.03, 0.26), (0.025, 0.16))  # of one object among 1, 2, 3, as a share of the image
STRAY_CONTEXT = 0.15  # chance of a context without its class, and about that of a class without its context

Rng = np.random.Generator
Colour = np.ndarray  # (3,) float32, RGB in [0, 1]
Outline = np.ndarray  # (N, 2) closed polygon
Material = Callable[[Rng, int, int, float], np.ndarray]  # (rng, height, width, pixels per unit) -> (h, w, 3) in [0, 1]


# ---------------------------------------------------------------------------------------------------------------------
# Colour and noise


def _hsv(hue: float, saturation: float, value: float) -> Colour:
    return np.array(colorsys.hsv_to_rgb(hue % 1.0, saturation, value), dtype=np.float32)


def _vary(rng: Rng, hues: tuple[float, float], saturations: tuple[float, float], values: tuple[float, float]) -> Colour:
    return _hsv(rng.uniform(*hues), rng.uniform(*saturations), rng.uniform(*values))


def _noise(rng: Rng, height: int, width: int, cell: tuple[float, float], *, octaves: int = 1) -> np.ndarray:
    """Smooth noise ``(height, width)``, mean 0, deviation about 0.5; ``cell`` is its grain (y, x) in pixels."""
    total = np.zeros((height, width), dtype=np.float32)
    for octave in range(octaves):
        cell_y, cell_x = (max(c / 2**octave, 1.0) for c in cell)
        if octave and ((cell_y < 2 and cell_x < 2) or height * width < 300):
            break  # too fine for the final picture, or the piece too small to show it
        grid = rng.uniform(-1, 1, (int(height / cell_y) + 3, int(width / cell_x) + 3)).astype(np.float32)
        # A box inside the grid keeps the grain the same whatever the size of the piece.
        box = (0.5, 0.5, 0.5 + width / cell_x, 0.5 + height / cell_y)
        total += np.asarray(Image.fromarray(grid).resize((width, height), Image.Resampling.BICUBIC, box)) / 2**octave
    return total


def _rows(height: int) -> np.ndarray:
    return np.linspace(0, 1, height, dtype=np.float32)[:, None]


def _mix(first: np.ndarray, second: np.ndarray, share: np.ndarray) -> np.ndarray:
    """``first`` where ``share`` ``(h, w)`` is 0, ``second`` where it is 1."""
    return first + (second - first) * np.clip(share, 0, 1)[..., None]


# ---------------------------------------------------------------------------------------------------------------------
# Outlines


def _ellipse(x: float, y: float, rx: float, ry: float, angle: float = 0.0) -> Outline:
    turn = np.linspace(0, 2 * np.pi, 33)[:-1]
    px, py = rx * np.cos(turn), ry * np.sin(turn)
    return np.stack([x + px * np.cos(angle) - py * np.sin(angle), y + px * np.sin(angle) + py * np.cos(angle)], axis=1)


def _box(x0: float, y0: float, x1: float, y1: float, radius: float = 0.0) -> Outline:
    if radius == 0:
        return np.array([(x0, y0), (x1, y0), (x1, y1), (x0, y1)])
    corners = (
        (x1 - radius, y1 - radius),
        (x0 + radius, y1 - radius),
        (x0 + radius, y0 + radius),
        (x1 - radius, y0 + radius),
    )
    quarter = np.linspace(0, np.pi / 2, 5)
    arcs = [
        np.stack([x + radius * np.cos(quarter + k * np.pi / 2), y + radius * np.sin(quarter + k * np.pi / 2)], axis=1)
        for k, (x, y) in enumerate(corners)
    ]
    return np.concatenate(arcs)


def _smooth(points: Sequence[tuple[float, float]] | np.ndarray, steps: int = 6) -> Outline:
    """A closed Catmull-Rom curve through ``points``."""
    p1 = np.asarray(points, dtype=np.float64)
    p0, p2, p3 = np.roll(p1, 1, axis=0), np.roll(p1, -1, axis=0), np.roll(p1, -2, axis=0)
    t = np.linspace(0, 1, steps, endpoint=False)[None, :, None]
    a, b, c, d = (p[:, None] for p in (p0, p1, p2, p3))
    curve = 2 * b + (c - a) * t + (2 * a - 5 * b + 4 * c - d) * t**2 + (3 * b - a - 3 * c + d) * t**3
    return (curve / 2).reshape(-1, 2)


def _stroke(points: Sequence[tuple[float, float]], start: float, end: float | None = None) -> Outline:
    """A line with thickness ``start`` that tapers to ``end``."""
    line = np.asarray(points, dtype=np.float64)
    along = np.gradient(line, axis=0)
    normal = np.stack([-along[:, 1], along[:, 0]], axis=1) / np.linalg.norm(along, axis=1, keepdims=True)
    half = np.linspace(start, start if end is None else end, len(line))[:, None] / 2
    return np.concatenate([line + half * normal, (line - half * normal)[::-1]])


def _arc(points: Sequence[tuple[float, float]], steps: int = 12) -> list[tuple[float, float]]:
    """A quadratic Bezier curve through three control points, for tails and branches."""
    (ax, ay), (bx, by), (cx, cy) = points
    ts = [k / (steps - 1) for k in range(steps)]
    return [
        ((1 - t) ** 2 * ax + 2 * t * (1 - t) * bx + t**2 * cx, (1 - t) ** 2 * ay + 2 * t * (1 - t) * by + t**2 * cy)
        for t in ts
    ]


def _ragged(rng: Rng, x: float, y: float, rx: float, ry: float, roughness: float, points: int = 14) -> Outline:
    """An ellipse with an uneven rim: stones, bushes, crowns of trees."""
    turn = np.linspace(0, 2 * np.pi, points, endpoint=False)
    radius = 1 + roughness * rng.uniform(-1, 1, points)
    return _smooth(np.stack([x + rx * radius * np.cos(turn), y + ry * radius * np.sin(turn)], axis=1), steps=4)


# ---------------------------------------------------------------------------------------------------------------------
# Materials


def _matte(colour: Colour, grain: float = 0.08, cell: float = 0.12) -> Material:
    def fill(rng: Rng, h: int, w: int, unit: float) -> np.ndarray:
        return colour * (1 + grain * _noise(rng, h, w, (cell * unit, cell * unit), octaves=3))[..., None]

    return fill


def _fur(colour: Colour, marking: Colour, pattern: str) -> Material:
    """Strands over a coat that is plain, patched or striped."""

    def fill(rng: Rng, h: int, w: int, unit: float) -> np.ndarray:
        blotches = _noise(rng, h, w, (0.3 * unit, 0.3 * unit), octaves=2)
        coat = np.broadcast_to(colour, (h, w, 3))
        if pattern == "patched":
            coat = _mix(coat, marking, 4 * blotches - 0.6)
        elif pattern == "striped":
            waves = np.sin(np.arange(w, dtype=np.float32) * (42 / unit) + rng.uniform(0, 6))[None, :]
            coat = _mix(coat, marking, 0.9 * (waves + 1.3 * blotches - 0.2))
        strands = _noise(rng, h, w, (0.10 * unit, 0.025 * unit), octaves=2)
        return coat * (1 + 0.20 * strands + 0.08 * blotches)[..., None]

    return fill


def _painted(colour: Colour) -> Material:
    """Painted metal: a sheen from above, streaks of grime from below."""

    def fill(rng: Rng, h: int, w: int, unit: float) -> np.ndarray:
        rows = _rows(h)
        sheen = 0.16 * np.exp(-(((rows - 0.22) / 0.12) ** 2)) - 0.14 * rows
        streaks = _noise(rng, h, w, (0.5 * unit, 0.05 * unit), octaves=2)
        wear = _noise(rng, h, w, (0.25 * unit, 0.25 * unit), octaves=3)
        return colour * (1 + sheen + (0.05 + 0.08 * rows) * streaks + 0.07 * wear)[..., None] + 0.04 * sheen[..., None]

    return fill


def _glass(rng: Rng) -> Material:
    tint = _vary(rng, (0.50, 0.62), (0.15, 0.5), (0.22, 0.5))

    def fill(rng: Rng, h: int, w: int, unit: float) -> np.ndarray:
        slope = np.arange(w, dtype=np.float32)[None, :] + np.arange(h, dtype=np.float32)[:, None]
        streak = np.maximum(0, np.sin(slope * (9 / unit) + rng.uniform(0, 6)) - 0.35)
        shade = 1.25 - 0.5 * _rows(h) + 0.15 * _noise(rng, h, w, (0.15 * unit, 0.2 * unit))
        return tint * shade[..., None] + 0.28 * streak[..., None]

    return fill


def _leaves(colour: Colour) -> Material:
    def fill(rng: Rng, h: int, w: int, unit: float) -> np.ndarray:
        clumps = _noise(rng, h, w, (0.28 * unit, 0.28 * unit), octaves=3)
        tips = _noise(rng, h, w, (3, 3), octaves=1)
        warm = colour * np.array([1.35, 1.15, 0.8], dtype=np.float32)
        return _mix(colour, warm, 0.5 + clumps) * (0.9 + 0.42 * clumps + 0.25 * tips)[..., None]

    return fill


def _planks(colour: Colour, spacing: float) -> Material:
    """Boards side by side: floors, sheds, crates."""

    def fill(rng: Rng, h: int, w: int, unit: float) -> np.ndarray:
        row = np.arange(h, dtype=np.float32) / max(spacing * unit, 3.0) + rng.uniform(0, 1)
        tones = 1 + 0.14 * rng.uniform(-1, 1, int(row[-1]) + 2).astype(np.float32)[row.astype(int)]
        gap = 1 - 0.45 * np.exp(-(((row % 1.0) / 0.10) ** 2))
        veins = _noise(rng, h, w, (0.10 * spacing * unit, 2.0 * spacing * unit), octaves=2)
        return colour * ((tones * gap)[:, None] * (1 + 0.16 * veins))[..., None]

    return fill


def _bricks(colour: Colour, mortar: Colour, course: float) -> Material:
    def fill(rng: Rng, h: int, w: int, unit: float) -> np.ndarray:
        size = max(course * unit, 5.0)
        y = np.arange(h, dtype=np.float32)[:, None] / size
        x = np.arange(w, dtype=np.float32)[None, :] / (2.2 * size) + 0.5 * (y.astype(int) % 2)
        tones = 1 + 0.22 * rng.uniform(-1, 1, (int(h / size) + 2, int(w / size) + 3)).astype(np.float32)
        wall = colour * tones[np.broadcast_to(y.astype(int), x.shape), x.astype(int)][..., None]
        joint = (y % 1.0 < 0.14) | (x % 1.0 < 0.07)
        return _mix(wall, mortar, joint * 0.85) * (1 + 0.12 * _noise(rng, h, w, (12, 12), octaves=3))[..., None]

    return fill


def _dashes(first: Colour, second: Colour, period: float, share: float) -> Material:
    """``first`` for ``share`` of each ``period``, else ``second``: sleepers on gravel, dashes on a road."""

    def fill(rng: Rng, h: int, w: int, unit: float) -> np.ndarray:
        phase = (np.arange(w, dtype=np.float32) / (period * unit) + rng.uniform(0, 1)) % 1.0
        colours = np.where((phase < share)[:, None], first, second)
        return colours * (1 + 0.3 * _noise(rng, h, w, (0.05 * unit, 0.05 * unit), octaves=3))[..., None]

    return fill


# ---------------------------------------------------------------------------------------------------------------------
# Parts and things


@dataclass(frozen=True)
class Part:
    """One outline filled with one material.

    Attributes:
        outline: ``(N, 2)`` in the units of its thing, y up.
        material: what fills it.
        relief: how far from the rim the part looks rounded, in units; 0 is flat.
        opacity: 1 hides what is behind.
        softness: blur of the rim, in units.
        solid: whether the part counts in the mask. Shadows, foam and smoke do not.
    """

    outline: Outline
    material: Material
    relief: float = 0.0
    opacity: float = 1.0
    softness: float = 0.0
    solid: bool = True


@dataclass(frozen=True)
class Thing:
    """Parts that stand somewhere in the picture, in the order they are painted.

    Attributes:
        label: 1..C for an object of a class, 0 for background clutter (which hides what is behind it all the same).
        parts: painted first to last.
        x, y: pixel of the point (0, 0), on the ground.
        unit: pixels per unit.
        mirrored: looks to the left.
        tilt: rotation, in radians.
        depth: painted in this order, far to near; ``y`` unless set.
    """

    label: int
    parts: Sequence[Part] = field(repr=False)
    x: float = 0.0
    y: float = 0.0
    unit: float = 64.0
    mirrored: bool = False
    tilt: float = 0.0
    depth: float | None = None

    def to_pixels(self, outline: Outline) -> np.ndarray:
        """The outline ``(N, 2)`` as pixel coordinates (x right, y down)."""
        cos, sin = self.unit * math.cos(self.tilt), self.unit * math.sin(self.tilt)
        flip = -1 if self.mirrored else 1
        return outline @ np.array([(flip * cos, -flip * sin), (-sin, -cos)]) + (self.x, self.y)


def _shadow(x: float, half_width: float, height: float, opacity: float = 0.45) -> Part:
    dark = _matte(_hsv(0.65, 0.3, 0.10))
    return Part(_ellipse(x, 0.0, half_width, height), dark, opacity=opacity, softness=height * 0.5, solid=False)


# ---------------------------------------------------------------------------------------------------------------------
# Cat and dog: one body, two heads

COATS = (  # hue, saturation, value ranges
    ((0.05, 0.09), (0.45, 0.75), (0.45, 0.80)),  # ginger, brown
    ((0.07, 0.12), (0.05, 0.30), (0.70, 0.92)),  # cream, white
    ((0.55, 0.70), (0.02, 0.15), (0.35, 0.60)),  # grey
    ((0.02, 0.10), (0.15, 0.45), (0.16, 0.28)),  # black
)


def _coat(rng: Rng) -> tuple[Colour, Material, Material]:
    """A base colour, its fur, and the same fur in shade for the far legs."""
    first, second = rng.choice(len(COATS), 2, replace=False)
    base, other = _vary(rng, *COATS[first]), _vary(rng, *COATS[second])
    marking = 0.6 * base + 0.4 * other  # a marking belongs to its coat: the body still holds together as one surface
    pattern = str(rng.choice(["plain", "patched", "striped"]))
    return base, _fur(base, marking, pattern), _fur(base * 0.68, marking * 0.68, pattern)


def _standing(rng: Rng, fur: Material, shade: Material) -> tuple[list[Part], tuple[float, float]]:
    stride = rng.uniform(-0.10, 0.10)
    tail = _arc([(-0.46, 0.62), (-0.80, rng.uniform(0.45, 0.75)), (rng.uniform(-0.90, -0.68), rng.uniform(0.45, 1.05))])
    far = [Part(_stroke([(x, 0.45), (x + k, 0.03)], 0.14, 0.09), shade) for x, k in ((-0.30, stride), (0.36, -stride))]
    near = [
        Part(_stroke([(x, 0.45), (x - k, 0.0)], 0.16, 0.10), fur, relief=0.03)
        for x, k in ((-0.42, stride), (0.26, -stride))
    ]
    paws = [
        Part(_ellipse(x - k + 0.02, 0.03, 0.075, 0.04), fur, relief=0.02) for x, k in ((-0.42, stride), (0.26, -stride))
    ]
    rump = [(-0.52, 0.50), (-0.46, 0.68), (-0.1, 0.69), (0.30, 0.73), (0.52, 0.78), (0.52, 0.52)]
    torso = _smooth([*rump, (0.34, 0.35), (0.0, 0.36), (-0.36, 0.33)])
    body = [Part(_stroke(tail, 0.10, 0.05), fur, relief=0.02), *far, *near, *paws, Part(torso, fur, relief=0.10)]
    return [_shadow(0, 0.62, 0.07), *body], (0.60, 0.86)


def _sitting(rng: Rng, fur: Material, shade: Material) -> tuple[list[Part], tuple[float, float]]:
    tail = _arc([(-0.30, 0.08), (-0.75, rng.uniform(-0.05, 0.1)), (-0.72, rng.uniform(0.1, 0.6))])
    back = [(-0.36, 0.02), (-0.44, 0.24), (-0.30, 0.60), (-0.06, 0.90), (0.16, 0.88), (0.27, 0.60), (0.24, 0.03)]
    parts = [
        Part(_stroke(tail, 0.11, 0.06), fur, relief=0.02),
        Part(_stroke([(0.20, 0.5), (0.25, 0.02)], 0.14, 0.10), shade),
        Part(_smooth(back), fur, relief=0.12),
        Part(_ellipse(-0.20, 0.20, 0.24, 0.20, -0.2), fur, relief=0.08),
        Part(_stroke([(0.08, 0.55), (0.12, 0.0)], 0.16, 0.11), fur, relief=0.03),
        Part(_ellipse(0.15, 0.035, 0.085, 0.045), fur, relief=0.02),
        Part(_ellipse(-0.12, 0.04, 0.15, 0.05), fur, relief=0.02),
    ]
    return [_shadow(-0.05, 0.55, 0.07), *parts], (0.12, 1.00)


def _lying(rng: Rng, fur: Material, shade: Material) -> tuple[list[Part], tuple[float, float]]:
    tail = _arc([(-0.55, 0.12), (-0.95, 0.02), (-0.9, rng.uniform(0.08, 0.45))])
    torso = _smooth(
        [(-0.62, 0.03), (-0.66, 0.24), (-0.45, 0.42), (0.0, 0.40), (0.42, 0.48), (0.56, 0.22), (0.45, 0.02)]
    )
    parts = [
        Part(_stroke(tail, 0.10, 0.05), fur, relief=0.02),
        Part(_stroke([(0.40, 0.12), (0.86, 0.06)], 0.12, 0.09), shade),
        Part(torso, fur, relief=0.11),
        Part(_ellipse(-0.38, 0.18, 0.22, 0.17), fur, relief=0.07),
        Part(_stroke([(0.34, 0.10), (0.76, 0.045)], 0.12, 0.09), fur, relief=0.02),
    ]
    return [_shadow(0, 0.75, 0.07), *parts], (0.55, 0.58)


def _eyes(x: float, y: float, gap: float, radius: float, iris: Colour, slit: float) -> list[Part]:
    black = _matte(_hsv(0, 0, 0.05))
    parts = []
    for side in (-1, 1):
        parts.append(Part(_ellipse(x + side * gap, y, radius, radius), _matte(iris)))
        parts.append(Part(_ellipse(x + side * gap, y, radius * slit, radius * 0.9), black))
        parts.append(
            Part(
                _ellipse(x + side * gap + radius * 0.3, y + radius * 0.4, radius * 0.3, radius * 0.3),
                _matte(_hsv(0, 0, 1)),
            )
        )
    return parts


def _cat_head(rng: Rng, base: Colour, fur: Material, at: tuple[float, float]) -> list[Part]:
    x, y = at
    pink, pale = _matte(_hsv(0.98, 0.35, 0.80)), _matte(np.minimum(base * 1.25 + 0.15, 1), grain=0.15, cell=0.03)
    parts = []
    for side in (-1, 1):
        tip = (x + side * 0.20, y + 0.34)
        parts.append(Part(np.array([(x + side * 0.03, y + 0.12), tip, (x + side * 0.22, y + 0.03)]), fur, relief=0.02))
        parts.append(
            Part(
                np.array([(x + side * 0.09, y + 0.13), (x + side * 0.18, y + 0.27), (x + side * 0.19, y + 0.08)]), pink
            )
        )
    parts.append(Part(_ellipse(x, y, 0.235, 0.20), fur, relief=0.07))
    parts += [Part(_ellipse(x + side * 0.055, y - 0.085, 0.075, 0.06), pale, relief=0.02) for side in (-1, 1)]
    parts += _eyes(x, y + 0.02, 0.095, 0.05, _vary(rng, (0.13, 0.38), (0.5, 0.8), (0.7, 0.9)), slit=0.35)
    parts.append(Part(np.array([(x - 0.03, y - 0.04), (x + 0.03, y - 0.04), (x, y - 0.08)]), pink))
    return parts


def _dog_head(rng: Rng, base: Colour, fur: Material, at: tuple[float, float]) -> list[Part]:
    x, y = at
    black, pale = _matte(_hsv(0, 0, 0.07)), _matte(np.minimum(base * 1.25 + 0.12, 1), grain=0.15, cell=0.03)
    ear = _fur(base * 0.55, base * 0.5, "plain")
    parts = [Part(_ellipse(x, y + 0.02, 0.20, 0.21), fur, relief=0.07)]
    parts += [Part(_ellipse(x + side * 0.21, y - 0.02, 0.075, 0.20, side * 0.22), ear, relief=0.03) for side in (-1, 1)]
    if rng.random() < 0.6:
        parts.append(Part(_ellipse(x + 0.02, y - 0.25, 0.05, 0.09), _matte(_hsv(0.97, 0.5, 0.85)), relief=0.02))
    parts.append(Part(_ellipse(x, y - 0.12, 0.13, 0.11), pale, relief=0.04))
    parts += _eyes(x, y + 0.05, 0.085, 0.036, _vary(rng, (0.05, 0.1), (0.5, 0.8), (0.2, 0.4)), slit=0.7)
    parts.append(Part(_ellipse(x, y - 0.075, 0.06, 0.042), black, relief=0.02))
    return parts


def _pet(rng: Rng, head: Callable[[Rng, Colour, Material, tuple[float, float]], list[Part]]) -> list[Part]:
    base, fur, shade = _coat(rng)
    pose = (_standing, _sitting, _lying)[rng.choice(3, p=(0.5, 0.3, 0.2))]
    body, neck = pose(rng, fur, shade)
    return body + head(rng, base, fur, neck)


def _cat(rng: Rng) -> list[Part]:
    return _pet(rng, _cat_head)


def _dog(rng: Rng) -> list[Part]:
    return _pet(rng, _dog_head)


# ---------------------------------------------------------------------------------------------------------------------
# Bus and train: one carriage; wheels, roof and front differ


def _livery(rng: Rng) -> tuple[Colour, Colour]:
    """Two colours that contrast: the paint of a vehicle and its trim."""
    hue = rng.uniform(0, 1)
    return _vary(rng, (hue, hue), (0.25, 0.85), (0.45, 0.85)), _vary(
        rng, (hue + 0.3, hue + 0.7), (0.05, 0.6), (0.6, 0.95)
    )


def _carriage(rng: Rng) -> list[Part]:
    body, trim = _livery(rng)
    sill, roof = rng.uniform(0.46, 0.52), rng.uniform(0.88, 0.96)
    count = int(rng.integers(4, 7))
    pitch = 1.85 / count
    door = int(rng.integers(1, count - 1))
    glass, frame = _glass(rng), _matte(body * 0.45)
    parts = [
        Part(_box(-1.1, 0.16, 1.1, roof, 0.09), _painted(body), relief=0.05),
        Part(_box(-1.04, roof - 0.075, 1.04, roof - 0.03, 0.02), _painted(trim)),
        Part(_box(-1.1, sill - 0.15, 1.1, sill - 0.07), _painted(trim)),
        Part(_box(-1.1, 0.16, 1.1, 0.22), _matte(body * 0.35)),
    ]
    for k in range(count):
        x = -1.0 + k * pitch
        low = 0.20 if k == door else sill
        parts.append(Part(_box(x - 0.01, low - 0.01, x + pitch - 0.05, roof - 0.12, 0.03), frame))
        parts.append(Part(_box(x + 0.01, low + 0.01, x + pitch - 0.07, roof - 0.14, 0.03), glass))
    return parts


def _wheel(x: float, radius: float) -> list[Part]:
    tyre, hub = _matte(_hsv(0.6, 0.08, 0.12)), _matte(_hsv(0.6, 0.05, 0.58))
    return [
        Part(_ellipse(x, radius, radius, radius), tyre, relief=radius * 0.2),
        Part(_ellipse(x, radius, radius * 0.55, radius * 0.55), hub, relief=radius * 0.2),
        Part(_ellipse(x, radius, radius * 0.2, radius * 0.2), tyre),
    ]


def _bus(rng: Rng) -> list[Part]:
    amber, lamp = _matte(_hsv(0.11, 0.85, 0.95), grain=0.4, cell=0.04), _matte(_hsv(0.14, 0.25, 1.0))
    arches = [Part(_ellipse(x, 0.19, 0.22, 0.20), _matte(_hsv(0, 0, 0.06))) for x in (-0.66, 0.66)]
    front = [
        Part(_box(0.90, 0.46, 1.11, 0.80, 0.04), _glass(rng)),
        Part(_box(0.72, 0.82, 1.08, 0.90, 0.02), amber),
        Part(_ellipse(1.06, 0.30, 0.04, 0.045), lamp),
        Part(_stroke([(1.08, 0.84), (1.20, 0.80), (1.20, 0.62)], 0.045), _matte(_hsv(0, 0, 0.1))),
    ]
    return [_shadow(0, 1.15, 0.09, 0.6), *_carriage(rng), *arches, *_wheel(-0.66, 0.17), *_wheel(0.66, 0.17), *front]


def _train(rng: Rng) -> list[Part]:
    steel, lamp = _matte(_hsv(0.6, 0.10, 0.22)), _matte(_hsv(0.14, 0.25, 1.0))
    at = rng.uniform(-0.5, 0.3)
    arms = [[(at - 0.12, 0.92), (at + 0.12, 1.08), (at - 0.06, 1.22)], [(at - 0.22, 1.23), (at + 0.12, 1.23)]]
    pantograph = [Part(_stroke(arm, 0.035), steel) for arm in arms]
    bogies = [Part(_box(x - 0.28, 0.09, x + 0.28, 0.20, 0.03), steel) for x in (-0.66, 0.66)]
    wheels = [part for x in (-0.84, -0.50, 0.50, 0.84) for part in _wheel(x, 0.085)]
    nose = [
        Part(
            np.array([(1.05, 0.16), (1.30, 0.20), (1.30, 0.36), (1.08, 0.74)]), _painted(_livery(rng)[1]), relief=0.03
        ),
        Part(np.array([(1.10, 0.48), (1.205, 0.48), (1.10, 0.68)]), _glass(rng)),
        Part(_ellipse(1.24, 0.32, 0.035, 0.035), lamp),
        Part(_stroke([(1.28, 0.17), (1.40, 0.17)], 0.06), steel),
    ]
    return [_shadow(0.1, 1.25, 0.07, 0.6), *bogies, *wheels, *pantograph, *_carriage(rng), *nose]


# ---------------------------------------------------------------------------------------------------------------------
# Sailboat and steamboat: one hull and cabin; mast or funnel


def _hull(rng: Rng) -> list[Part]:
    paint, trim = _livery(rng)
    white = _painted(_hsv(0.1, 0.06, 0.88))
    bow = rng.uniform(1.05, 1.2)
    parts = [
        Part(_box(-0.62, 0.36, 0.32, 0.68, 0.04), white, relief=0.04),
        Part(_box(-0.68, 0.66, 0.40, 0.73, 0.02), _painted(trim), relief=0.02),
        *(Part(_box(x, 0.48, x + 0.14, 0.60, 0.03), _glass(rng)) for x in (-0.54, -0.32, -0.10, 0.12)),
        Part(_stroke([(0.45, 0.56), (bow - 0.08, 0.62)], 0.025), white),
        *(Part(_stroke([(x, 0.38), (x, 0.57)], 0.025), white) for x in (0.55, 0.75, 0.92)),
        Part(
            np.array([(-1.0, 0.40), (-0.92, 0.0), (0.78, 0.0), (bow, 0.48), (0.6, 0.38)]), _painted(paint), relief=0.06
        ),
        Part(
            np.array([(-0.98, 0.32), (-1.0, 0.40), (0.6, 0.38), (bow, 0.48), (bow - 0.07, 0.37), (0.6, 0.30)]),
            _painted(trim),
        ),
        Part(np.array([(-0.94, 0.09), (-0.92, 0.0), (0.78, 0.0), (0.85, 0.09)]), _painted(trim * 0.5)),
        *(Part(_ellipse(x, 0.21, 0.05, 0.05), _glass(rng)) for x in (-0.6, -0.3, 0.0, 0.3)),
    ]
    return parts


def _foam(rng: Rng) -> list[Part]:
    """The darkened water under a hull, and the line of foam along it."""
    white = _matte(_hsv(0.55, 0.05, 0.95), grain=0.3, cell=0.05)
    xs = np.linspace(-1.05, 0.95, 9)
    wave = [(float(x), float(rng.uniform(-0.045, 0.01))) for x in xs]
    return [
        _shadow(0, 1.0, 0.14, 0.5),
        Part(_stroke(wave, 0.05, 0.08), white, opacity=0.75, softness=0.02, solid=False),
    ]


def _sailboat(rng: Rng) -> list[Part]:
    wood = _matte(_vary(rng, (0.06, 0.1), (0.2, 0.6), (0.3, 0.75)))
    cloth = _painted(_vary(rng, (0.0, 1.0), (0.0, 0.35), (0.75, 0.95)))
    top = rng.uniform(1.55, 1.8)
    sail = _smooth([(0.36, 0.98), (0.37, top - 0.15), (0.24, 1.35), (-0.20, 0.98)], steps=3)
    rig = [
        Part(_stroke([(0.42, top), (1.02, 0.48)], 0.018), wood),
        Part(_stroke([(0.42, 0.40), (0.42, top + 0.05)], 0.055, 0.035), wood),
        Part(_stroke([(0.42, 0.93), (-0.28, 0.93)], 0.035), wood),
        Part(sail, cloth, relief=0.04),
        Part(np.array([(0.42, top + 0.05), (0.20, top), (0.42, top - 0.05)]), _matte(_livery(rng)[0])),
    ]
    hull = _hull(rng)
    return [*hull[:2], *rig[:3], *hull[2:], *rig[3:]]


def _puff(rng: Rng, at: tuple[float, float], grey: Material, *, age: int) -> Part:
    rim = _ragged(rng, *at, 0.09 + 0.05 * age, 0.07 + 0.03 * age, 0.25)
    return Part(rim, grey, opacity=0.55 - 0.1 * age, softness=0.05, solid=False)


def _steamboat(rng: Rng) -> list[Part]:
    paint, band = _livery(rng)
    height, at = rng.uniform(1.05, 1.25), rng.uniform(-0.3, 0.0)
    grey = _matte(_hsv(0.6, 0.03, rng.uniform(0.4, 0.85)), grain=0.3, cell=0.15)
    drift = rng.uniform(0.12, 0.25)
    smoke = [_puff(rng, (at - drift * k, height + 0.08 + 0.13 * k), grey, age=k) for k in range(4)]
    funnel = [
        Part(_box(at - 0.11, 0.68, at + 0.11, height, 0.01), _painted(paint), relief=0.06),
        Part(_box(at - 0.11, height - 0.20, at + 0.11, height - 0.11), _painted(band), relief=0.04),
        Part(_box(at - 0.13, height - 0.06, at + 0.13, height, 0.01), _matte(_hsv(0, 0, 0.1)), relief=0.03),
    ]
    return [*smoke, *funnel, *_hull(rng)]


MAKERS: dict[int, Callable[[Rng], list[Part]]] = {
    CAT: _cat,
    DOG: _dog,
    BUS: _bus,
    TRAIN: _train,
    SAILBOAT: _sailboat,
    STEAMBOAT: _steamboat,
}


# ---------------------------------------------------------------------------------------------------------------------
# Context that comes with a class, and clutter; all of it background


def _rails(rng: Rng) -> list[Part]:
    """Ballast, sleepers and two rails, far wider than the picture; the near rail is at y = 0."""
    stones = _vary(rng, (0.05, 0.12), (0.05, 0.2), (0.35, 0.55))
    steel = _matte(_hsv(0.6, 0.08, 0.55))
    return [
        Part(_box(-20, -0.20, 20, 0.16), _matte(stones, grain=0.45, cell=0.045), softness=0.02),
        Part(_box(-20, -0.15, 20, 0.11), _dashes(_hsv(0.07, 0.35, 0.25), stones, 0.27, 0.5)),
        Part(_box(-20, 0.055, 20, 0.08), steel),
        Part(_box(-20, -0.065, 20, -0.05), _matte(_hsv(0.06, 0.4, 0.25))),
        Part(_box(-20, -0.05, 20, 0.0), steel),
    ]


def _road(rng: Rng) -> list[Part]:
    grey, white = _hsv(0.6, 0.06, rng.uniform(0.28, 0.48)), _hsv(0.13, rng.choice([0.0, 0.5]), 0.88)
    kerb = _matte(_hsv(0.1, 0.06, rng.uniform(0.6, 0.8)), grain=0.2)
    return [
        Part(_box(-20, -0.36, 20, 0.22), _matte(grey, grain=0.28, cell=0.04)),
        Part(_box(-20, -0.16, 20, -0.125), _dashes(white, grey, 0.62, 0.5)),
        Part(_box(-20, 0.20, 20, 0.26), kerb),
        Part(_box(-20, -0.40, 20, -0.35), kerb),
    ]


def _ball(rng: Rng) -> list[Part]:
    hue = rng.uniform(0, 1)
    return [
        _shadow(0.02, 0.13, 0.03),
        Part(_ellipse(0, 0.12, 0.12, 0.12), _painted(_hsv(hue, 0.75, 0.85)), relief=0.05),
        Part(
            _smooth([(-0.11, 0.10), (0, 0.15), (0.11, 0.13), (0.11, 0.09), (0, 0.10), (-0.10, 0.06)]),
            _matte(_hsv(hue + 0.4, 0.2, 0.95)),
        ),
    ]


def _bush(rng: Rng) -> list[Part]:
    green = _leaves(_vary(rng, (0.18, 0.38), (0.35, 0.7), (0.25, 0.5)))
    lumps = [(x, rng.uniform(0.18, 0.3)) for x in (-0.3, 0.28, 0.0)]
    return [_shadow(0, 0.6, 0.07), *(Part(_ragged(rng, x, y, 0.32, 0.26, 0.2), green, relief=0.08) for x, y in lumps)]


def _tree(rng: Rng) -> list[Part]:
    bark = _matte(_vary(rng, (0.05, 0.1), (0.2, 0.5), (0.2, 0.4)), grain=0.35, cell=0.05)
    crown = _leaves(_vary(rng, (0.08 if rng.random() < 0.2 else 0.2, 0.36), (0.35, 0.7), (0.25, 0.5)))
    lumps = [(-0.24, 1.0), (0.26, 1.05), (0.0, 1.35), (0.02, 0.95)]
    trunk = Part(_stroke([(0, -0.02), (rng.uniform(-0.05, 0.05), 0.5), (0, 1.0)], 0.16, 0.08), bark, relief=0.03)
    crowns = [Part(_ragged(rng, x, y, 0.34, 0.32, 0.18), crown, relief=0.09) for x, y in lumps]
    return [_shadow(0.1, 0.5, 0.06), trunk, *crowns]


def _stone(rng: Rng) -> list[Part]:
    grey = _matte(_vary(rng, (0.05, 0.65), (0.03, 0.18), (0.35, 0.7)), grain=0.25)
    return [
        _shadow(0.03, 0.36, 0.06),
        Part(_ragged(rng, 0, 0.14, 0.32, rng.uniform(0.14, 0.24), 0.15, 9), grey, relief=0.08),
    ]


def _shed(rng: Rng) -> list[Part]:
    """A hut: windows, boards and straight edges that belong to no class."""
    wall = _planks(_vary(rng, (0.0, 0.15), (0.15, 0.55), (0.35, 0.75)), 0.09)
    roof = _matte(_vary(rng, (0.0, 0.08), (0.2, 0.6), (0.25, 0.5)), grain=0.25, cell=0.05)
    return [
        _shadow(0, 0.65, 0.06),
        Part(_box(-0.55, 0, 0.55, 0.62), wall),
        Part(np.array([(-0.66, 0.58), (0.66, 0.58), (0.45, 0.95), (-0.45, 0.95)]), roof, relief=0.03),
        Part(_box(-0.38, 0.26, -0.10, 0.48, 0.01), _glass(rng)),
        Part(_box(0.12, 0.0, 0.36, 0.46, 0.01), _matte(_hsv(0.07, 0.4, 0.25))),
    ]


def _lamp_post(rng: Rng) -> list[Part]:
    iron = _matte(_hsv(0.6, 0.1, rng.uniform(0.12, 0.35)))
    return [
        _shadow(0, 0.12, 0.025),
        Part(_stroke([(0, 0), (0, 1.6)], 0.06, 0.04), iron),
        Part(_stroke(_arc([(0, 1.55), (0.05, 1.75), (0.30, 1.70)]), 0.035), iron),
        Part(_ellipse(0.32, 1.67, 0.09, 0.05), _matte(_hsv(0.14, 0.2, 0.95))),
    ]


def _fence(rng: Rng) -> list[Part]:
    wood = _matte(_vary(rng, (0.06, 0.12), (0.05, 0.45), (0.4, 0.85)), grain=0.25, cell=0.04)
    posts = [Part(_box(x, 0, x + 0.07, 0.42, 0.02), wood, relief=0.02) for x in np.arange(-1.2, 1.2, 0.26)]
    return [*(Part(_box(-1.3, y, 1.3, y + 0.05), wood, relief=0.02) for y in (0.12, 0.29)), *posts]


def _flowers(rng: Rng) -> list[Part]:
    petal, green = _matte(_vary(rng, (0.75, 1.18), (0.3, 0.85), (0.8, 1.0))), _matte(_hsv(0.27, 0.6, 0.4))
    parts = []
    for x in rng.uniform(-0.4, 0.4, 6):
        top = rng.uniform(0.12, 0.30)
        parts.append(Part(_stroke([(x, 0), (x + 0.02, top)], 0.02), green))
        parts.append(Part(_ellipse(x + 0.02, top, 0.05, 0.045), petal, relief=0.01))
    return parts


def _plant_pot(rng: Rng) -> list[Part]:
    clay, green = (
        _matte(_vary(rng, (0.0, 1.0), (0.15, 0.6), (0.4, 0.8))),
        _leaves(_hsv(rng.uniform(0.25, 0.38), 0.55, 0.4)),
    )
    stems = [_arc([(0, 0.3), (0.2 * lean, 0.7), (lean, rng.uniform(0.5, 1.0))]) for lean in rng.uniform(-0.45, 0.45, 7)]
    pot = Part(np.array([(-0.17, 0), (0.17, 0), (0.23, 0.34), (-0.23, 0.34)]), clay, relief=0.05)
    return [_shadow(0, 0.25, 0.04), *(Part(_stroke(stem, 0.11, 0.02), green, relief=0.01) for stem in stems), pot]


def _cushion(rng: Rng) -> list[Part]:
    weave = _fur(
        _vary(rng, (0.0, 1.0), (0.15, 0.6), (0.35, 0.8)), _vary(rng, (0.0, 1.0), (0.1, 0.5), (0.4, 0.9)), "striped"
    )
    pillow = _smooth(
        [(-0.42, 0.02), (-0.36, 0.20), (-0.40, 0.40), (0, 0.36), (0.40, 0.42), (0.36, 0.2), (0.42, 0.02), (0, 0.05)]
    )
    return [_shadow(0, 0.45, 0.05), Part(pillow, weave, relief=0.08)]


def _picture(rng: Rng) -> list[Part]:
    frame = _planks(_vary(rng, (0.05, 0.12), (0.2, 0.6), (0.25, 0.7)), 0.05)
    canvas = _leaves(_vary(rng, (0.0, 1.0), (0.1, 0.6), (0.4, 0.8)))
    return [Part(_box(-0.3, 0, 0.3, 0.46), frame, relief=0.02), Part(_box(-0.23, 0.07, 0.23, 0.39), canvas)]


def _buoy(rng: Rng) -> list[Part]:
    shell = _painted(_vary(rng, (0.0, 0.12), (0.6, 0.9), (0.6, 0.9)))
    return [
        _shadow(0, 0.2, 0.05),
        Part(_ellipse(0, 0.10, 0.13, 0.14), shell, relief=0.05),
        Part(_stroke([(0, 0.2), (0, 0.45)], 0.03), shell),
    ]


# ---------------------------------------------------------------------------------------------------------------------
# Backdrops


@dataclass(frozen=True)
class Backdrop:
    """What lies behind the things, and where they may stand.

    It is drawn at the final resolution (a quarter of the work, and the enlarged picture is halved again in the end).

    Attributes:
        pixels: ``(S, S, 3)`` float32 RGB in [0, 1].
        horizon: the farthest row on which something can stand.
        shore: the first row of dry ground; equal to ``horizon`` without water.
        clutter: makers of things that may stand on the ground.
    """

    pixels: np.ndarray
    horizon: float
    shore: float
    clutter: Sequence[Callable[[Rng], list[Part]]]

    def enlarged(self, factor: int) -> Backdrop:
        """The same with every pixel repeated ``factor`` times in both directions."""
        pixels = np.clip(self.pixels, 0, 1).repeat(factor, axis=0).repeat(factor, axis=1)
        return replace(self, pixels=pixels, horizon=factor * self.horizon, shore=factor * self.shore)


def _edge(rng: Rng, side: int, at: float, roughness: float, cell: float) -> np.ndarray:
    """A share ``(side, side)``, 0 above and 1 below an uneven line around row ``at``."""
    line = at + roughness * _noise(rng, 1, side, (1, cell), octaves=3)
    return np.clip(np.arange(side, dtype=np.float32)[:, None] - line, 0, 1)


def _sky(rng: Rng, side: int) -> np.ndarray:
    zenith = _vary(rng, (0.53, 0.64), (0.15, 0.65), (0.55, 0.95))
    horizon = _vary(rng, (0.02, 0.15) if rng.random() < 0.3 else (0.5, 0.6), (0.03, 0.3), (0.8, 1.0))
    sky = _mix(zenith, horizon, np.broadcast_to(1.6 * _rows(side), (side, side)))
    clouds = _noise(rng, side, side, (0.16 * side, 0.40 * side), octaves=5)
    return _mix(sky, np.float32(0.96) + 0.06 * clouds[..., None], 1.3 * clouds - rng.uniform(-0.1, 0.5))


def _far(rng: Rng, sky: np.ndarray, horizon: float) -> np.ndarray:
    """Hills or a tree line in the haze between sky and ground."""
    side = len(sky)
    air = sky.mean(axis=(0, 1))
    above = slice(0, int(1.1 * horizon))
    for k in range(int(rng.integers(1, 4))):
        haze = 0.55 - 0.2 * k
        land = _leaves(_vary(rng, (0.2, 0.6), (0.15, 0.45), (0.3, 0.5)))(rng, above.stop, side, 0.3 * side)
        height = rng.uniform(0.05, 0.16) * side / (1 + 0.6 * k)
        ridge = _edge(rng, side, horizon - height, 0.8 * height, rng.uniform(0.1, 0.5) * side)
        sky[above] = _mix(sky[above], land * (1 - haze) + haze * air, ridge[above])
    return sky


def _grass(rng: Rng, side: int) -> np.ndarray:
    green, dry = _vary(rng, (0.17, 0.33), (0.3, 0.65), (0.35, 0.6)), _vary(rng, (0.10, 0.16), (0.3, 0.5), (0.5, 0.7))
    meadow = _mix(
        green, dry, 0.7 * _noise(rng, side, side, (0.08 * side, 0.3 * side), octaves=3) + rng.uniform(-0.1, 0.4)
    )
    blades = _noise(rng, side, side, (3.5, 1.4))
    return meadow * (0.75 + 0.4 * _rows(side) + 0.24 * blades)[..., None]


def _sand(rng: Rng, side: int) -> np.ndarray:
    return (
        _matte(_vary(rng, (0.07, 0.13), (0.15, 0.45), (0.55, 0.85)), grain=0.13, cell=0.12)(rng, side, side, side)
        * (0.8 + 0.3 * _rows(side) + 0.16 * _noise(rng, side, side, (2, 3), octaves=2))[..., None]
    )


def _paving(rng: Rng, side: int, top: float) -> np.ndarray:
    """Flagstones that recede towards row ``top``."""
    stone = _vary(rng, (0.05, 0.65), (0.02, 0.15), (0.45, 0.75))
    distance = side / np.maximum(np.arange(side, dtype=np.float32) - 0.6 * top, 4.0)[:, None]
    across = (np.arange(side, dtype=np.float32)[None, :] / side - 0.5) * distance * 5 + 40
    along = distance * 7
    tones = 1 + 0.14 * rng.uniform(-1, 1, (16, 16)).astype(np.float32)
    flags = tones[across.astype(int) % 16, along.astype(int) % 16]
    joint = np.maximum(across % 1.0 < 0.06, along % 1.0 < 0.10)
    wear = _noise(rng, side, side, (0.1 * side, 0.2 * side), octaves=4)
    return stone * (flags * (1 - 0.35 * joint) * (1 + 0.13 * wear))[..., None]


def _water(rng: Rng, side: int) -> np.ndarray:
    deep, light = _vary(rng, (0.46, 0.62), (0.3, 0.7), (0.3, 0.6)), _vary(rng, (0.48, 0.6), (0.05, 0.3), (0.75, 0.95))
    swell = _noise(rng, side, side, (0.04 * side, 0.30 * side), octaves=2)
    ripples = _noise(rng, side, side, (2, 11), octaves=2)
    glints = np.maximum(0, ripples + 0.5 * swell - 0.45)
    return _mix(_mix(deep, light, 0.45 - 0.35 * _rows(side) + 0.25 * swell + 0.3 * ripples), light, 1.2 * glints)


def _room(rng: Rng, side: int) -> Backdrop:
    floor_at = rng.uniform(0.45, 0.65) * side
    tint = _vary(rng, (0.0, 1.0), (0.05, 0.45), (0.5, 0.9))
    wall = _matte(tint, grain=0.10, cell=0.2)(rng, side, side, side)
    if rng.random() < 0.5:
        stripes = np.sin(np.arange(side) * (2 * np.pi / rng.uniform(7, 20))) > rng.uniform(-0.3, 0.6)
        wall *= 1 - 0.16 * stripes[None, :, None].astype(np.float32)
    boards = _planks(_vary(rng, (0.05, 0.10), (0.3, 0.65), (0.4, 0.75)), 0.07)(rng, side, side, side)
    room = _mix(wall, boards, _edge(rng, side, floor_at, 0.0, side))
    skirting = slice(int(floor_at) - max(2, side // 40), int(floor_at))
    room[skirting] = 0.85 * room[skirting] * 0.2 + 0.7
    return Backdrop(room, floor_at, floor_at, (_plant_pot, _cushion, _plant_pot, _cushion))


def _street(rng: Rng, side: int) -> Backdrop:
    foot = rng.uniform(0.40, 0.58) * side
    brick = _vary(rng, (0.0, 0.09), (0.25, 0.6), (0.40, 0.7))
    wall = _bricks(brick, _hsv(0.1, 0.1, rng.uniform(0.5, 0.85)), rng.uniform(0.03, 0.05))(rng, side, side, side)
    ground = _paving(rng, side, foot) if rng.random() < 0.6 else _grass(rng, side)
    street = _mix(wall, ground, _edge(rng, side, foot, 0.0, side))
    return Backdrop(street, foot, foot, (_lamp_post, _plant_pot, _bush, _tree))


def _countryside(rng: Rng, side: int) -> Backdrop:
    horizon = rng.uniform(0.28, 0.52) * side
    ground = (_grass, _grass, _sand)[rng.integers(3)](rng, side)
    land = _mix(_far(rng, _sky(rng, side), horizon), ground, _edge(rng, side, horizon, 0.015 * side, 0.3 * side))
    return Backdrop(land, horizon, horizon, (_bush, _tree, _stone, _shed, _fence, _flowers))


def _coast(rng: Rng, side: int, *, dry: bool) -> Backdrop:
    """Sea or lake; ``dry`` leaves room on a beach for things that do not float."""
    horizon = rng.uniform(0.25, 0.42) * side
    shore = side * (rng.uniform(0.62, 0.72) if dry else rng.uniform(0.82, 1.25))
    sky = _sky(rng, side)
    if rng.random() < 0.6:
        sky = _far(rng, sky, horizon)
    sea = _mix(sky, _water(rng, side), _edge(rng, side, horizon, 0.0, side))
    line = _edge(rng, side, shore, 0.03 * side, 0.35 * side)
    surf = np.clip(4 * line * (1 - np.roll(line, int(0.015 * side), axis=0)), 0, 1)
    beach = _mix(sea, (_sand if rng.random() < 0.6 else _grass)(rng, side), line)
    return Backdrop(_mix(beach, np.ones(3, np.float32), 0.6 * surf), horizon, shore, (_stone, _bush, _fence, _buoy))


def _backdrop(rng: Rng, side: int, classes: Sequence[int]) -> Backdrop:
    boats = BOATS.intersection(classes)
    if (boats and rng.random() > STRAY_CONTEXT / 2) or (not boats and rng.random() < STRAY_CONTEXT):
        return _coast(rng, side, dry=not boats or len(boats) < len(classes))
    if not boats and PETS.issuperset(classes) and rng.random() < 0.4:
        return _room(rng, side)
    return _street(rng, side) if rng.random() < 0.25 else _countryside(rng, side)


# ---------------------------------------------------------------------------------------------------------------------
# Composition


@dataclass(frozen=True)
class Actor:
    """An object before it is placed: its class, its parts and their area in square units."""

    label: int
    parts: Sequence[Part]
    area: float


def _unit_area(parts: Sequence[Part]) -> float:
    """Area of the union of the solid parts, in square units."""
    side = 160
    thing = Thing(1, parts, x=side / 2, y=0.85 * side, unit=side / 3.2)
    return float(np.count_nonzero(_label_map([thing], side))) / thing.unit**2


def _stand(rng: Rng, scene: Backdrop, actor: Actor, *, share: float, slot: tuple[int, int]) -> Thing:
    """Place an object so that it covers about ``share`` of the picture, near the middle of slot ``(index, count)``."""
    side = len(scene.pixels)
    unit = side * math.sqrt(share / actor.area)
    index, count = slot
    x = side * (index + 0.5 + rng.uniform(-0.18, 0.18)) / count
    afloat = actor.label in BOATS and scene.shore > scene.horizon
    far, near = (scene.horizon, min(scene.shore - 0.01 * side, 0.95 * side)) if afloat else (scene.shore, 0.97 * side)
    # Perspective: the larger it looks, the nearer, hence the lower it stands.
    nearness = np.clip(0.12 + 1.1 * math.sqrt(share / 0.3) + rng.uniform(-0.12, 0.12), 0.08, 1.0)
    y = far + (near - far) * nearness
    tilt = rng.uniform(-0.06, 0.06) if actor.label in PETS | BOATS else 0.0
    footing = _foam(rng) if afloat else [_shadow(0, 0.9, 0.08)] if actor.label in BOATS else []
    return Thing(actor.label, [*actor.parts, *footing], x, float(y), unit, bool(rng.random() < 0.5), float(tilt))


def _objects(rng: Rng, scene: Backdrop, classes: Sequence[int], clutter: Sequence[Thing]) -> list[Thing]:
    """One thing per class, now and then two, tried again until each can be seen well enough to deserve its tag."""
    side = len(scene.pixels)
    labels = [*classes, classes[0]] if classes and len(classes) < 3 and rng.random() < 0.15 else list(classes)
    actors = [Actor(label, parts, _unit_area(parts)) for label in labels for parts in (MAKERS[label](rng),)]
    low, high = AREA_RANGES[max(len(labels), 1) - 1]
    best: list[Thing] = []
    best_seen = -1.0
    for _ in range(12):
        order = rng.permutation(len(labels))
        shares = rng.uniform(np.sqrt(low), np.sqrt(high), len(labels)) ** 2  # even in length, not in area
        things = [
            _stand(rng, scene, actor, share=float(share), slot=(int(slot), len(labels)))
            for actor, share, slot in zip(actors, shares, order, strict=True)
        ]
        seen = _least_visible(things, clutter, shares * side**2, side)
        if seen > best_seen:
            best, best_seen = things, seen
        if seen > 0.8:
            break
    return best


def _least_visible(objects: Sequence[Thing], clutter: Sequence[Thing], areas: np.ndarray, side: int) -> float:
    """The smallest share of any one object that is inside the picture and not hidden behind something else."""
    numbered = [replace(thing, label=k + 1) for k, thing in enumerate(objects)]
    labels = _label_map([*numbered, *clutter], side)
    counts = np.bincount(labels.ravel(), minlength=len(objects) + 1)[1:]
    return float(min(counts / areas, default=1.0))


def _strip(rng: Rng, scene: Backdrop, make: Callable[[Rng], list[Part]], under: Thing | None) -> Thing:
    """Road or rails across the picture, under a vehicle or on their own."""
    side = len(scene.pixels)
    if under is not None:
        return Thing(0, make(rng), under.x, under.y, under.unit, depth=scene.shore - 1)
    y = scene.shore + (side - scene.shore) * rng.uniform(0.25, 0.8)
    return Thing(0, make(rng), side / 2, y, side * rng.uniform(0.2, 0.4), depth=scene.shore - 1)


def _context(rng: Rng, scene: Backdrop, objects: Sequence[Thing]) -> list[Thing]:
    """What usually comes with the objects, missing now and then, and now and then there without them."""
    things: list[Thing] = []
    for label, make in ((BUS, _road), (TRAIN, _rails)):
        owners = [thing for thing in objects if thing.label == label]
        if owners and rng.random() > STRAY_CONTEXT / 2:
            things += [_strip(rng, scene, make, owner) for owner in owners]
        elif not owners and scene.shore < 0.8 * len(scene.pixels) and _plant_pot not in scene.clutter[:1]:
            things += [_strip(rng, scene, make, None)] if rng.random() < STRAY_CONTEXT else []
    dogs = [thing for thing in objects if thing.label == DOG and rng.random() < 0.7]
    for dog in dogs:
        away = dog.unit * rng.uniform(0.6, 1.0) * rng.choice((-1, 1))
        things.append(Thing(0, _ball(rng), dog.x + away, dog.y + 0.04 * dog.unit, dog.unit * rng.uniform(0.9, 1.4)))
    return things


def _clutter(rng: Rng, scene: Backdrop) -> list[Thing]:
    """Distractors on the dry ground; nearer ones are larger and may hide a little of an object."""
    side = len(scene.pixels)
    things = []
    for _ in range(int(rng.integers(2, 6))):
        make = scene.clutter[int(rng.integers(len(scene.clutter)))]
        far, near = (scene.horizon, scene.shore) if make is _buoy else (scene.shore, side)
        nearness = rng.beta(0.9, 2.2)
        y = far + (near - far) * (0.03 + nearness)
        unit = side * (0.13 + 0.22 * nearness) * rng.uniform(0.7, 1.3)
        things.append(Thing(0, make(rng), rng.uniform(-0.05, 1.05) * side, y, unit, bool(rng.random() < 0.5)))
    return [thing for thing in things if thing.y < 1.1 * side]


def _on_wall(rng: Rng, scene: Backdrop) -> list[Thing]:
    """Pictures on the wall of a room, behind everything."""
    if _cushion not in scene.clutter:
        return []
    side = len(scene.pixels)
    spots = rng.uniform(0.1, 0.9, int(rng.integers(0, 3)))
    return [
        Thing(0, _picture(rng), x * side, scene.horizon * rng.uniform(0.45, 0.75), 0.3 * side, depth=-1.0)
        for x in spots
    ]


def _far_to_near(things: Iterable[Thing]) -> list[Thing]:
    return sorted(things, key=lambda thing: thing.y if thing.depth is None else thing.depth)


def _label_map(things: Iterable[Thing], side: int) -> np.ndarray:
    """Labels ``(side, side)`` uint8 of what is in front at each pixel."""
    image = Image.new("L", (side, side))
    draw = ImageDraw.Draw(image)
    for thing in _far_to_near(things):
        for part in thing.parts:
            if part.solid:
                draw.polygon(thing.to_pixels(part.outline).ravel().tolist(), fill=thing.label)
    return np.asarray(image)


# ---------------------------------------------------------------------------------------------------------------------
# Painting


def _blur(mask: Image.Image, radius: float) -> np.ndarray:
    return np.asarray(mask.filter(ImageFilter.GaussianBlur(radius)), dtype=np.float32) / 255


def _paint(rng: Rng, canvas: np.ndarray, part: Part, thing: Thing, light: np.ndarray) -> None:
    """Paint one part onto ``canvas`` ``(S, S, 3)``, in place; ``light`` points to the sun (x right, y down)."""
    side = len(canvas)
    points = thing.to_pixels(part.outline)
    margin = 2 + int(2.5 * max(part.relief, part.softness) * thing.unit)
    x0, y0 = np.maximum(np.floor(points.min(axis=0)).astype(int) - margin, -margin)
    x1, y1 = np.minimum(np.ceil(points.max(axis=0)).astype(int) + margin, side + margin)
    if x1 <= max(x0, 0) or y1 <= max(y0, 0) or x0 >= side or y0 >= side:
        return
    stencil = Image.new("L", (int(x1 - x0), int(y1 - y0)))
    ImageDraw.Draw(stencil).polygon((points - (x0, y0)).ravel().tolist(), fill=255)
    top, left = max(-y0, 0), max(-x0, 0)
    inside = (slice(top, top + min(y1, side) - max(y0, 0)), slice(left, left + min(x1, side) - max(x0, 0)))
    alpha = _blur(stencil, part.softness * thing.unit) if part.softness else np.asarray(stencil, np.float32) / 255
    alpha = part.opacity * alpha[inside]
    fill = part.material(rng, alpha.shape[0], alpha.shape[1], thing.unit)
    if part.relief * thing.unit > 1:
        fill = fill * _relief(stencil, part.relief * thing.unit, light)[inside][..., None]
    target = canvas[max(y0, 0) : min(y1, side), max(x0, 0) : min(x1, side)]
    target += (np.clip(fill, 0, 1) - target) * alpha[..., None]


def _relief(stencil: Image.Image, radius: float, light: np.ndarray) -> np.ndarray:
    """Shading ``(h, w)`` around 1: the blurred outline is read as a height, lit from ``light``."""
    height = _blur(stencil, radius)
    slope_y, slope_x = np.gradient(height)
    facing = -(slope_x * light[0] + slope_y * light[1]) * radius
    return 0.82 + 0.22 * height + 1.1 * facing


def _photograph(rng: Rng, canvas: np.ndarray, light: np.ndarray) -> np.ndarray:
    """The scene ``(S, S, 3)`` as a camera takes it: ``(S/2, S/2, 3)`` uint8, with light, haze, blur and noise."""
    halved = sum(canvas[y::OVERSAMPLING, x::OVERSAMPLING] for y in range(OVERSAMPLING) for x in range(OVERSAMPLING))
    side = len(canvas) // OVERSAMPLING
    ramp = np.linspace(-1, 1, side, dtype=np.float32)
    sunlit = 1 + 0.10 * (light[0] * ramp[None, :] + light[1] * ramp[:, None])
    cover = 1 + 0.10 * _noise(rng, side, side, (0.5 * side, 0.5 * side), octaves=2)
    vignette = 1 - 0.05 * (ramp[None, :] ** 2 + ramp[:, None] ** 2)
    tint = 1 + rng.uniform(-0.09, 0.09) * np.array([1, 0.1, -1], dtype=np.float32)
    exposed = halved / OVERSAMPLING**2 * (sunlit * cover * vignette * rng.uniform(0.85, 1.15))[..., None] * tint
    picture = Image.fromarray((255 * np.clip(exposed, 0, 1) ** rng.uniform(0.85, 1.15)).astype(np.uint8))
    pixels = np.asarray(picture.filter(ImageFilter.GaussianBlur(rng.uniform(0.0, 0.55))), dtype=np.float32)
    grain = rng.standard_normal(pixels.shape, dtype=np.float32) * np.float32(rng.uniform(1.5, 6.0))
    return np.clip(pixels + grain + 0.5, 0, 255).astype(np.uint8)


def _reduce_labels(labels: np.ndarray) -> np.ndarray:
    """Halve a label map: of four labels take the third in order, which is the majority wherever at most two meet."""
    height, width = (n // OVERSAMPLING for n in labels.shape)
    blocks = labels.reshape(height, OVERSAMPLING, width, OVERSAMPLING).swapaxes(1, 2).reshape(height, width, -1)
    return np.sort(blocks, axis=2)[..., OVERSAMPLING]


def draw_scene(rng: np.random.Generator, *, size: int, classes: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """Draw one scene that holds the given classes.

    Args:
        rng: decides everything else: place, poses, colours, light, clutter.
        size: height and width in pixels, at least 32.
        classes: up to three different class ids in 1..C; empty for a scene of background alone.

    Returns:
        The image ``(size, size, 3)`` uint8, RGB, and its mask ``(size, size)`` uint8 with 0 background, 1..C classes.
    """
    side = OVERSAMPLING * size
    classes = [int(label) for label in classes]
    scene = _backdrop(rng, size, classes).enlarged(OVERSAMPLING)
    clutter = [*_clutter(rng, scene), *_on_wall(rng, scene)]
    objects = _objects(rng, scene, classes, clutter)
    things = _far_to_near([*objects, *_context(rng, scene, objects), *clutter])
    angle = rng.uniform(np.pi * 0.15, np.pi * 0.85)
    light = np.array([np.cos(angle), -np.sin(angle)], dtype=np.float32)
    canvas = scene.pixels.astype(np.float32)
    for thing in things:
        for part in thing.parts:
            _paint(rng, canvas, part, thing, light)
    return _photograph(rng, canvas, light), _reduce_labels(_label_map(things, side))


# ---------------------------------------------------------------------------------------------------------------------
# On disk


def _classes_of(rng: Rng, index: int) -> list[int]:
    """Which classes an image shows. The first goes round with the index, so that every class is as frequent."""
    count = int(rng.choice(len(COUNT_SHARES), p=COUNT_SHARES))
    first = 1 + index % len(CLASSES)
    others = [label for label in range(1, len(CLASSES) + 1) if label != first]
    return [first, *rng.permutation(others)[: count - 1].tolist()] if count else []


def _render_image(root: Path, name: str, *, seed: int, split: int, index: int, size: int) -> None:
    rng = np.random.default_rng([seed, split, index])
    image, mask = draw_scene(rng, size=size, classes=_classes_of(rng, index))
    Image.fromarray(image).save(root / "JPEGImages" / f"{name}.jpg", quality=92)
    indexed = Image.fromarray(mask)
    indexed.putpalette(voc_palette().ravel().tolist())
    indexed.save(root / "SegmentationClass" / f"{name}.png")


def _render_into(root: Path, record: dict[str, Any]) -> None:
    lists = root / "ImageSets" / "Segmentation"
    for folder in (root / "JPEGImages", root / "SegmentationClass", lists):
        folder.mkdir(parents=True)
    number = 0
    for split, split_name in enumerate(("train", "val")):
        names = []
        for index in range(record[split_name]):
            number += 1
            names.append(f"demo_{number:05d}")
            _render_image(root, names[-1], seed=record["seed"], split=split, index=index, size=record["size"])
        (lists / f"{split_name}.txt").write_text("".join(f"{name}\n" for name in names), encoding="utf-8")
    (root / "classes.txt").write_text("".join(f"{name}\n" for name in CLASSES), encoding="utf-8")
    (root / RECORD).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def _is_rendered(root: Path, wanted: dict[str, Any]) -> bool:
    """Whether ``root`` holds the wanted set; an error if something else is in the way."""
    if not root.exists() or (root.is_dir() and not any(root.iterdir())):
        return False
    try:
        found = json.loads((root / RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise DataError(
            f"{root} exists and is not a demo data set (it has no readable {RECORD}), so nothing was written.\n"
            f"Asked for: {json.dumps(wanted)}\nName another folder, or move this one away."
        ) from None
    if found != wanted:
        raise DataError(
            f"{root} holds another demo data set.\nFound:     {json.dumps(found)}\nAsked for: {json.dumps(wanted)}\n"
            "Delete the folder to render it anew, name another folder, or ask for what is there."
        )
    return True


def _is_running(pid: int) -> bool:
    """Whether a process of this machine has this id; where the system cannot say, it is taken to run."""
    if os.name != "posix":
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        pass
    return True


def _is_stale(partial: Path) -> bool:
    """Whether nobody works on ``partial`` any more: its process has ended, or, on another machine, a day has passed."""
    pid, _, rest = partial.name.rpartition(".partial-")[2].partition("-")
    if rest.rpartition("-")[0] == socket.gethostname() and pid.isdigit():
        return not _is_running(int(pid))
    return time.time() - partial.stat().st_mtime > 24 * 3600


def _remove_stale(root: Path) -> None:
    """Remove what killed renders of ``root`` have left."""
    for partial in root.parent.glob(f".{glob.escape(root.name)}.partial-*"):
        with contextlib.suppress(FileNotFoundError):  # another process may clear up at the same time
            if _is_stale(partial):
                shutil.rmtree(partial, ignore_errors=True)


def render_demo(root: Path, *, seed: int, train: int, val: int, size: int) -> None:
    """Render the demo data set into ``root``, in the layout of PASCAL VOC; return at once if it is there already.

    An image depends on the seed, its split and its place in it alone, not on how many others there are. The set appears
    under ``root`` in one rename when it is complete, so that a killed render leaves none and two at once do no harm.

    Args:
        root: the folder to make: ``JPEGImages``, ``SegmentationClass``, ``ImageSets/Segmentation/{train,val}.txt``,
            ``classes.txt`` (without background) and ``demo.json``, the record of these parameters.
        seed: not negative.
        train: number of training images.
        val: number of validation images.
        size: height and width of every image in pixels, at least 32.

    Raises:
        DataError: ``root`` holds another set or something else, or a parameter is out of range.
    """
    if seed < 0 or train < 0 or val < 0 or size < MIN_SIZE:
        raise DataError(
            f"the demo data set needs seed, train, val >= 0 and size >= {MIN_SIZE}, "
            f"got seed={seed}, train={train}, val={val}, size={size}."
        )
    numbers = {"seed": int(seed), "train": int(train), "val": int(val), "size": int(size)}
    wanted = {"generator": __name__, "version": VERSION, **numbers, "classes": list(CLASSES)}
    root = Path(root).absolute()
    if _is_rendered(root, wanted):
        return
    root.parent.mkdir(parents=True, exist_ok=True)
    _remove_stale(root)
    partial = root.with_name(f".{root.name}.partial-{os.getpid()}-{socket.gethostname()}-{uuid.uuid4().hex[:8]}")
    try:
        _render_into(partial, wanted)
        _publish(partial, root, wanted)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _publish(partial: Path, root: Path, wanted: dict[str, Any]) -> None:
    """Rename ``partial`` to ``root``. Who comes second keeps what the first has made, if it is the same set."""
    try:
        partial.rename(root)
    except OSError:
        if not _is_rendered(root, wanted):
            raise
