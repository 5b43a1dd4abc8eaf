"""Cells are drawn where they lie, with the counts of their own rows."""

from __future__ import annotations

import re

import geopandas as gpd
import numpy as np
import pandas as pd
import pytest
import shapely
import spatialdata as sd
from matplotlib.collections import PolyCollection
from spatialdata.models import Labels2DModel, PointsModel, ShapesModel
from spatialdata.transformations import get_transformation

import hadmst_sc as hd
from hadmst_sc.section.errors import ContractError

N_CELLS, N_IN_TISSUE = 84, 70
UM_PER_PX = 2.0


def drawn(ax):
    """The cells of a panel."""
    (found,) = [one for one in ax.collections if isinstance(one, PolyCollection)]
    return found


def places(collection):
    """Centres of the outlines, ``(cells, 2)`` as (x, y) in µm."""
    return np.array([(path.vertices[:-1].min(0) + path.vertices[:-1].max(0)) / 2 for path in collection.get_paths()])


def test_cells_lie_where_they_are_and_have_the_counts_of_their_rows(result_with_cells):
    he, counts, std = hd.pl.cells(result_with_cells, "cells", "ramp")[0]
    assert len(places(drawn(he))) == N_CELLS
    xy, values = places(drawn(counts)), drawn(counts).get_array()
    assert len(xy) == N_IN_TISSUE and ((xy[:, 0] > 20) & (xy[:, 0] < 220)).all()
    assert len(np.unique(xy.round(3), axis=0)) == N_IN_TISSUE
    np.testing.assert_allclose(values, xy[:, 0] / 100, rtol=1e-5)
    np.testing.assert_allclose(drawn(std).get_array(), 0.5 / np.sqrt(values), rtol=1e-5)
    assert [ax.get_title() for ax in (he, counts, std)] == ["H&E", "expected counts", "relative uncertainty"]


def test_a_cell_of_nothing_is_unknown(result_with_cells):
    _, counts, std = hd.pl.cells(result_with_cells, "cells", "spike")[0]
    none = drawn(counts).get_array() == 0
    assert none.any() and (drawn(std).get_array()[none] == 0).all()
    result_with_cells["cell_counts"].layers["std"][:] = 1.0
    std = hd.pl.cells(result_with_cells, "cells", "spike")[0, 2]
    np.testing.assert_allclose(drawn(std).get_array()[none], drawn(std).norm.vmax, rtol=1e-5)


def test_a_part_shows_what_reaches_into_it(result_with_cells):
    he, counts, _ = hd.pl.cells(result_with_cells, "cells", "ramp", crop=(75, 40, 130, 90), vmax=2.0)[0]
    xy = places(drawn(counts))
    assert sorted(set(xy[:, 0].round())) == [70, 90, 110, 130] and sorted(set(xy[:, 1].round())) == [50, 70, 90]
    assert he.get_xlim() == (75, 130) and he.get_ylim() == (90, 40) and drawn(counts).norm.vmax == 2.0
    height, width = he.images[0].get_array().shape[:2]
    assert height < 90 and width < 120  # not the whole image


def test_a_table_of_some_cells_draws_these(result_with_cells):
    table = result_with_cells["cell_counts"]
    some = table[np.isfinite(np.asarray(table.X)).all(1)][:10].copy()
    result_with_cells["cell_counts"] = some
    found = drawn(hd.pl.cells(result_with_cells, "cells", "ramp")[0, 1]).get_array()
    np.testing.assert_allclose(np.sort(found), np.sort(some[:, "ramp"].X.ravel()))


def test_a_crop_draws_the_cells_that_are_left(result_with_cells):
    """spatialdata then lists the only region of the table."""
    whole = drawn(hd.pl.cells(result_with_cells, "cells", "ramp")[0, 1]).get_array()
    box = {"min_coordinate": [100, 300], "max_coordinate": [300, 600], "target_coordinate_system": "world"}
    part = sd.bounding_box_query(result_with_cells, axes=("x", "y"), **box)
    found = drawn(hd.pl.cells(part, "cells", "ramp")[0, 1]).get_array()
    assert 0 < len(found) < len(whole) and set(found) < set(whole)


def test_cells_beside_the_image_are_drawn_without_it(result_with_cells):
    cells = result_with_cells["cells"]
    cells["geometry"] = cells.translate(400 / UM_PER_PX, 0)
    he, counts, _ = hd.pl.cells(result_with_cells, "cells", "ramp", crop=(420, 40, 500, 120))[0]
    assert len(places(drawn(he))) == len(places(drawn(counts))) > 0 and he.get_xlim() == (420, 500)
    he.figure.canvas.draw()


def test_a_column_of_obs_may_have_the_name_of_a_gene(result_with_cells):
    before = drawn(hd.pl.cells(result_with_cells, "cells", "ramp")[0, 1]).get_array()
    result_with_cells["cell_counts"].obs["ramp"] = 7.0
    found = drawn(hd.pl.cells(result_with_cells, "cells", "ramp")[0, 1]).get_array()
    np.testing.assert_array_equal(found, before)


def _circles(sdata, where, xy):
    sdata["other"] = ShapesModel.parse(xy, geometry=0, radius=2.5, index=sdata["cells"].index, transformations=where)


def _points(sdata, where, xy):
    frame = pd.DataFrame(xy, columns=["x", "y"])
    sdata["other"] = PointsModel.parse(frame, transformations=where)
    sdata["cell_counts"].obs["cell"] = sdata["cell_counts"].obs["cell"].str.removeprefix("cell_").astype(int)


