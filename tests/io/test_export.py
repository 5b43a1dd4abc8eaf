"""Files for other programs: each is opened by another library, and all agree on values and places."""

from __future__ import annotations

import gzip
import json
import os
import runpy
import sys
import tracemalloc
from dataclasses import replace
from functools import cache
from pathlib import Path

import anndata as ad
import dask.array as da
import geopandas as gpd
import numpy as np
import ome_types
import pandas as pd
import pytest
import shapely
import spatialdata as sd
import tifffile
from spatialdata.models import Image2DModel, Labels2DModel, PointsModel, ShapesModel, TableModel
from spatialdata.transformations import Affine, get_transformation, set_transformation

from hadmst_sc.io import contents, export, read_observation, write_prediction
from hadmst_sc.io.elements import pyramid_steps
from hadmst_sc.section.errors import MissingKeyError

HELPERS = runpy.run_path(str(Path(__file__).with_name("conftest.py")))
visium_section, stand_in, hexagonal = (HELPERS[name] for name in ("visium_section", "stand_in", "hexagonal"))
IMAGE, BIN_UM, UM_PER_PX = "S1_full_image", 20.0, 4.0  # five pixels per bin
GENES = ["gene-0", "A & <B>", "β"]
SPIKE, SPIKE_UM = (30, 25), [510.0, 610.0]  # row and column of a bin with 7 counts of the first gene; (x, y) in µm
CELLS = np.array([[128, 153], [138, 153], [128, 173]])  # (x, y) in pixels; the first is in the bin of the spike
TURN = np.deg2rad(30)
PLACED = np.array(
    [[0.3 * np.cos(TURN), -0.3 * np.sin(TURN), 90], [0.3 * np.sin(TURN), 0.3 * np.cos(TURN), 20], [0, 0, 1]]
)
MODULE = sys.modules["hadmst_sc.io.export"]  # the function has the same name


def solve(seed: int = 0, *, turned: bool = False) -> sd.SpatialData:
    """A section with a result, to be changed; its coordinate system is turned and scaled if asked."""
    return sd.deepcopy(_solved(seed, turned))


@cache
def _solved(seed: int, turned: bool) -> sd.SpatialData:
    spots = hexagonal((400, 320), 25, 10)
    spots = spots[np.hypot(*(spots - (160, 200)).T) < 140]  # on the tissue
    sdata = visium_section(n_genes=3, seed=seed, xy=spots)
    sdata["table"].var_names = GENES
    del sdata["S1_hires_image"], sdata["S1_lowres_image"]
    if turned:
        for key in (IMAGE, "S1"):
            set_transformation(sdata[key], {"S1": Affine(PLACED, ("x", "y"), ("x", "y"))}, set_all=True)
    obs = read_observation(sdata, IMAGE, bin_um=BIN_UM, genes=GENES)
    found = stand_in(obs)
    found.mean[0][SPIKE] = 7
    record = {
        "image_key": IMAGE,
        "table_key": "table",
        "shapes_key": "S1",
        "coordinate_system": "S1",
        "bin_um": BIN_UM,
        "um_per_px": UM_PER_PX,
    }
    write_prediction(sdata, replace(found, provenance=found.provenance | record), obs.source)
    return sdata


@pytest.fixture(scope="module")
def solved():
    """Do not change it."""
    return solve()


@pytest.fixture(params=[False, True], ids=["plain", "turned"])
def placed(request):
    return solve(turned=request.param)


