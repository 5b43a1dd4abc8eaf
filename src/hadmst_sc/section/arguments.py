"""Requirements of arguments, and the message for one that does not meet them: shared by all public functions."""

from __future__ import annotations

import reprlib
from collections.abc import Callable, Mapping
from math import inf
from typing import Any, Literal, NamedTuple, get_args

import numpy as np

LARGEST = 2**53  # whole numbers up to here are exact wherever they go


class Requirement(NamedTuple):
    """A condition on a value: its text, which follows "needs" in messages, and its test."""

    text: str
    is_met: Callable[[Any], bool]


def plain(value: Any) -> Any:
    """A numpy scalar as Python's; anything else as it is."""
    return value.item() if isinstance(value, np.generic) else value


def _is(value: Any, *kinds: type) -> bool:
    """Whether a value is of one of the types; ``True`` is not taken for the number 1."""
    value = plain(value)
    return isinstance(value, kinds) and not (isinstance(value, bool) and bool not in kinds)


def whole(low: int, high: int = LARGEST) -> Requirement:
    """A whole number, both ends included. A float is refused even where it is whole, as Python's ``range`` does."""
    text = f"a whole number of at least {low}" if high == LARGEST else f"a whole number from {low:,} to {high:,}"
    return Requirement(text, lambda value: _is(value, int) and low <= plain(value) <= high)


def number(low: float, high: float = inf, *, text: str | None = None) -> Requirement:
    """A finite number, both ends included."""
    text = text or (f"a number of at least {low:g}" if high == inf else f"a number from {low:g} to {high:g}")
    return Requirement(text, lambda value: _is(value, int, float) and low <= plain(value) <= min(high, 1e300))


def positive(unit: str = "number") -> Requirement:
    """A number above zero, in the words of its unit."""
    return number(5e-324, text=f"a positive {unit}")


def one_of(*choices: Any) -> Requirement:
    """One of some values, of the same type."""

    def is_met(value: Any) -> bool:
        value = plain(value)
        return any(type(value) is type(choice) and value == choice for choice in choices)

    return Requirement(f"one of {choices}", is_met)


def is_pair(value: Any, low: float = -inf, high: float = inf) -> bool:
    """Whether a value is two finite numbers between bounds, as a tuple, list or array."""
    several = isinstance(value, tuple | list | np.ndarray) and np.shape(value) == (2,)
    return bool(several and all(map(number(low, high).is_met, value)))


def optional(requirement: Requirement) -> Requirement:
    """The same, or ``None``."""
    return Requirement(f"{requirement.text}, or None", lambda value: value is None or requirement.is_met(value))


Consistency = Literal["soft", "hard", "off"]
RULES = get_args(Consistency)

LENGTH = number(1e-6, 1e9, text="a positive length in µm")  # beyond, arithmetic with it ends
SIZE = number(0.1, 5000, text="a length of 0.1 to 5,000 µm")  # of a spot, and between two: all platforms' are
FLAG = Requirement("True or False", lambda value: _is(value, bool))
TEXT = Requirement("a name, as text", lambda value: isinstance(value, str) and value != "")
SEED = whole(0)


def is_element_name(value: Any) -> bool:
    """Whether SpatialData takes a value as the name of an element, whatever its length."""
    return bool(
        TEXT.is_met(value) and all(c.isalnum() or c in "_-." for c in value) and not value.startswith((".", "__"))
    )


ELEMENT = Requirement(
    "at most 200 letters, digits, '_', '-' and '.', without '.' or '__' in front",
    # File systems take 255, and what is written has endings.
    lambda value: is_element_name(value) and len(value.encode()) <= 200,
)


def shown(value: Any) -> str:
    """A value as a message shows it: short, whatever it is."""
    shape = getattr(value, "shape", None)
    if isinstance(shape, tuple) and shape:
        return f"{type(value).__name__} of shape {shape}"
    return reprlib.repr(plain(value))


def complaint(name: str, value: Any, requirement: Requirement, remedy: str) -> str | None:
    """The message for an argument that does not meet its requirement, with the remedy; ``None`` if it does."""
    if requirement.is_met(value):
        return None
    return f"`{name}` needs {requirement.text}, but is {shown(value)}. {remedy}"


def complaints(values: Mapping[str, Any], requirements: Mapping[str, tuple[Requirement, Any]]) -> dict[str, str]:
    """Messages for the arguments that do not meet their requirements, by name; the remedy is a value to pass.

    Parameters
    ----------
    values
        As the user gave them.
    requirements
        Each with a value that meets it, as a rule the default.
    """
    found = {
        name: complaint(name, values[name], requirement, f"Pass `{name}={good!r}`.")
        for name, (requirement, good) in requirements.items()
        if name in values
    }
    return {name: message for name, message in found.items() if message}


LONGEST_NAME = 60  # characters


def printable(name: object, longest: int = LONGEST_NAME) -> str:
    """A name on one line: control characters as their escapes, and cut in the middle where it is long.

    Parameters
    ----------
    name
        Anything with a ``str``.
    longest
        Characters to keep.
    """
    text = "".join(c if c.isprintable() else repr(c)[1:-1] for c in str(name))
    return text if len(text) <= longest else f"{text[: longest // 2]}…{text[-(longest // 2 - 1) :]}"
