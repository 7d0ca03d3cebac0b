"""The HTML pages of this program: templates beside the modules, escaped, and strict about names."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, Template


@cache
def template(name: str, /, **filters: Callable[..., Any]) -> Template:
    """The template file ``name`` of the package, with filters by name."""
    environment = Environment(
        loader=PackageLoader("wsss", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= filters
    return environment.get_template(name)