def add_cells(sdata: sd.SpatialData, kind: str = "polygons") -> ad.AnnData:
    """Add three cells, two pixels wide; the table is as `tl.to_cells` would return it."""
    to, ids = get_transformation(sdata[IMAGE], get_all=True), pd.Index([5, 9, 2])
    if kind == "polygons":
        boxes = gpd.GeoDataFrame(geometry=shapely.box(*(CELLS - 1).T, *(CELLS + 1).T), index=ids)
        sdata["cells"] = ShapesModel.parse(boxes, transformations=to)
    elif kind == "circles":
        sdata["cells"] = ShapesModel.parse(CELLS, geometry=0, radius=1, index=ids, transformations=to)
    elif kind == "points":
        frame = pd.DataFrame(CELLS.astype(float), columns=["x", "y"], index=ids)
        sdata["cells"] = PointsModel.parse(frame, transformations=to)
    else:
        labels = np.zeros((400, 320), np.uint32)
        for number, (x, y) in zip(ids, CELLS, strict=True):
            labels[y - 1 : y + 1, x - 1 : x + 1] = number
        sdata["cells"] = Labels2DModel.parse(labels, dims=("y", "x"), transformations=to)
    matrix = to["S1"].to_affine_matrix(("x", "y"), ("x", "y"))
    obs = pd.DataFrame({"n_bins": [0.5, 0.5, 0.0], "covered": [1, 0.25, np.nan]}, index=["5", "9", "2"])
    obs["region"], obs["instance_id"] = pd.Categorical(["cells"] * 3), ids
    values = np.array([[0.1, 2, 3], [4, 5, 6], [np.nan] * 3], np.float32)
    table = ad.AnnData(values, obs=obs, var=pd.DataFrame(index=GENES))
    table.obsm["spatial"] = CELLS @ matrix[:2, :2].T + matrix[:2, 2]
    return TableModel.parse(table, region="cells", region_key="region", instance_key="instance_id")


def maps_of(sdata: sd.SpatialData) -> np.ndarray:
    return np.asarray(sdata["superres"].data)


def read_csv(path: Path) -> pd.DataFrame:
    return pd.read_csv(path, float_precision="round_trip")


def bins_of(sdata: sd.SpatialData) -> tuple[np.ndarray, np.ndarray]:
    """Row and column of the bins on the grid of the run, in the order of the table."""
    obs = sdata["superres_table"].obs
    return obs["array_row"].to_numpy(), obs["array_col"].to_numpy()


def test_the_tiff_holds_the_maps_with_names_sizes_and_position(solved, tmp_path):
    export(solved, tmp_path / "maps.ome.tif")
    with tifffile.TiffFile(tmp_path / "maps.ome.tif") as tiff:
        assert tiff.is_ome and tiff.pages[0].is_tiled and tiff.series[0].axes == "CYX"
        found = tiff.series[0].asarray()
    assert found.dtype == np.float32 and np.isnan(found).any() and found[0][SPIKE] == 7
    np.testing.assert_array_equal(found, maps_of(solved))
    pixels = ome_types.from_tiff(tmp_path / "maps.ome.tif").images[0].pixels
    assert [channel.name for channel in pixels.channels] == GENES
    assert (pixels.physical_size_x, pixels.physical_size_y, pixels.physical_size_x_unit.value) == (20, 20, "µm")
    assert {(plane.position_x, plane.position_y) for plane in pixels.planes} == {(0, 0)}


def test_some_genes_in_the_order_of_their_names_given(solved, tmp_path):
    for name in ("a.ome.tiff", "a.h5ad", "a.csv.gz"):
        export(solved, tmp_path / name, genes=["β", "gene-0"])
    maps = maps_of(solved)[[2, 0]]
    np.testing.assert_array_equal(tifffile.imread(tmp_path / "a.ome.tiff"), maps)
    y, x = bins_of(solved)
    table = ad.read_h5ad(tmp_path / "a.h5ad")
    assert list(table.var_names) == ["β", "gene-0"]
    np.testing.assert_array_equal(table.X, maps[:, y, x].T)
    assert list(read_csv(tmp_path / "a.csv.gz").columns) == ["x_um", "y_um", "measured", "β", "gene-0"]


def test_a_large_map_has_the_levels_of_the_image(solved, tmp_path):
    sdata = solve()
    values, to = maps_of(sdata), get_transformation(sdata["superres"], get_all=True)
    sdata["superres"] = Image2DModel.parse(
        values, dims=("c", "y", "x"), c_coords=GENES, transformations=to, scale_factors=[2, 2]
    )
    export(sdata, tmp_path / "maps.ome.tif")
    with tifffile.TiffFile(tmp_path / "maps.ome.tif") as tiff:
        levels = [level.asarray() for level in tiff.series[0].levels]
    assert [one.shape for one in levels] == [(3, 80, 64), (3, 40, 32), (3, 20, 16)]
    for name, one in zip(("scale0", "scale1", "scale2"), levels, strict=True):
        np.testing.assert_array_equal(one, sdata["superres"][name]["image"].values)
    assert pyramid_steps((2049, 10)) == 1  # so that images of larger grids have levels


