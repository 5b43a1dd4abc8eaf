"""Every structure that readers produce gives the same observation; ``sdata`` is only looked at."""

from __future__ import annotations

import logging
import runpy
from pathlib import Path

import anndata as ad
import dask.array as da
import numpy as np
import pandas as pd
import pytest
import spatialdata as sd
from geopandas import GeoDataFrame
from scipy import sparse
from shapely import box
from spatialdata.models import Image2DModel, ShapesModel, TableModel
from spatialdata.transformations import Affine, Identity, Scale, Sequence, get_transformation, set_transformation

from hadmst_sc.io import read_observation

HELPERS = runpy.run_path(str(Path(__file__).with_name("conftest.py")))
visium_section, fingerprint = HELPERS["visium_section"], HELPERS["fingerprint"]
FULL = {"image_key": "S1_full_image", "bin_um": 20.0, "genes": ["gene-3", "gene-1", "gene-6"]}


def replace_table(sdata, change):
    table = sdata.tables["table"].copy()
    changed = change(table)
    table = table if changed is None else changed
    del sdata["table"]
    sdata["table"] = table
    return {}


def replace_x(convert):
    return lambda sdata: replace_table(sdata, lambda table: setattr(table, "X", convert(table.X)))


def replace_image(convert, **kwargs):
    def change(sdata):
        image = sd.get_pyramid_levels(sdata["S1_full_image"], n=0)
        del sdata["S1_full_image"]
        sdata["S1_full_image"] = Image2DModel.parse(
            convert(np.asarray(image.data)), dims=("c", "y", "x"), transformations={"S1": Identity()}, **kwargs
        )
        return {}

    return change


def two_systems(sdata):
    return {"image_key": "S1_full_image", "coordinate_system": "S1"}


def only_global(sdata):
    set_transformation(sdata["S1_full_image"], {"global": Identity()}, set_all=True)
    set_transformation(sdata["S1"], {"global": Identity()}, set_all=True)
    return {}


def rotated_world(sdata):
    turn = Affine([[0.0, -2.0, 7.0], [2.0, 0.0, -3.0], [0, 0, 1]], input_axes=("x", "y"), output_axes=("x", "y"))
    for name in ("S1_full_image", "S1"):
        set_transformation(sdata[name], {"world": Sequence([turn, Scale([0.5, 0.5], axes=("x", "y"))])}, set_all=True)
    return {}


def reflected_shear_world(sdata):
    mirror = Affine([[-1.5, 0.4, 7.0], [0.2, 2.0, -3.0], [0, 0, 1]], input_axes=("x", "y"), output_axes=("x", "y"))
    for name in ("S1_full_image", "S1"):
        set_transformation(sdata[name], {"world": mirror}, set_all=True)
    return {}


def second_region(sdata):
    xy = np.array([[50.0, 50.0], [75.0, 50.0]])
    sdata["other"] = ShapesModel.parse(xy, geometry=0, radius=7.0, transformations={"elsewhere": Identity()})

    def change(table):
        extra = table[:2].copy()
        extra.obs["region"], extra.obs["spot_id"] = "other", [0, 1]
        extra.obs_names = ["other-0", "other-1"]
        both = ad.concat([table, extra])
        both.obs["region"] = both.obs["region"].astype("category")
        return TableModel.parse(both, region=["S1", "other"], region_key="region", instance_key="spot_id")

    return replace_table(sdata, change)


def shuffled(sdata):
    order = np.random.default_rng(1).permutation(sdata["table"].n_obs)
    return replace_table(sdata, lambda table: table[order].copy())


def view(sdata):
    order = np.random.default_rng(1).permutation(sdata["table"].n_obs)
    sdata.tables["table"] = sdata["table"][order]
    return {}


def in_layer(sdata):
    def change(table):
        table.layers["counts"] = table.X.copy()
        table.X = table.X.log1p()

    return replace_table(sdata, change) | {"layer": "counts"}


def odd_categories(sdata):
    def change(table):
        table.obs["region"] = pd.Categorical(table.obs["region"], categories=["unused", "S1", "also unused"])
        table.obs["spot_id"] = pd.Categorical(table.obs["spot_id"])

    return replace_table(sdata, change)


def text_index(sdata):
    sdata["S1"].index = [f"circle {i}" for i in sdata["S1"].index]

    def change(table):
        table.obs["spot_id"] = [f"circle {i}" for i in range(table.n_obs)]

    return replace_table(sdata, change)


def highly_variable(sdata):
    def change(table):
        table.var["highly_variable"] = table.var_names.isin(["gene-1", "gene-3", "gene-6"])

    return replace_table(sdata, change) | {"genes": None}


def two_tables(sdata):
    sdata["another_table"] = sdata["table"].copy()
    return {}


def space_ranger_circles(sdata):
    sdata["S1"]["radius"] = 65 / 4.0 / 2  # drawn 65 µm wide
    return {}


def explicit_sizes(sdata):
    sdata["S1"]["radius"] = 3.0  # as a reader that knows no spot size might draw them
    return {"spot_um": 55, "pitch_um": 100}


