"""Arguments of the plots, checked together and by name before anything is read."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.colors import Colormap

from hadmst_sc.io.problems import Problems
from hadmst_sc.io.text import shown

Check = tuple[Callable[[Any], bool], str, str]  # whether a value is right, what is needed, a value that is


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool)


def is_names(value: Any) -> bool:
    """Whether something is a name or a list of names."""
    if isinstance(value, str):
        return True
    is_list = isinstance(value, Collection) and getattr(value, "ndim", 1) == 1
    return is_list and all(isinstance(one, str) for one in value)


def _is_size(value: Any) -> bool:
    pair = isinstance(value, Sequence) and not isinstance(value, str) and len(value) == 2
    return pair and all(_is_number(one) and 0 < one < np.inf for one in value)


def _is_colours(value: Any) -> bool:
    return isinstance(value, Colormap) or (isinstance(value, str) and value in mpl.colormaps)


NAMES: Check = (lambda v: v is None or is_names(v), "a name, a list of names or None", "None")
NAME: Check = (lambda v: v is None or isinstance(v, str), "a name or None", "None")
COLOURS: Check = (_is_colours, "a colour map of matplotlib", "'magma'")
QUANTILE: Check = (lambda v: _is_number(v) and 0 <= v <= 1, "a number from 0 to 1", "0.995")
CHECKS: dict[str, Check] = {
    "genes": NAMES,
    "panels": NAMES,
    "image_key": NAME,
    "table_key": NAME,
    "cmap": COLOURS,
    "std_cmap": COLOURS,
    "width_cmap": COLOURS,
    "vmax_quantile": QUANTILE,
    "vmax": (lambda v: v is None or (_is_number(v) and 0 < v < np.inf), "a positive number or None", "None"),
    "level": (lambda v: _is_number(v) and 0 < v < 1, "a number between 0 and 1", "0.9"),
    "n_genes": (lambda v: _is_number(v) and v == int(v) and v >= 1, "to be at least 1, and whole", "30"),
    "figsize": (lambda v: v is None or _is_size(v), "(width, height) in inches or None", "None"),
}


def check(**values: Any) -> None:
    """Raise all that is wrong with some arguments of a plot.

    Raises
    ------
    ValueError
        Naming each argument, what it has and a value that can be passed.
    """
    problems = Problems("the plot's arguments cannot be used")
    for name, value in values.items():
        is_right, needed, example = CHECKS[name]
        if not is_right(value):
            found = shown(repr(value))
            problems.add(f"`{name}` needs {needed}, but is {found}. Pass `{name}={example}`.", ValueError)
    problems.raise_if_any()