def test_values_and_places_agree_between_all_formats_and_with_the_image(placed, tmp_path):
    cells = add_cells(placed)
    for name in ("maps.ome.tif", "bins.h5ad", "bins.csv.gz"):
        export(placed, tmp_path / name)
    export(placed, tmp_path / "cells.geojson", cells=cells)
    export(placed, tmp_path / "cells.csv.gz", cells=cells)
    export(placed, tmp_path / "cells.h5ad", cells=cells)
    (row, column), maps = bins_of(placed), tifffile.imread(tmp_path / "maps.ome.tif")
    table, csv = ad.read_h5ad(tmp_path / "bins.h5ad"), read_csv(tmp_path / "bins.csv.gz")
    # the same bins in the same order, with equal values
    np.testing.assert_array_equal(table.X, maps[:, row, column].T)
    np.testing.assert_array_equal(csv[GENES].to_numpy().astype(np.float32), table.X)
    np.testing.assert_array_equal(csv["measured"], table.obs["measured"])
    np.testing.assert_allclose(csv[["x_um", "y_um"]], table.obsm["spatial"])
    np.testing.assert_allclose(table.obsm["spatial"], np.c_[column + 0.5, row + 0.5] * BIN_UM)
    # the spike, in each of them
    assert tuple(np.argwhere(maps[0] == 7)[0]) == SPIKE
    assert csv.loc[csv["gene-0"] == 7, ["x_um", "y_um"]].to_numpy().tolist() == [SPIKE_UM]
    outlines = gpd.read_file(tmp_path / "cells.geojson")
    np.testing.assert_allclose(outlines.geometry[0].centroid.coords[0], CELLS[0])
    of_cells = ad.read_h5ad(tmp_path / "cells.h5ad")
    np.testing.assert_allclose(of_cells.obsm["spatial"], CELLS * UM_PER_PX)
    np.testing.assert_allclose(read_csv(tmp_path / "cells.csv.gz")[["x_um", "y_um"]], of_cells.obsm["spatial"])
    # pixels of the H&E, through its own transformation, are where the result says its bins are
    to = get_transformation(placed[IMAGE], "S1").to_affine_matrix(("x", "y"), ("x", "y"))
    pixels = table.obsm["spatial"] / UM_PER_PX
    spatial = placed["superres_table"].obsm["spatial"]
    np.testing.assert_allclose(pixels @ to[:2, :2].T + to[:2, 2], spatial)


def test_the_image_in_the_h5ad_is_the_tissue_under_the_bins(placed, tmp_path):
    sq = pytest.importorskip("squidpy")
    export(placed, tmp_path / "bins.h5ad")
    table = ad.read_h5ad(tmp_path / "bins.h5ad")
    library = table.uns["spatial"]["S1"]
    image, scale = library["images"]["hires"], library["scalefactors"]["tissue_hires_scalef"]
    (x, y), full = (
        (table.obsm["spatial"] * scale).astype(int).T,
        np.moveaxis(placed[IMAGE]["scale0"]["image"].values, 0, 2),
    )
    green = image[..., 1]
    assert np.median(green[y, x]) < 150 < np.median(green[:20, :20])  # tissue is pink, and glass is white
    np.testing.assert_allclose(np.array(image.shape[:2]) / scale, np.array(full.shape[:2]) * UM_PER_PX)
    sq.pl.spatial_scatter(table, color="gene-0", shape="square")
    import matplotlib.pyplot as plt

    assert plt.gcf().axes[0].get_title() == "gene-0"


