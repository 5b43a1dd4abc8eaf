"""Arguments that several public functions share: type, default and text of each stand in one place."""

from __future__ import annotations

import difflib
import functools
import inspect
import textwrap
from collections.abc import Callable, Mapping, Sequence
from inspect import Parameter
from typing import Any, NamedTuple, TypedDict, TypeVar

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