def _labels(sdata, where, xy):
    labels = np.zeros((90, 120), np.int32)
    for number, (x, y) in enumerate(xy.astype(int)):
        labels[y - 2 : y + 2, x - 2 : x + 2] = number + 1
    sdata["other"] = Labels2DModel.parse(labels, dims=("y", "x"), transformations=where)
    sdata["cell_counts"].obs["cell"] = sdata["cell_counts"].obs["cell"].str.removeprefix("cell_").astype(int) + 1


def _in_two_parts(sdata, where, xy):
    parts = gpd.GeoSeries(gpd.points_from_xy(*xy.T), index=sdata["cells"].index)
    halves = parts.translate(-2).buffer(1).union(parts.translate(2).buffer(1))
    sdata["other"] = ShapesModel.parse(gpd.GeoDataFrame(geometry=halves), transformations=where)


@pytest.mark.parametrize(
    ("make", "n_parts"),
    [(_circles, 1), (_points, 1), (_labels, 1), (_in_two_parts, 2)],
    ids=["circles", "points", "labels", "parts"],
)
def test_every_kind_of_cells_is_drawn(result_with_cells, make, n_parts):
    sdata = result_with_cells
    xy = np.c_[sdata["cells"].centroid.x, sdata["cells"].centroid.y]
    make(sdata, get_transformation(sdata["cells"], get_all=True), xy)
    sdata["cell_counts"].obs["region"] = pd.Categorical(["other"] * N_CELLS)
    sdata["cell_counts"].uns["spatialdata_attrs"]["region"] = "other"
    found = drawn(hd.pl.cells(sdata, "other", "ramp")[0, 1])
    at = places(found)
    assert len(at) == n_parts * N_IN_TISSUE
    np.testing.assert_allclose(found.get_array(), at[:, 0] / 100, atol=0.05)


def test_the_call_that_makes_a_table_is_told(result_with_cells):
    table = result_with_cells.tables.pop("cell_counts")
    with pytest.raises(KeyError, match="no table has the expected counts of 'cells'") as error:
        hd.pl.cells(result_with_cells, "cells", "ramp")
    told = "sdata.tables['cells_counts'] = hadmst_sc.tl.to_cells(sdata, 'cells')"
    assert re.search(re.escape(told), str(error.value))
    result_with_cells["one"], result_with_cells["two"] = table, table.copy()
    with pytest.raises(ValueError, match=r"`table_key` needs one of \['one', 'two'\].* Pass `table_key='one'`"):
        hd.pl.cells(result_with_cells, "cells", "ramp")
    hd.pl.cells(result_with_cells, "cells", "ramp", table_key="two")


def test_empty_shapes_are_left_out_and_nothing_else_is_an_error(result_with_cells):
    element = result_with_cells["cells"]
    changed = element.copy()
    changed.loc[element.index[::2], "geometry"] = shapely.Polygon()
    result_with_cells["cells"] = changed
    counts = drawn(hd.pl.cells(result_with_cells, "cells", "ramp")[0, 1])
    np.testing.assert_allclose(counts.get_array(), places(counts)[:, 0] / 100, rtol=1e-5)
    assert 0 < len(counts.get_array()) < N_IN_TISSUE
    changed["geometry"] = [shapely.Polygon()] * len(changed)
    with pytest.raises(ContractError, match="`cells_key='cells'`: it holds no cells"):
        hd.pl.cells(result_with_cells, "cells", "ramp")


def test_normalised_counts_are_refused(result_with_cells):
    result_with_cells["cell_counts"].X = np.log1p(1e4 * np.asarray(result_with_cells["cell_counts"].X))
    with pytest.raises(ValueError, match=r"`X` needs expected counts.* they were probably normalised"):
        hd.pl.cells(result_with_cells, "cells", "ramp")


def test_without_names_the_genes_that_vary_most(result_with_cells):
    axes = hd.pl.cells(result_with_cells, "cells", panels="cells")
    assert [row[0].get_ylabel() for row in axes] == ["ramp", "spike", "flat"]


@pytest.mark.parametrize(
    ("arguments", "error", "match"),
    [
        ({"cells_key": "none"}, KeyError, r"`cells_key='none'` is not in `sdata\.shapes"),
        ({"genes": "EPCAM"}, KeyError, r"`genes` needs genes of tables/cell_counts, but has \['EPCAM'\]"),
        ({"table_key": "table"}, KeyError, "`table_key='table'` has not the expected counts of 'cells'"),
        ({"crop": (1, 2, 3)}, ValueError, r"`crop` needs \(left, top, right, bottom\) in µm, or None"),
        ({"crop": (9, 0, 3, 5)}, ValueError, r"`crop` needs \(left, top, right, bottom\) in µm, or None"),
        ({"crop": (900, 0, 950, 50)}, ValueError, r"`crop` needs a part with cells.* Cells lie in \(3, 24, 237, 156\)"),
        ({"panels": "low"}, ValueError, r"`panels` needs some of \['he', 'cells', 'std'\]"),
        ({"image_key": "no"}, KeyError, "`image_key='no'`"),
    ],
)
def test_bad_arguments_are_named(result_with_cells, arguments, error, match):
    with pytest.raises(error, match=match):
        hd.pl.cells(**{"sdata": result_with_cells, "cells_key": "cells", "genes": "ramp"} | arguments)