def test_a_store_of_results_alone_is_exported_too(solved, tmp_path):
    sq = pytest.importorskip("squidpy")
    alone = solved.subset(["superres", "superres_bins", "superres_table"])
    for name in ("maps.ome.tif", "bins.h5ad", "bins.csv.gz"):
        export(alone, tmp_path / name)
        export(solved, tmp_path / f"with_{name}")
    assert read_csv(tmp_path / "bins.csv.gz").equals(read_csv(tmp_path / "with_bins.csv.gz"))
    table = ad.read_h5ad(tmp_path / "bins.h5ad")
    np.testing.assert_array_equal(table.obsm["spatial"], ad.read_h5ad(tmp_path / "with_bins.h5ad").obsm["spatial"])
    sq.pl.spatial_scatter(table, color="gene-0", shape="square", img=False)


def test_a_normalised_table_is_exported_as_counts(tmp_path):
    sdata = solve()
    before = np.asarray(sdata["superres_table"].X).copy()
    sdata["superres_table"].X = np.log1p(before)
    sdata["superres_table"].uns["log1p"] = {"base": 2.0}
    sdata["superres_table"].obs["cluster"] = pd.Categorical(["a"] * sdata["superres_table"].n_obs)
    export(sdata, tmp_path / "bins.h5ad")
    found = ad.read_h5ad(tmp_path / "bins.h5ad")
    np.testing.assert_array_equal(found.X, before)
    assert "log1p" not in found.uns and "log1p" in sdata["superres_table"].uns and "cluster" in found.obs


def test_sections_of_one_object_are_exported_one_by_one(tmp_path):
    both = sd.concatenate({"a": solve(0), "b": solve(5, turned=True)})
    for key, seed in (("a", 0), ("b", 5)):
        for name in ("maps.ome.tif", "bins.h5ad", "bins.csv.gz"):
            export(both, tmp_path / f"{key}_{name}", key_added=f"superres-{key}")
        one = solve(seed)
        np.testing.assert_array_equal(tifffile.imread(tmp_path / f"{key}_maps.ome.tif"), maps_of(one))
        table, (row, column) = ad.read_h5ad(tmp_path / f"{key}_bins.h5ad"), bins_of(one)
        np.testing.assert_array_equal(table.X, one["superres_table"].X)
        np.testing.assert_allclose(table.obsm["spatial"], np.c_[column + 0.5, row + 0.5] * BIN_UM)
        csv = read_csv(tmp_path / f"{key}_bins.csv.gz")
        np.testing.assert_allclose(csv[["x_um", "y_um"]], table.obsm["spatial"])


@pytest.mark.parametrize("start", [(101, 52), (99, 48)])  # (y, x): in the second and the first half of a bin
def test_a_crop_keeps_the_places_on_the_whole_image(solved, tmp_path, start):
    sdata = solve()
    cells = add_cells(sdata)
    y, x = start
    part = sd.bounding_box_query(
        sdata, axes=("x", "y"), min_coordinate=[x, y], max_coordinate=[290, 380], target_coordinate_system="S1"
    )
    for name in ("maps.ome.tif", "bins.h5ad", "bins.csv.gz"):
        export(part, tmp_path / name)
    csv, table = read_csv(tmp_path / "bins.csv.gz"), ad.read_h5ad(tmp_path / "bins.h5ad")
    assert csv.loc[csv["gene-0"] == 7, ["x_um", "y_um"]].to_numpy().tolist() == [SPIKE_UM]
    np.testing.assert_allclose(csv[["x_um", "y_um"]], table.obsm["spatial"])
    plane = ome_types.from_tiff(tmp_path / "maps.ome.tif").images[0].pixels.planes[0]
    row, column = np.argwhere(tifffile.imread(tmp_path / "maps.ome.tif")[0] == 7)[0]
    assert (plane.position_x + 20 * (column + 0.5), plane.position_y + 20 * (row + 0.5)) == (*SPIKE_UM,)
    export(part, tmp_path / "cells.geojson", cells=cells[cells.obs["instance_id"].isin(part["cells"].index)])
    first = gpd.read_file(tmp_path / "cells.geojson").geometry[0]
    np.testing.assert_allclose(first.centroid.coords[0], CELLS[0])
    library = table.uns["spatial"]["S1"]
    scale = library["scalefactors"]["tissue_hires_scalef"]
    x, y = (table.obsm["spatial"] * scale).astype(int).T
    assert np.median(library["images"]["hires"][y, x, 1]) < 150


