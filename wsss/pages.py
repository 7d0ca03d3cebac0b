"""The HTML pages of this program: templates, escaped and strict about names; and numbers as a reader wants them."""

from __future__ import annotations

import json
import math
from functools import cache

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined, Template

DASH = "\N{EN DASH}"


def number(value: object) -> float | None:
    """A finite number, or None for whatever else a metrics file may hold.

    >>> number(0.5), number(True), number(float("nan")), number("high")
    (0.5, None, None, None)
    """
    if isinstance(value, bool) or not isinstance(value, int | float | np.floating | np.integer):
        return None
    return float(value) if math.isfinite(value) else None


def percent(value: object, digits: int = 1) -> str:
    """A fraction in percent without its sign, or a dash."""
    found = number(value)
    return DASH if found is None else f"{100 * found:.{digits}f}"


def points(value: object) -> str:
    """A difference of fractions in percentage points, with its sign; a dash for none.

    >>> points(0.0123), points(-0.00001), points(None)
    ('+1.2', '0.0', '\N{EN DASH}')
    """
    found = number(value)
    if found is None:
        return DASH
    text = f"{100 * found:+.1f}"
    return text[1:] if float(text) == 0 else text


def duration(seconds: float | None) -> str:
    """Wall time for a reader.

    >>> duration(4.21), duration(125), duration(3725)
    ('4.2 s', '2 min 05 s', '1 h 02 min')
    """
    if seconds is None:
        return DASH
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def plain(value: object) -> str:
    """A fact as text; nested ones as JSON."""
    if isinstance(value, float):
        return f"{value:.6g}" if math.isfinite(value) else DASH
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


FILTERS = {"percent": percent, "points": points, "duration": duration, "plain": plain}


@cache
def template(name: str) -> Template:
    """The file ``name`` of the package's templates. Its filters are ``FILTERS``."""
    environment = Environment(
        loader=PackageLoader("wsss", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= FILTERS
    return environment.get_template(name)


__all__ = ["DASH", "duration", "number", "percent", "plain", "points", "template"]
