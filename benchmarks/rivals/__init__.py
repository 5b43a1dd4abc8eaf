"""Methods to stand beside ours: ``Observation -> (genes, ny, nx)`` expected counts per bin, zero outside the tissue.

Regressions come in two links. On rates they estimate the mean; on log1p of counts they resist the few spots with very
many counts, which is what a score on log1p of counts rewards. Neither wins everywhere. *soft* makes measured bins
agree with their spots; *soft spread* fills the gaps between spots with the same correction.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from types import FunctionType
from typing import Any

import numpy as np

from hadmst_sc.section.observation import Observation
from rivals.bilateral import joint_bilateral
from rivals.boosting import gradient_boosting
from rivals.gaussian import additive, and_kriging, kriging, ridge
from rivals.interpolation import cubic, linear, nearest, zero
from rivals.istar_head import istar_head
from rivals.neighbours import nearest_neighbours
from rivals.section import FLOOR, Fitter, Section, in_log, soft
from rivals.stack import stack
from rivals.trees import extra_trees, poisson_trees
from rivals.unet import unet_regression

Maps = Callable[[Observation], np.ndarray]


def logarithmic(fitter: Fitter) -> Fitter:
    """The same regression on log1p of counts."""
    return partial(in_log, fitter=fitter)


FITTERS: dict[str, Fitter] = {
    "kriging": kriging,
    "ridge on H&E": ridge,
    "ridge + kriging": and_kriging(ridge),
    "GP on H&E + space": additive,
    "nearest neighbours": nearest_neighbours,
    "gradient boosting": gradient_boosting,
    "gradient boosting + kriging": and_kriging(gradient_boosting),
    "Poisson trees + kriging": and_kriging(poisson_trees),
    "extra trees": extra_trees,
    "extra trees + kriging": and_kriging(extra_trees),
    "stack of three": stack([logarithmic(additive), logarithmic(gradient_boosting), and_kriging(extra_trees)]),
}
# Where the spots alone decide, an image that is moved changes nothing.
WITHOUT_IMAGE = ("zero", "nearest", "linear", "cubic", "kriging")
DIRECT: dict[str, Maps] = {
    "zero": zero,
    "nearest": nearest,
    "linear": linear,
    "cubic": cubic,
    "joint bilateral": joint_bilateral,
    "U-Net": unet_regression,
    "iStar's head, our features": istar_head,
}


def rival(name: str) -> Maps:
    """The method of a name such as ``"kriging, log, soft"``: a regression, its link and its rule of consistency."""
    if name in DIRECT:
        return DIRECT[name]
    base, *how = name.split(", ")
    if base not in FITTERS or set(how) - {"log", "soft", "soft spread"}:
        raise KeyError(f"{name!r} is no rival. Known: {[*DIRECT, *FITTERS]}, these with ', log' and ', soft [spread]'.")
    fitter = logarithmic(FITTERS[base]) if "log" in how else FITTERS[base]

    def maps(obs: Observation) -> np.ndarray:
        section = Section.of(obs)
        found = fitter(section)
        if not {"soft", "soft spread"} & set(how):
            return section.maps(np.maximum(found.bins, FLOOR))
        return section.maps(soft(section, found, spread="soft spread" in how))

    return maps


def modules(name: str) -> set[str]:
    """Modules whose code makes the maps of a rival."""
    return {"rivals.section", *(part.__module__ for part in _functions_of(name))}


def recipe(name: str) -> list[str]:
    """Names of the functions that a rival is put together from, in their order."""
    return [f"{part.__module__}.{part.__qualname__}" for part in _functions_of(name)]


def _functions_of(name: str) -> list[FunctionType]:
    base = name if name in DIRECT else name.split(", ")[0]
    return list(_functions(DIRECT.get(base) or FITTERS[base]))


def _functions(part: Any) -> Iterator[FunctionType]:
    """A function and the functions that it was made from."""
    if isinstance(part, partial):
        for one in (part.func, *part.args, *part.keywords.values()):
            yield from _functions(one)
    elif isinstance(part, list | tuple):
        for one in part:
            yield from _functions(one)
    elif isinstance(part, FunctionType):
        yield part
        for cell in part.__closure__ or ():
            yield from _functions(cell.cell_contents)