def test_a_backed_result_gives_the_same_files(solved, tmp_path, monkeypatch):
    solved.write(tmp_path / "section.zarr")
    stored = sd.read_zarr(tmp_path / "section.zarr")
    monkeypatch.setattr(contents, "MAX_LOADED", 0)
    contents.reread_table(tmp_path / "section.zarr", "superres_table", stored["superres_table"])
    assert isinstance(stored["superres_table"].X, da.Array)
    monkeypatch.setattr(MODULE, "BYTES_AT_ONCE", 4 * 3 * 100)  # 100 rows at once
    for name in ("maps.ome.tif", "bins.h5ad", "bins.csv.gz"):
        export(stored, tmp_path / name)
        export(solved, tmp_path / f"other_{name}")
    maps = [tifffile.imread(tmp_path / f"{which}maps.ome.tif") for which in ("", "other_")]
    np.testing.assert_array_equal(*maps)
    tables = [ad.read_h5ad(tmp_path / f"{which}bins.h5ad") for which in ("", "other_")]
    for slot in ("X", "layers"):
        np.testing.assert_array_equal(*((one.X if slot == "X" else one.layers["std"]) for one in tables))
    lines = [gzip.open(tmp_path / f"{which}bins.csv.gz").read() for which in ("", "other_")]
    assert lines[0] == lines[1] and lines[0].count(b"\n") == 1 + tables[0].n_obs


def test_maps_are_written_one_by_one(tmp_path):
    sdata, names = solve(), [f"g{i}" for i in range(40)]
    to = get_transformation(sdata["superres"], get_all=True)
    maps = da.ones((40, 800, 640), dtype=np.float32, chunks=(1, 800, 640))  # 2 MB each, 82 MB in all
    sdata["superres"] = Image2DModel.parse(maps, dims=("c", "y", "x"), c_coords=names, transformations=to)
    labels = np.pad(np.asarray(sdata["superres_bins"].data), ((0, 720), (0, 576)))
    sdata["superres_bins"] = Labels2DModel.parse(labels, dims=("y", "x"), transformations=to)
    table = sdata["superres_table"]
    wide = ad.AnnData(np.ones((table.n_obs, 40), np.float32), table.obs, pd.DataFrame(index=names), dict(table.uns))
    sdata["superres_table"] = wide
    tracemalloc.start()
    export(sdata, tmp_path / "maps.ome.tif")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert tifffile.imread(tmp_path / "maps.ome.tif").shape == (40, 800, 640)
    assert peak < 40e6


@pytest.mark.parametrize("kind", ["polygons", "circles", "labels", "points"])
def test_cells_are_detections_of_qupath_with_measurements(tmp_path, kind):
    sdata = solve()
    cells = add_cells(sdata, kind=kind)
    export(sdata, tmp_path / "cells.geojson", cells=cells)
    features = json.loads((tmp_path / "cells.geojson").read_text())["features"]
    assert [one["properties"]["name"] for one in features] == ["5", "9", "2"]
    assert {one["properties"]["objectType"] for one in features} == {"detection"}
    assert features[0]["properties"]["measurements"] == {
        "n_bins": 0.5, "covered": 1.0, "gene-0": 0.1, "A & <B>": 2.0, "β": 3.0
    }  # fmt: skip
    assert features[2]["properties"]["measurements"] == {"n_bins": 0.0}  # JSON has no NaN
    shapes = gpd.read_file(tmp_path / "cells.geojson").geometry
    np.testing.assert_allclose(np.c_[shapes.centroid.x, shapes.centroid.y], CELLS, atol=1e-9)
    area = {"polygons": 4, "circles": np.pi, "labels": 4, "points": 0}[kind]
    np.testing.assert_allclose(shapes.area, area, rtol=0.01)