VARIATIONS = {
    "as read": lambda sdata: {},
    "coordinate system named": two_systems,
    "only global": only_global,
    "composite with rotation": rotated_world,
    "affine with reflection and shear": reflected_shear_world,
    "several regions": second_region,
    "shuffled table": shuffled,
    "view of a table": view,
    "csc": replace_x(sparse.csc_matrix),
    "csr array": replace_x(sparse.csr_array),
    "dense": replace_x(lambda x: x.toarray()),
    "integers": replace_x(lambda x: x.toarray().astype(np.int32)),
    "float64": replace_x(lambda x: x.astype(np.float64)),
    "dask of dense": replace_x(lambda x: da.from_array(x.toarray(), chunks=(50, 3))),
    "dask of sparse": replace_x(lambda x: da.from_array(x.toarray(), chunks=(50, 8)).map_blocks(sparse.csr_matrix)),
    "explicit zeros": replace_x(lambda x: x + 0 * sparse.csr_matrix(np.ones(x.shape, np.float32))),
    "layer": in_layer,
    "categorical oddities": odd_categories,
    "text instance keys": text_index,
    "highly variable": highly_variable,
    "two tables": two_tables,
    "Space Ranger's wide circles": space_ranger_circles,
    "explicit sizes": explicit_sizes,
    "plain image": replace_image(lambda x: x),
    "lazy image": replace_image(lambda x: da.from_array(x, chunks=(3, 37, 41))),
    "RGBA": replace_image(lambda x: np.concatenate([x, np.full_like(x[:1], 9)])),
    "channels b, g, r": replace_image(lambda x: x[::-1], c_coords=["b", "g", "r"]),
    "uint16 of 8 bit": replace_image(lambda x: x.astype(np.uint16)),
    "uint16 of 16 bit": replace_image(lambda x: x.astype(np.uint16) * 257),
    "float in [0, 1]": replace_image(lambda x: x.astype(np.float32) / 255),
    "float in [0, 255]": replace_image(lambda x: x.astype(np.float64)),
}


@pytest.fixture(scope="module")
def reference():
    return read_observation(visium_section(), **FULL)


@pytest.mark.parametrize("name", VARIATIONS)
def test_every_variation_reads_as_the_same_observation(name, reference, caplog):
    sdata = visium_section()
    arguments = FULL | VARIATIONS[name](sdata)
    before = fingerprint(sdata)
    with caplog.at_level(logging.WARNING, logger="hadmst_sc"):
        obs = read_observation(sdata, arguments.pop("image_key"), **arguments)
    assert fingerprint(sdata) == before
    assert not caplog.records
    columns = [obs.genes.index(gene) for gene in reference.genes]
    assert obs.spots == reference.spots
    np.testing.assert_array_equal(obs.counts[:, columns], reference.counts)
    np.testing.assert_allclose(obs.measurement.centres, reference.measurement.centres, rtol=0, atol=1e-6)
    assert abs(obs.measurement.matrix - reference.measurement.matrix).max() < 1e-6
    assert np.abs(obs.he.astype(int) - reference.he).max() <= (1 if "float" in name else 0)
    np.testing.assert_array_equal(obs.inside, reference.inside)
    assert obs.source.shapes_key == "S1"


def test_reference_has_the_numbers_it_was_built_with(reference):
    sdata = visium_section()
    assert reference.grid.shape == (80, 64)
    assert reference.grid.px_per_bin == pytest.approx(5, abs=1e-9)
    assert reference.he_per_bin == 5 and reference.he_um == pytest.approx(4)  # 20 µm bins, 4 µm pixels
    np.testing.assert_array_equal(reference.counts, sdata["table"].X[:, [3, 1, 6]].toarray())
    np.testing.assert_allclose(reference.measurement.area.max(), np.pi * 27.5**2 / 20**2, rtol=1e-9)
    assert (reference.inside | (reference.measurement.coverage == 0)).all()
    assert reference.source.coordinate_system == "S1"


def test_filtered_table_keeps_its_own_spots_in_the_order_of_the_shapes(reference):
    sdata = visium_section()
    keep = [7, 3, 100, 20]
    replace_table(sdata, lambda table: table[keep].copy())
    obs = read_observation(sdata, **FULL)
    assert obs.spots == ("spot-3", "spot-7", "spot-20", "spot-100")
    np.testing.assert_array_equal(obs.counts, reference.counts[sorted(keep)])
    np.testing.assert_allclose(obs.measurement.centres, reference.measurement.centres[sorted(keep)], atol=1e-9)


def test_rows_without_a_spot_are_left_out_and_reported(caplog):
    sdata = visium_section()
    sdata.shapes["S1"] = sdata["S1"].iloc[10:]
    with caplog.at_level(logging.WARNING, logger="hadmst_sc"):
        obs = read_observation(sdata, **FULL)
    assert obs.spots[0] == "spot-10"
    assert "10 of" in caplog.text and "no spot in shapes/S1" in caplog.text


