"""Suggestions of messages: a name that is alike, the H&E of a section, the call that places an element."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence

from spatialdata import SpatialData

from hadmst_sc.io.resolve import levels


def alike(name: str, available: Iterable[str]) -> str:
    """Return the available name that is most like a misspelt one; empty if none is."""
    return next(iter(difflib.get_close_matches(name, list(available), 1)), "")


def spelt(genes: Sequence[str], available: Iterable[str]) -> list[str]:
    """Return genes as the available ones are spelt, without others, as similar names are other genes; never empty."""
    names = list(map(str, available))
    folded = {name.casefold(): name for name in names}
    found = [gene if gene in names else folded.get(str(gene).casefold()) for gene in genes]
    return list(dict.fromkeys(name for name in found if name)) or names[:1]


def he_of(sdata: SpatialData) -> str:
    """Return the name of the largest image that can be H&E; empty if there is none."""
    finest = {name: levels(image)[0] for name, image in sdata.images.items()}
    sizes = {name: one.size for name, one in finest.items() if one.sizes["c"] in (3, 4) and one.dtype.kind == "u"}
    return max(sizes, key=lambda name: sizes[name], default="")


def set_identity(key: str, system: str) -> str:
    """Return a sentence with the call that places an element in a coordinate system, as it stands."""
    return (
        f"If its coordinates are those of {system!r}, call `from spatialdata.transformations import Identity, "
        f"set_transformation; set_transformation(sdata[{key!r}], Identity(), {system!r})`."
    )