def test_labels_are_traced_along_their_pixels_across_blocks(tmp_path, monkeypatch):
    sdata = solve()
    cells = add_cells(sdata, kind="labels")
    labels = np.asarray(sdata["cells"].data)
    monkeypatch.setattr(MODULE, "BYTES_AT_ONCE", 8 * labels.shape[1])  # one row at once
    export(sdata, tmp_path / "cells.geojson", cells=cells)
    shapes = gpd.read_file(tmp_path / "cells.geojson").geometry
    assert [
        shape.equals(shapely.box(x - 1, y - 1, x + 1, y + 1)) for shape, (x, y) in zip(shapes, CELLS, strict=True)
    ] == [True] * 3


def test_tables_of_cells_keep_their_values(tmp_path):
    sdata = solve()
    cells = add_cells(sdata)
    export(sdata, tmp_path / "cells.h5ad", cells=cells, genes=["β"])
    export(sdata, tmp_path / "cells.csv.gz", cells=cells, genes=["β"])
    np.testing.assert_array_equal(ad.read_h5ad(tmp_path / "cells.h5ad").X, cells[:, "β"].X)
    csv = pd.read_csv(tmp_path / "cells.csv.gz")
    assert list(csv.columns) == ["cell", "x_um", "y_um", "n_bins", "covered", "β"]
    np.testing.assert_array_equal(csv["β"], [3, 6, np.nan])
    np.testing.assert_allclose(cells.obsm["spatial"], csv[["x_um", "y_um"]] / UM_PER_PX)  # the argument is unchanged


def test_the_ending_is_the_format_and_unknown_ones_are_refused(solved, tmp_path):
    with pytest.raises(
        ValueError, match=r"endings \['.ome.tif', '.ome.tiff', '.h5ad', '.csv.gz'\].*Pass `path='.*maps.ome.tif'`"
    ):
        export(solved, tmp_path / "maps.png")
    with pytest.raises(ValueError, match=r"Pass `path='out/Bins.csv.gz'`"):
        export(solved, "out/Bins.csv")
    with pytest.raises(ValueError, match=r"cells=hadmst_sc.tl.to_cells\(sdata, cells_key\)"):
        export(solved, tmp_path / "cells.geojson")
    sdata = solve()
    cells = add_cells(sdata)
    with pytest.raises(ValueError, match="leave out `cells`"):
        export(sdata, tmp_path / "cells.ome.tif", cells=cells)
    with pytest.raises(TypeError, match="`path` needs text"):
        export(solved, 3)
    with pytest.raises(TypeError, match="`cells` needs an AnnData"):
        export(solved, tmp_path / "cells.h5ad", cells="cells")
    with pytest.raises(KeyError, match=r"`genes` needs genes of tables/superres_table, but \['no'\] are not"):
        export(solved, tmp_path / "maps.ome.tif", genes=["no"])
    with pytest.raises(KeyError, match="no other result"):
        export(solved, tmp_path / "maps.ome.tif", key_added="none")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("genes", [[], 5])
def test_no_genes_are_refused(solved, tmp_path, genes):
    for name in ("maps.ome.tif", "bins.h5ad", "bins.csv.gz"):
        with pytest.raises(MissingKeyError, match=r"`genes` needs names of genes of .*Pass `genes=None` for all"):
            export(solved, tmp_path / name, genes=genes)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["cells.geojson", "cells.csv.gz", "cells.h5ad"])
def test_cells_on_disk_are_written_as_those_in_memory(tmp_path, name):
    sdata = solve()
    cells = add_cells(sdata)
    cells.write_h5ad(tmp_path / "in.h5ad")
    on_disk = ad.read_h5ad(tmp_path / "in.h5ad", backed="r")
    contents = []
    for given in (cells, on_disk):
        export(sdata, tmp_path / name, cells=given, genes=["β", "gene-0"], overwrite=True)
        if name.endswith(".h5ad"):
            contents.append(ad.read_h5ad(tmp_path / name).to_df().to_csv())
        else:
            open_file = gzip.open if name.endswith(".gz") else open
            contents.append(open_file(tmp_path / name, "rt", encoding="utf-8").read())
    on_disk.file.close()
    assert contents[0] == contents[1]