@pytest.mark.parametrize("image_key", ["S1_hires_image", "S1_lowres_image"])
def test_downscaled_images_with_two_shared_systems_agree_with_the_full_one(image_key, reference):
    obs = read_observation(visium_section(), **(FULL | {"image_key": image_key}))
    assert obs.source.coordinate_system == "S1"  # where the spots' own coordinates are used as they are
    assert obs.grid.shape == reference.grid.shape
    np.testing.assert_allclose(obs.measurement.centres, reference.measurement.centres, atol=1e-6)

    def per_bin(one):
        k = one.he_per_bin
        return one.he.reshape(3, 80, k, 64, k).mean((2, 4))

    assert np.abs(per_bin(obs)[:, 2:-2, 2:-2] - per_bin(reference)[:, 2:-2, 2:-2]).mean() < 2.0


def test_backed_store_reads_as_in_memory_and_is_not_touched(tmp_path, reference):
    visium_section().write(tmp_path / "section.zarr")
    files = {p: p.read_bytes() for p in sorted((tmp_path / "section.zarr").rglob("*")) if p.is_file()}
    obs = read_observation(sd.read_zarr(tmp_path / "section.zarr"), **FULL)
    np.testing.assert_array_equal(obs.he, reference.he)
    np.testing.assert_array_equal(obs.counts, reference.counts)
    assert files == {p: p.read_bytes() for p in sorted((tmp_path / "section.zarr").rglob("*")) if p.is_file()}


def test_image_coarser_than_the_bins_is_read_and_reported(caplog):
    with caplog.at_level(logging.WARNING, logger="hadmst_sc"):
        obs = read_observation(visium_section(), "S1_lowres_image", bin_um=10.0, genes=2)
    assert obs.he_per_bin == 1 and obs.he_um == pytest.approx(16)
    assert "coarser than bin_um=10" in caplog.text


@pytest.mark.parametrize("count", [1, 2, 5])
def test_few_spots_read_with_explicit_sizes(count):
    xy = np.array([[100.0 + 25 * i, 200.0] for i in range(count)])
    obs = read_observation(visium_section(xy=xy), **FULL, spot_um=55, pitch_um=100)
    assert len(obs.measurement) == count
    assert obs.grid.px_per_bin == pytest.approx(5)
    np.testing.assert_allclose(obs.measurement.area, np.pi * 27.5**2 / 400, rtol=1e-9)


def test_one_column_of_the_hexagonal_lattice_is_recognised():
    xy = np.array([[100.0, 50 + 25 * np.sqrt(3) * i] for i in range(6)])
    assert read_observation(visium_section(xy=xy), **FULL).grid.um_per_px == pytest.approx(4)


def test_squares_are_summed_as_squares():
    sdata = visium_section()
    y, x = (axis.ravel() for axis in np.mgrid[100:300:10, 60:260:10])
    boxes = GeoDataFrame(geometry=[box(a, b, a + 10, b + 10) for a, b in zip(x, y, strict=True)])
    sdata["S1_square_040um"] = ShapesModel.parse(boxes, transformations={"S1": Identity()})
    table = ad.AnnData(
        np.ones((400, 3), np.float32), obs=pd.DataFrame({"region": "S1_square_040um", "id": np.arange(400)})
    )
    table.obs_names = [f"square {i}" for i in range(400)]
    sdata["squares"] = TableModel.parse(table, region="S1_square_040um", region_key="region", instance_key="id")
    obs = read_observation(sdata, "S1_full_image", table_key="squares", bin_um=20.0)
    assert obs.grid.um_per_px == pytest.approx(4)
    np.testing.assert_allclose(obs.measurement.area, 4, rtol=1e-9)  # 40 µm edge, 20 µm bins
    assert obs.measurement.coverage.max() == pytest.approx(1) and obs.measurement.coverage.sum() == pytest.approx(1600)


def test_transformations_of_the_section_are_what_they_were():
    sdata = visium_section()
    read_observation(sdata, **FULL)
    assert list(get_transformation(sdata["S1"], get_all=True)) == ["S1", "S1_downscaled_hires", "S1_downscaled_lowres"]


def test_sizes_that_the_table_states_are_taken_where_none_are_passed():
    sdata = visium_section(drawn_um=72.0)  # a ratio that names no platform
    with pytest.raises(ValueError, match="`spot_um` and `pitch_um` are needed"):
        read_observation(sdata, **FULL)
    sdata["table"].uns["spatial"] = {"S1": {"metadata": {"spot_um": 80, "pitch_um": 150.0}}}
    obs = read_observation(sdata, **FULL)
    assert (obs.source.spot_um, obs.source.pitch_um) == (80.0, 150.0)
    assert obs.grid.um_per_px == pytest.approx(150 / 25, rel=1e-6)
    passed = read_observation(sdata, **FULL, spot_um=55, pitch_um=100)
    assert (passed.source.spot_um, passed.source.pitch_um) == (55, 100)


@pytest.mark.parametrize("stated", [None, 3, {}, {"metadata": None}, {"metadata": {"spot_um": "wide", "pitch_um": -1}}])
def test_sizes_that_are_none_are_not_taken(stated):
    sdata = visium_section()
    sdata["table"].uns["spatial"] = {"S1": stated}
    obs = read_observation(sdata, **FULL)
    assert (obs.source.spot_um, obs.source.pitch_um) == (55.0, 100.0)
