"""Arguments of the plots, checked together and by name before anything is read."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import matplotlib as mpl
from matplotlib.colors import Colormap

from hadmst_sc.arguments import Requirement, number, positive
from hadmst_sc.io.problems import Problems


def is_names(value: Any) -> bool:
    """Whether something is a name or a list of names."""
    if isinstance(value, str):
        return True
    is_list = isinstance(value, Collection) and getattr(value, "ndim", 1) == 1
    return is_list and all(isinstance(one, str) for one in value)


def _is_size(value: Any) -> bool:
    pair = isinstance(value, Sequence) and not isinstance(value, str) and len(value) == 2
    return pair and all(map(positive().is_met, value))


def _is_colours(value: Any) -> bool:
    return isinstance(value, Colormap) or (isinstance(value, str) and value in mpl.colormaps)


def _or_none(requirement: Requirement) -> Requirement:
    return Requirement(f"{requirement.text} or None", lambda value: value is None or requirement.is_met(value))


NAMES = (Requirement("a name, a list of names or None", lambda value: value is None or is_names(value)), None)
NAME = (_or_none(Requirement("a name", lambda value: isinstance(value, str))), None)
COLOURS = (Requirement("a colour map of matplotlib", _is_colours), "magma")
# Each with a value that meets it.
REQUIREMENTS: dict[str, tuple[Requirement, Any]] = {
    "genes": NAMES,
    "panels": NAMES,
    "image_key": NAME,
    "table_key": NAME,
    "cmap": COLOURS,
    "std_cmap": COLOURS,
    "width_cmap": COLOURS,
    "vmax_quantile": (number(0, 1), 0.995),
    "vmax": (_or_none(positive()), None),
    "level": (Requirement("a number between 0 and 1", lambda one: number(0, 1).is_met(one) and 0 < one < 1), 0.9),
    "n_genes": (Requirement("to be at least 1, and whole", lambda n: number(1).is_met(n) and n == int(n)), 30),
    "figsize": (_or_none(Requirement("(width, height) in inches", _is_size)), None),
}


def check(**values: Any) -> None:
    """Raise all that is wrong with some arguments of a plot.

    Raises
    ------
    ValueError
        Naming each argument, what it has and a value that can be passed.
    """
    problems = Problems("the plot's arguments cannot be used")
    problems.check(values, {name: REQUIREMENTS[name] for name in values})
    problems.raise_if_any()