def test_a_tilde_is_the_home_folder(solved, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("USERPROFILE", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    export(solved, "~/bins.csv.gz", genes=["β"])
    assert (tmp_path / "home" / "bins.csv.gz").is_file() and not (tmp_path / "~").exists()


def test_a_cell_without_a_geometry_leaves_the_file_readable(tmp_path):
    sdata = solve()
    cells = add_cells(sdata)
    sdata["cells"].loc[9, "geometry"] = None
    export(sdata, tmp_path / "cells.geojson", cells=cells)
    features = json.loads((tmp_path / "cells.geojson").read_text())["features"]
    assert [one["geometry"] is None for one in features] == [False, True, False]


def test_cells_of_a_crop_keep_their_outlines(tmp_path):
    """spatialdata then lists the only region of the table."""
    sdata = solve()
    sdata.tables["cell_counts"] = add_cells(sdata)
    box = {"min_coordinate": [100, 100], "max_coordinate": [200, 160], "target_coordinate_system": "S1"}
    part = sd.bounding_box_query(sdata, axes=("x", "y"), **box)
    export(part, tmp_path / "cells.geojson", cells=part.tables["cell_counts"])
    shapes = gpd.read_file(tmp_path / "cells.geojson").geometry
    np.testing.assert_allclose(np.c_[shapes.centroid.x, shapes.centroid.y], CELLS[:2], atol=1e-9)


def test_cells_that_are_not_in_the_object_are_named(solved, tmp_path):
    sdata = solve()
    cells = add_cells(sdata)
    with pytest.raises(MissingKeyError, match="annotates 'cells', but `sdata` has no such element"):
        export(solved, tmp_path / "cells.geojson", cells=cells)
    sdata["cells"] = sdata["cells"].iloc[:2]
    with pytest.raises(MissingKeyError, match=r"cells that 'cells' has not: \[2\]"):
        export(sdata, tmp_path / "cells.geojson", cells=cells)
    del cells.uns["spatialdata_attrs"]
    with pytest.raises(MissingKeyError, match="annotates nothing"):
        export(sdata, tmp_path / "cells.geojson", cells=cells)
    del cells.obsm["spatial"]
    with pytest.raises(MissingKeyError, match="centres of its cells"):
        export(sdata, tmp_path / "cells.csv.gz", cells=cells)
    assert list(tmp_path.iterdir()) == []


def test_a_result_without_the_places_of_its_bins_is_refused(tmp_path):
    sdata = solve()
    del sdata["superres_table"].obs["array_row"]
    with pytest.raises(MissingKeyError, match="'array_row' and 'array_col', but they are missing"):
        export(sdata, tmp_path / "bins.csv.gz")


def test_a_file_is_replaced_only_when_asked(solved, tmp_path):
    path = tmp_path / "new" / "bins.csv.gz"  # its folder is made
    export(solved, path, genes=["β"])
    before = path.read_bytes()
    with pytest.raises(ValueError, match=r"exists\. Pass `overwrite=True`"):
        export(solved, path)
    assert path.read_bytes() == before
    export(solved, path, overwrite=True)
    assert len(pd.read_csv(path).columns) == 6
    with pytest.raises(ValueError, match=r"needs a folder in which files can be made.*bins\.csv\.gz is none"):
        export(solved, path / "more.csv.gz")
    assert [one.name for one in path.parent.iterdir()] == ["bins.csv.gz"]
    (tmp_path / "folder.h5ad").mkdir()
    with pytest.raises(ValueError, match="is a folder"):
        export(solved, tmp_path / "folder.h5ad", overwrite=True)


@pytest.mark.parametrize("name", ["maps.ome.tif", "bins.h5ad", "bins.csv.gz", "cells.geojson"])
def test_an_interrupted_export_leaves_the_old_file_and_no_other(tmp_path, monkeypatch, name):
    sdata = solve()
    given = {"cells": add_cells(sdata)} if "cells" in name else {}
    (tmp_path / name).write_text("old")

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", interrupted)  # after all is written
    with pytest.raises(KeyboardInterrupt):
        export(sdata, tmp_path / name, overwrite=True, **given)
    assert [one.name for one in tmp_path.iterdir()] == [name] and (tmp_path / name).read_text() == "old"
