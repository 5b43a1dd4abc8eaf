"""Code of remedies that keep a part of the spots, for shapes and for lazy points."""

from __future__ import annotations

from typing import Any

KIND = "hadmst_sc_kind"  # key in `attrs` of the frame of an element that is not stored as shapes

FINITE = "[{at}.abs().max(axis=1, skipna=False) < float('inf')]"
PLACES = "[~{at}.duplicated()]"
IDS = "[~{frame}.index.duplicated()]"
RENUMBERED = ".reset_index(drop=True)"


def place(shapes: Any, key: str) -> str:
    """Return the path of the spots in the user's object: ``"shapes/visium"`` or ``"points/visium"``."""
    return f"{shapes.attrs.get(KIND, 'shapes')}/{key}"


def code(shapes: Any, key: str, part: str) -> str:
    """Return code that replaces an element by a part of itself and keeps its transformations.

    Parameters
    ----------
    part
        One of the constants of this module.
    """
    here = f"sdata[{key!r}]"
    if shapes.attrs.get(KIND) != "points":
        return f"{here} = {here}{part.format(frame=here, at=f'{here}.bounds')}"
    # A dask table has no `bounds`, and does not find duplicates across its partitions.
    kept = "frame" + part.format(frame="frame", at="frame[['x', 'y']]")
    return (
        f"from spatialdata.models import PointsModel; from spatialdata.transformations import get_transformation; "
        f"frame = {here}.compute(); {here} = PointsModel.parse({kept}, transformations=get_transformation({here}, "
        f"get_all=True))"
    )
