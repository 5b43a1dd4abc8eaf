"""Arguments of public functions: requirements with their messages, and those that several functions share."""

from __future__ import annotations

import difflib
import functools
import inspect
import reprlib
import textwrap
from collections.abc import Callable, Mapping, Sequence
from inspect import Parameter
from math import inf
from typing import Any, Literal, NamedTuple, TypedDict, TypeVar, get_args

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


Function = TypeVar("Function", bound=Callable[..., Any])


class Argument(NamedTuple):
    """One argument of several functions."""

    kind: str  # annotation, as source
    default: Any
    text: str  # for docstrings; its first sentence is the help of the command line


class SectionArguments(TypedDict, total=False):
    """Arguments that say where a section stands in a SpatialData object, and how it is read."""

    table_key: str
    shapes_key: str | None
    coordinate_system: str | None
    layer: str | None
    genes: Sequence[str] | int | None
    bin_um: float
    spot_um: float | None
    pitch_um: float | None
    tissue_key: str | None


_TEXTS: dict[str, tuple[Any, str]] = {
    "table_key": ("table", "Table of counts that annotates the spots: circles, squares, points or labels."),
    "shapes_key": (None, "Spots; needed only if several regions of the table share a system with the image."),
    "coordinate_system": (None, "Coordinate system of image and spots; needed only if they share several."),
    "layer": (
        None,
        'Layer with the counts. ``None`` = ``X``, ``"raw"`` = the matrix of ``.raw`` unless a layer has that name.',
    ),
    "genes": (
        None,
        "Names of genes, or a number for the most informative. "
        '``None`` = ``var["highly_variable"]`` if present, else the 200 most informative.',
    ),
    "bin_um": (10.0, "Edge of a bin, µm."),
    "spot_um": (None, "Diameter or edge of the spots, µm. ``None`` = stated in the table, or that of the platform."),
    "pitch_um": (None, "Distance between neighbouring spots, µm. ``None`` as for ``spot_um``."),
    "tissue_key": (None, "Labels or shapes that mark the tissue. ``None`` = detected from the H&E and the spots."),
}
SECTION: dict[str, Argument] = {
    name: Argument(SectionArguments.__annotations__[name].__forward_arg__, default, text)
    for name, (default, text) in _TEXTS.items()
}


def parted(given: Mapping[str, Any], group: Mapping[str, Argument]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Keyword arguments of a group, and the others."""
    of_group = {name: value for name, value in given.items() if name in group}
    return of_group, {name: value for name, value in given.items() if name not in group}


def described(arguments: Mapping[str, Argument]) -> str:
    """The arguments as lines of a docstring."""
    return "\n".join(
        f"{name}\n{textwrap.fill(one.text, 112, initial_indent='    ', subsequent_indent='    ')}"
        for name, one in arguments.items()
    )


def takes(*groups: Mapping[str, Argument], but: Sequence[str] = (), **defaults: Any) -> Callable[[Function], Function]:
    """Give a function keyword arguments that it shares with others, in its signature and in its docstring.

    The function collects them by ``**given``; its docstring has a line ``{shared}`` among the parameters.

    Parameters
    ----------
    groups
        Arguments by name.
    but
        Names in the groups that the function does not have.
    defaults
        Defaults that differ from those of the groups; passed to the function.
    """
    shared = {name: one for group in groups for name, one in group.items() if name not in but}

    def decorate(function: Function) -> Function:
        signature = inspect.signature(function)
        own = [one for one in signature.parameters.values() if one.kind is not Parameter.VAR_KEYWORD]
        first = [one for one in own if one.kind is not Parameter.KEYWORD_ONLY]
        taken = [
            Parameter(name, Parameter.KEYWORD_ONLY, default=defaults.get(name, one.default), annotation=one.kind)
            for name, one in shared.items()
        ]
        whole = signature.replace(parameters=[*first, *taken, *own[len(first) :]])

        @functools.wraps(function)
        def call(*args: Any, **given: Any) -> Any:
            try:
                whole.bind(*args, **given)
            except TypeError as error:
                unknown = next((name for name in given if name not in whole.parameters), "")
                alike = difflib.get_close_matches(unknown, whole.parameters, 1)
                meant = f". Did you mean `{alike[0]}`?" if alike else ""
                raise TypeError(f"{function.__name__}() {error}{meant}") from None
            return function(*args, **defaults | given)

        call.__signature__ = whole  # type: ignore[attr-defined]
        call.__annotations__ = {one.name: one.annotation for one in whole.parameters.values()}
        call.__annotations__["return"] = whole.return_annotation
        if call.__doc__:
            text = textwrap.indent(described(shared), "    ")
            call.__doc__ = call.__doc__.replace("    {shared}", text)
        return call  # type: ignore[return-value]

    return decorate
