"""Requirements of arguments and the messages for violations, shared by all public functions."""

from __future__ import annotations

import reprlib
from collections.abc import Callable, Mapping
from math import inf
from typing import Any, Literal, NamedTuple, get_args

import numpy as np

LARGEST = 2**53  # whole numbers up to this are exact as floats too


class Requirement(NamedTuple):
    """A condition on a value: its text, which follows "needs" in messages, and its test."""

    text: str
    is_met: Callable[[Any], bool]


def plain(value: Any) -> Any:
    """Convert a numpy scalar to a Python scalar; return anything else unchanged."""
    return value.item() if isinstance(value, np.generic) else value


def _is(value: Any, *kinds: type) -> bool:
    """True if a value is of one of the types; a bool does not count as a number."""
    value = plain(value)
    return isinstance(value, kinds) and not (isinstance(value, bool) and bool not in kinds)


def whole(low: int, high: int = LARGEST) -> Requirement:
    """Requirement of a whole number, both ends included. Floats are refused even if whole, as by Python's ``range``."""
    text = f"a whole number of at least {low}" if high == LARGEST else f"a whole number from {low:,} to {high:,}"
    return Requirement(text, lambda value: _is(value, int) and low <= plain(value) <= high)


def number(low: float, high: float = inf, *, text: str | None = None) -> Requirement:
    """Requirement of a finite number, both ends included."""
    text = text or (f"a number of at least {low:g}" if high == inf else f"a number from {low:g} to {high:g}")
    return Requirement(text, lambda value: _is(value, int, float) and low <= plain(value) <= min(high, 1e300))


def positive(unit: str = "number") -> Requirement:
    """Requirement of a number above zero; ``unit`` is used in the message."""
    return number(5e-324, text=f"a positive {unit}")


def one_of(*choices: Any) -> Requirement:
    """Requirement of one of some values, with the same type."""

    def is_met(value: Any) -> bool:
        value = plain(value)
        return any(type(value) is type(choice) and value == choice for choice in choices)

    return Requirement(f"one of {choices}", is_met)


def is_pair(value: Any, low: float = -inf, high: float = inf) -> bool:
    """True if a value is a tuple, list or array of two finite numbers between bounds."""
    several = isinstance(value, tuple | list | np.ndarray) and np.shape(value) == (2,)
    return bool(several and all(map(number(low, high).is_met, value)))


def optional(requirement: Requirement) -> Requirement:
    """The same requirement, or ``None``."""
    return Requirement(f"{requirement.text}, or None", lambda value: value is None or requirement.is_met(value))


Consistency = Literal["soft", "hard", "off"]
RULES = get_args(Consistency)

LENGTH = number(1e-6, 1e9, text="a positive length in µm")  # more extreme values overflow
SIZE = number(0.1, 5000, text="a length of 0.1 to 5,000 µm")  # diameters and pitches of all platforms are within
FLAG = Requirement("True or False", lambda value: _is(value, bool))
TEXT = Requirement("a name, as text", lambda value: isinstance(value, str) and value != "")
SEED = whole(0)


def is_element_name(value: Any) -> bool:
    """True if SpatialData accepts a value as the name of an element, regardless of its length."""
    return bool(
        TEXT.is_met(value) and all(c.isalnum() or c in "_-." for c in value) and not value.startswith((".", "__"))
    )


ELEMENT = Requirement(
    "at most 200 letters, digits, '_', '-' and '.', without '.' or '__' in front",
    # File systems allow 255 bytes, and suffixes are appended.
    lambda value: is_element_name(value) and len(value.encode()) <= 200,
)


def shown(value: Any) -> str:
    """Short representation of any value for messages."""
    shape = getattr(value, "shape", None)
    if isinstance(shape, tuple) and shape:
        return f"{type(value).__name__} of shape {shape}"
    return reprlib.repr(plain(value))


def complaint(name: str, value: Any, requirement: Requirement, remedy: str) -> str | None:
    """Message for an argument that does not meet its requirement, with the remedy; ``None`` if it does."""
    if requirement.is_met(value):
        return None
    return f"`{name}` needs {requirement.text}, but is {shown(value)}. {remedy}"


def complaints(values: Mapping[str, Any], requirements: Mapping[str, tuple[Requirement, Any]]) -> dict[str, str]:
    """Messages for the arguments that do not meet their requirements, by name; the remedy is a value to pass.

    Parameters
    ----------
    values
        Arguments as passed by the user.
    requirements
        Each requirement with a value that meets it, usually the default.
    """
    found = {
        name: complaint(name, values[name], requirement, f"Pass `{name}={good!r}`.")
        for name, (requirement, good) in requirements.items()
        if name in values
    }
    return {name: message for name, message in found.items() if message}


LONGEST_NAME = 60  # characters


def printable(name: object, longest: int = LONGEST_NAME) -> str:
    """Show a name on one line: escape control characters and shorten long names in the middle.

    Parameters
    ----------
    name
        Any object with a ``str``.
    longest
        Maximum number of characters.
    """
    text = "".join(c if c.isprintable() else repr(c)[1:-1] for c in str(name))
    return text if len(text) <= longest else f"{text[: longest // 2]}…{text[-(longest // 2 - 1) :]}"
