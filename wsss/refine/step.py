"""What the steps of a refiner have in common: settings that are checked when they are built, and what they print."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

from wsss.errors import ConfigError


class Step:
    """Compares and prints by its settings; what begins with an underscore is none.

    Not a dataclass: Hydra puts the steps of a list into a config list, which would turn dataclasses into plain nodes.
    """

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Step) and type(self) is type(other) and self.settings() == other.settings()

    def __hash__(self) -> int:
        return hash((type(self), *self.settings().items()))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in self.settings().items())})"

    gives = ""
    """What its call gives: scores or labels; nothing where it is called in another way."""

    @property
    def holds_the_interpreter(self) -> bool:
        """Whether its work holds the interpreter lock, so that threads gain nothing from it."""
        return False

    def parts(self) -> Iterator[Step]:
        """Itself, and the steps among its settings."""
        yield self
        for value in vars(self).values():
            if isinstance(value, Step):
                yield from value.parts()

    def settings(self) -> dict[str, Any]:
        """What it was built with, by name."""
        return {name: value for name, value in vars(self).items() if not name.startswith("_")}

    def to(self, device: str) -> bool:
        """Compute on a torch device from now on; whether this step, or one inside, can. Most cannot."""
        can = [value.to(device) for value in vars(self).values() if isinstance(value, Step)]  # all, not up to the first
        return any(can)

    def check(self, name: str, holds: Callable[[float], bool], expected: str) -> None:
        """Raise ConfigError unless the setting is a finite number for which ``holds`` is true."""
        value = getattr(self, name)
        number = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
        if not (number and holds(value)):
            raise self.wrong(name, expected)

    def check_score(self, *names: str) -> None:
        """Raise ConfigError unless the settings are numbers from 0 to 1."""
        for name in names:
            self.check(name, lambda value: 0 <= value <= 1, "a number from 0 to 1")

    def check_positive(self, *names: str) -> None:
        """Raise ConfigError unless the settings are numbers above 0."""
        for name in names:
            self.check(name, lambda value: value > 0, "a positive number")

    def check_not_negative(self, *names: str) -> None:
        """Raise ConfigError unless the settings are numbers of 0 or more."""
        for name in names:
            self.check(name, lambda value: value >= 0, "a number of 0 or more")

    def check_count(self, *names: str) -> None:
        """Raise ConfigError unless the settings are whole numbers of 1 or more."""
        for name in names:
            self.check(name, lambda value: value >= 1 and value == int(value), "a whole number of 1 or more")

    def check_choice(self, name: str, *options: Any) -> None:
        """Raise ConfigError unless the setting is one of ``options``."""
        if getattr(self, name) not in options:
            raise self.wrong(name, f"one of {', '.join(map(str, options))}")

    def wrong(self, name: str, expected: str) -> ConfigError:
        """The error for a setting that cannot be."""
        return ConfigError(
            f"{type(self).__name__}.{name}: expected {expected}, got {getattr(self, name)!r}. "
            f"Set it in the configuration of the refiner."
        )
