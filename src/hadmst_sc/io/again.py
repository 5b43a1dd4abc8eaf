"""Code that repeats a run, for messages: what a user types to have a result once more, or with one thing changed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from spatialdata import SpatialData
from spatialdata.models import get_table_keys

from hadmst_sc.contract import OutputNames
from hadmst_sc.io.resolve import levels, systems

if TYPE_CHECKING:
    from hadmst_sc.io.result import Result

VERB = "hadmst_sc.tl.superresolve"
NAMED = {"table_key": "table", "layer": None, "spot_um": 55.0, "pitch_um": 100.0}  # what is left out where it is this


def again(result: Result, genes: Sequence[str] = (), **changes: Any) -> str:
    """A sentence with the call that makes a result once more; without code where what the run read is gone.

    Parameters
    ----------
    result
        Its section, bins, genes and model are kept, and it is replaced. Where its elements were renamed, the new result
        has a new name.
    genes
        More of them.
    changes
        Other arguments of the call.
    """
    told, sdata = result.record, result.sdata
    image = result.now(str(told.get("image_key")), sdata.images)
    table = result.now(str(told.get("table_key")), sdata.tables)
    if image is None or table is None:
        return f"Run `{VERB}` again."
    options: dict[str, Any] = {name: told.get(name) for name in NAMED} | {"table_key": table}
    options = {name: value for name, value in options.items() if value not in (None, "none", NAMED[name])}
    if not isinstance(get_table_keys(sdata.tables[table])[0], str):
        options["shapes_key"] = result.source("shapes_key", sdata)
    if len(available := systems(sdata.images[image])) > 1:
        options["coordinate_system"] = result.source("coordinate_system", available)
    options["bin_um"] = float(told["bin_um"])
    if told.get("registration") == "off":
        options["align"] = False
    if told.get("model") == "closed form" and "n_samples" not in changes:
        options["model"] = None
    key = _key(result)
    options |= {"key_added": key} if key != "superres" else {}
    options |= {"overwrite": True} if key == result.first_key else {}
    listed = "".join(f", {name}={value!r}" for name, value in (options | changes).items())
    names = ", ".join([f"*sdata[{result.table_key!r}].var_names", *map(repr, genes)])
    return f"Call `{VERB}(sdata, {image!r}, genes=[{names}]{listed})`."


def first(sdata: SpatialData, key_added: str) -> str:
    """A sentence with the call that makes a result of a section that has none, from its largest image."""
    finest = {name: levels(image)[0] for name, image in sdata.images.items()}
    sizes = {name: one.size for name, one in finest.items() if one.sizes["c"] in (3, 4) and one.dtype.kind == "u"}
    named = "" if key_added == "superres" else f", key_added={key_added!r}"
    if not sizes:
        return f"Call `{VERB}` first."
    return f"Call `{VERB}(sdata, {max(sizes, key=lambda name: sizes[name])!r}{named})` first."


def _key(result: Result) -> str:
    """Name of the result if it can be replaced, else a free one."""
    key = result.first_key
    return key if OutputNames(key).table == result.table_key else free_key(result.sdata, key)


def free_key(sdata: SpatialData, key: str) -> str:
    """A name for another result, of which nothing is there yet."""
    number = 2
    while any(f"{key}_{number}{part}" in sdata for part in ("", "_std", "_bins", "_table")):
        number += 1
    return f"{key}_{number}"
