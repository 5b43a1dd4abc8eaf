"""Add pseudo-spots to a SpatialData object, for `tl.superresolve`."""

from __future__ import annotations

import numpy as np
from anndata import AnnData
from spatialdata import SpatialData
from spatialdata.models import ShapesModel, TableModel
from spatialdata.transformations import get_transformation

from hadmst_sc.io.given import check_anndata, check_sdata
from hadmst_sc.runtime import usual_errors
from hadmst_sc.section.arguments import ELEMENT, TEXT
from hadmst_sc.section.errors import MissingKeyError, Problems


@usual_errors
def add_spots(sdata: SpatialData, spots: AnnData, *, like: str, key_added: str = "spots") -> str:
    """Add the spots of :func:`degrade` as circles, and as a table that annotates them.

    Parameters
    ----------
    sdata
        Has the element of the cells or bins. Receives the circles ``<key_added>`` and the table ``<key_added>_table``,
        in memory (``sdata.write_element`` keeps them).
    spots
        As :func:`degrade` returns them: centres in ``obsm["spatial"]``, sizes in ``uns``.
    like
        Name of the element whose intrinsic coordinates the centres have, such as the cells' circles or the bins'
        squares; the circles get its transformations.
    key_added
        Name of the circles.

    Returns
    -------
    The name of the table: the ``table_key`` of `tl.superresolve`.

    Raises
    ------
    KeyError
        If there is no element ``like``, or ``spots`` lack centres or sizes.
    ValueError
        If ``key_added`` or ``<key_added>_table`` is the name of an element that is not of an earlier call.

    Examples
    --------
    >>> sdata = hd.datasets.phantom(n_genes=2, size_um=800.0)
    >>> cells = sdata["table"]  # here larger spots from small ones; usually from cells or bins
    >>> spots = hd.pp.degrade(cells, spot_um=150.0, pitch_um=200.0, um_per_unit=2.5)
    >>> hd.pp.add_spots(sdata, spots, like="phantom", key_added="coarse")
    'coarse_table'
    """
    check_sdata(sdata)
    check_anndata(spots, "spots")
    problems = Problems("cannot add spots")
    problems.check({"like": like, "key_added": key_added}, {"like": (TEXT, "cells"), "key_added": (ELEMENT, "spots")})
    problems.raise_if_any()
    table_key = f"{key_added}_table"
    if like not in sdata or like in sdata.tables:
        elements = [name for _, name, _ in sdata.gen_spatial_elements()]
        raise MissingKeyError(f"`like={like!r}` is not a spatial element. Available: {elements}.")
    sizes = ("spot_diameter_um", "pitch_um", "um_per_unit")
    before = sdata.tables.get(table_key)
    own = before is not None and all(name in before.uns for name in sizes)  # of an earlier call
    for name, kind in ((key_added, sdata.shapes), (table_key, sdata.tables)):
        if (name in sdata and not (own and name in kind)) or name == like:
            raise ValueError(f"`key_added={key_added!r}` would replace the element {name!r}. Pass another name.")
    absent = [name for name in sizes if name not in spots.uns] + ["obsm['spatial']"] * ("spatial" not in spots.obsm)
    if absent:
        raise MissingKeyError(f"`spots` lack {absent}, which `pp.degrade` writes. Pass the spots that it returned.")
    spot_um, pitch_um, um_per_unit = (float(spots.uns[name]) for name in sizes)
    circles = ShapesModel.parse(
        np.asarray(spots.obsm["spatial"]),
        geometry=0,
        radius=spot_um / um_per_unit / 2,
        index=spots.obs_names.to_numpy(),
        transformations=get_transformation(sdata[like], get_all=True),
    )
    table = spots.to_memory() if spots.isbacked else spots.copy()
    table.obs["region"], table.obs["spot_id"] = key_added, table.obs_names
    table.obs["region"] = table.obs["region"].astype("category")
    table.obs["spot_um"], table.obs["pitch_um"] = spot_um, pitch_um  # `uns` is lost when tables are concatenated
    table.uns["spatial"] = {key_added: {"metadata": {"spot_um": spot_um, "pitch_um": pitch_um}}}
    sdata.shapes[key_added] = circles
    sdata.tables[table_key] = TableModel.parse(table, region=key_added, region_key="region", instance_key="spot_id")
    return table_key
