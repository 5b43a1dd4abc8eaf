"""Each remedy is typed as it is printed, and then every spot has its own counts and its own place."""

from __future__ import annotations

import ast
import runpy
from pathlib import Path

import dask.dataframe
import geopandas as gpd
import numpy as np
import pandas as pd
import pytest
import shapely
import spatialdata
from shapely import Point
from spatialdata import SpatialData
from spatialdata.models import Image2DModel, PointsModel
from spatialdata.transformations import Affine, Identity, set_transformation

import hadmst_sc
from hadmst_sc.io import read_observation

HELPERS = runpy.run_path(str(Path(__file__).with_name("conftest.py")))
visium_section, fingerprint = HELPERS["visium_section"], HELPERS["fingerprint"]
IMAGE = "S1_full_image"


def truth(sdata: SpatialData) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Counts and (y, x) in image pixels by name of the spot."""
    rows, xy = sdata["table"], np.c_[sdata["S1"].geometry.x, sdata["S1"].geometry.y]
    return {name: (rows.X[i].toarray().ravel(), xy[i, ::-1]) for i, name in enumerate(rows.obs_names)}


def code_in(message: str) -> list[str]:
    """What stands between backticks after the last sentence that states the problem, and is code with values."""
    found = [one for one in message.split("`")[1::2] if "=" in one or "(" in one or one.startswith("del ")]
    return [one for one in found if "..." not in one and not one.endswith("=") and one != "uns['spatialdata_attrs']"]


def run(sdata: SpatialData, arguments: dict, message: str) -> tuple[SpatialData, dict]:
    """Type the last remedy: statements change the object, ``name=value`` becomes an argument."""
    remedy = code_in(message)[-1]
    names = {"sdata": sdata, "spatialdata": spatialdata, "hadmst_sc": hadmst_sc, "hd": hadmst_sc}
    call = (
        ast.parse(f"f({remedy})") if all("=" in part for part in remedy.split(", ")) and "sdata" not in remedy else None
    )
    if call is not None:
        keywords = call.body[0].value.keywords
        return sdata, arguments | {one.arg: ast.literal_eval(one.value) for one in keywords}
    exec(remedy, names)
    return names["sdata"], arguments


def mend(sdata: SpatialData, **arguments):
    """The observation after each printed remedy has been typed, one run after the other."""
    arguments = {"image_key": IMAGE, "bin_um": 20.0} | arguments
    said = []
    for _ in range(4):
        before = fingerprint(sdata)
        try:
            return read_observation(sdata, **arguments), said
        except (ValueError, KeyError) as error:
            assert fingerprint(sdata) == before
            said.append(str(error))
            sdata, arguments = run(sdata, arguments, str(error))
    raise AssertionError(said)


def check(obs, expected: dict, share: float = 1.0) -> None:
    assert len(obs.spots) >= share * len(expected)
    order = [int(gene.split("-")[1]) for gene in obs.genes]
    at = obs.measurement.centres * obs.grid.bin_um / 4.0  # pixels of the full image
    whole = obs.measurement.area >= 0.999 * obs.measurement.area.max()
    for i in np.flatnonzero(whole):
        counts, place = expected[obs.spots[i]]
        np.testing.assert_array_equal(obs.counts[i], counts[order])
        np.testing.assert_allclose(at[i], place, atol=0.51)


def with_table(sdata: SpatialData, change) -> None:
    table = sdata["table"].copy()
    changed = change(table)
    del sdata.tables["table"]
    dict.__setitem__(sdata.tables.data, "table", table if changed is None else changed)


def attrs(value):
    return lambda sdata: with_table(sdata, lambda table: table.uns.__setitem__("spatialdata_attrs", value))


def no_attrs(sdata):
    with_table(sdata, lambda table: table.uns.pop("spatialdata_attrs") and None)


def named_by_barcode(sdata):
    """Nothing but names left: no region, no ids, no metadata; shapes indexed by barcode, rows in another order."""
    sdata.shapes["S1"] = sdata["S1"].set_index(pd.Index([f"spot-{i}" for i in range(len(sdata["S1"]))]))

    def change(table):
        del table.uns["spatialdata_attrs"]
        table.obs = table.obs[["in_tissue"]]
        return table[np.random.default_rng(0).permutation(table.n_obs)].copy()

    with_table(sdata, change)


def ids_in_another_column(sdata):
    sdata.shapes["S1"] = sdata["S1"].set_index(pd.Index([f"AC{i}GT" for i in range(len(sdata["S1"]))]))

    def change(table):
        table.obs["barcode"] = [f"AC{i}GT" for i in table.obs["spot_id"]]
        table.obs["spot_id"] = [f"wrong {i}" for i in table.obs["spot_id"]]
        return table[np.random.default_rng(0).permutation(table.n_obs)].copy()

    with_table(sdata, change)


def ids_with_a_suffix(sdata):
    sdata.shapes["S1"] = sdata["S1"].set_index(pd.Index([f"AC{i}GT" for i in range(len(sdata["S1"]))]))

    def change(table):
        table.obs["spot_id"] = [f"AC{i}GT-1" for i in table.obs["spot_id"]]

    with_table(sdata, change)


def region_renamed(sdata):
    with_table(sdata, lambda table: table.obs.__setitem__("region", pd.Categorical(["before"] * table.n_obs)))


def rows_twice(sdata):
    def change(table):
        return table[[*range(table.n_obs), 3, 7]].copy()

    with_table(sdata, change)


def shapes_twice(sdata):
    sdata.shapes["S1"] = sdata["S1"].iloc[[*range(len(sdata["S1"])), 3, 7]]


def places_twice(sdata):
    again = sdata["S1"].iloc[[3, 7]].set_index(pd.Index([1000, 1001]))
    both = gpd.GeoDataFrame(pd.concat([sdata["S1"], again]))
    both.attrs = sdata["S1"].attrs
    sdata.shapes["S1"] = both


def without_geometry(sdata):
    places = sdata["S1"].geometry.copy()
    places.iloc[0], places.iloc[1], places.iloc[2] = None, Point(np.nan, np.nan), Point()
    sdata["S1"].geometry = places


def radius(values):
    return lambda sdata: sdata["S1"].__setitem__("radius", values)


def exchanged(sdata):
    sdata["S1"].geometry = shapely.points(np.c_[sdata["S1"].geometry.y, sdata["S1"].geometry.x])


def mirrored(sdata):
    sdata["S1"].geometry = shapely.points(np.c_[sdata["S1"].geometry.x, -np.asarray(sdata["S1"].geometry.y)])


def hires_for_full(sdata):
    """The small image under the name of the full one, as pixels of the full one; only `uns` knows the factor."""
    small = sdata["S1_hires_image"]
    for name in ("S1_hires_image", "S1_lowres_image", IMAGE):
        del sdata.images[name]
    set_transformation(small, {"S1": Identity()}, set_all=True)
    sdata[IMAGE] = small
    factors = {"tissue_hires_scalef": 0.5, "spot_diameter_fullres": 13.75}
    sdata["table"].uns["spatial"] = {"library": {"scalefactors": factors, "images": {}}}


def hires_beside_full(sdata):
    set_transformation(sdata["S1_hires_image"], {"S1": Identity()}, set_all=True)


def wrong_system(sdata):
    far = Affine([[1, 0, 5000.0], [0, 1, 0], [0, 0, 1]], input_axes=("x", "y"), output_axes=("x", "y"))
    set_transformation(sdata["S1"], far, "moved")
    set_transformation(sdata[IMAGE], Identity(), "moved")


def not_a_number(*names):
    def change(sdata):
        bad = Affine([[1, 0, np.nan], [0, 1, 0], [0, 0, 1]], input_axes=("x", "y"), output_axes=("x", "y"))
        for name in names:
            set_transformation(sdata[name], {"S1": bad}, set_all=True)

    return change


def flat(sdata):
    bad = Affine([[1, 0, 0], [0, 0, 0], [0, 0, 1]], input_axes=("x", "y"), output_axes=("x", "y"))
    set_transformation(sdata[IMAGE], {"S1": bad, "other": Identity()}, set_all=True)
    set_transformation(sdata["S1"], {"S1": Identity(), "other": Identity()}, set_all=True)


def off_tissue_all(sdata):
    with_table(sdata, lambda table: table.obs.__setitem__("in_tissue", "0"))


def points_without_size(sdata):
    frame = pd.DataFrame({"x": sdata["S1"].geometry.x.to_numpy(), "y": sdata["S1"].geometry.y.to_numpy()})
    points = PointsModel.parse(frame, transformations={"S1": Identity()})
    del sdata.shapes["S1"]
    sdata["S1"] = points


def points(change, npartitions=1):
    """Points in place of circles, in another coordinate system; their size is lost, and passed in µm."""

    def to_points(sdata):
        places = sdata["S1"].geometry
        frame = change(pd.DataFrame({"x": np.array(places.x), "y": np.array(places.y)}, index=places.index))
        parts = [frame] if npartitions == 1 else [frame.iloc[:112], frame.iloc[112:].reset_index(drop=True)]
        parts = dask.dataframe.concat([dask.dataframe.from_pandas(part, npartitions=1) for part in parts])
        del sdata.shapes["S1"]
        element = PointsModel.parse(parts, transformations={"S1": Identity()})
        dict.__setitem__(sdata.points.data, "S1", element)

    return to_points


def lost_points(frame):
    frame.loc[[4, 90], "x"], frame.loc[30, "y"] = np.nan, np.inf
    return frame


def infinite(sdata):
    places = sdata["S1"].geometry.copy()
    places.iloc[0] = Point(np.inf, 3)
    sdata["S1"].geometry = places


UM = {"spot_um": 55, "pitch_um": 100}

# name: (change, arguments, words of the message, share of the spots that is left)
REMEDIES = {
    "attributes are no dictionary": (attrs(3), {}, "is of type int, not a dictionary", 1.0),
    "attributes are text": (attrs("S1"), {}, "is of type str", 1.0),
    "attributes lack a key": (attrs({"region": "S1"}), {}, "names no region", 1.0),
    "attributes are lost": (no_attrs, {}, "names no region", 1.0),
    "only names are left": (named_by_barcode, {}, "names no region", 1.0),
    "ids in another column": (ids_in_another_column, {}, "no value of `obs['spot_id']`", 1.0),
    "ids with a suffix": (ids_with_a_suffix, {}, "no value of `obs['spot_id']`", 1.0),
    "region renamed": (region_renamed, {}, "its values are ['before']", 1.0),
    "rows twice": (rows_twice, {}, "has duplicates (2 rows", 1.0),
    "shapes twice": (shapes_twice, {}, "its index has duplicates", 1.0),
    "places twice": (places_twice, {}, "2 of 227 share the position of another one", 1.0),
    "no geometry": (without_geometry, {}, "3 of 225 geometries are missing, empty or not finite", 222 / 225),
    "some radii lost": (radius(np.r_[np.nan, -1, np.full(223, 6.875)]), {}, "radius of 2 of 225", 1.0),
    "radii in text": (radius(["6.875 px"] * 225), {}, "radius of 225 of 225 spots is not, such as '6.875 px'", 1.0),
    "some radii in text": (radius(["7 px", *["6.875"] * 224]), {}, "radius of 1 of 225", 1.0),
    "all radii lost": (radius(np.full(225, np.nan)), {}, "radius of 225 of 225", 1.0),
    "unknown ratio": (radius(3.0), {}, "diameter / pitch is 0.240 on a hexagonal lattice", 1.0),
    "x and y exchanged": (exchanged, {}, "x and y are exchanged", 1.0),
    "y points up": (mirrored, {}, "the y axis points up", 1.0),
    "hires image as the full one": (hires_for_full, {}, "those of the hires image", 1.0),
    "hires image not scaled": (hires_beside_full, {"image_key": "S1_hires_image"}, "They are on another image", 1.0),
    "wrong system": (wrong_system, {"coordinate_system": "moved"}, "another coordinate system", 1.0),
    "NaN in the image's transformation": (not_a_number(IMAGE), {}, "images/S1_full_image: its transformation", 1.0),
    "NaN in the spots' transformation": (not_a_number("S1"), {}, "shapes/S1: its transformation to 'S1' is not", 1.0),
    "singular, with another system": (flat, {"coordinate_system": "S1"}, "is singular", 1.0),
    "all off the tissue": (off_tissue_all, {}, "is 0 for all 225", 1.0),
    "an infinite place": (infinite, {}, "1 of 225 geometries are missing, empty or not finite", 224 / 225),
    "points lost": (
        points(lost_points),
        UM,
        "points/S1: needs a position for each spot, but 3",
        222 / 225,
    ),
    "points in one place": (
        points(lambda frame: pd.concat([frame, frame.iloc[[3, 7]].set_index(pd.Index([1000, 1001]))])),
        UM,
        "points/S1: needs each spot at its own position, but 2 of 227",
        1.0,
    ),
    "points twice": (
        points(lambda frame: frame.iloc[[*range(225), 3, 7]]),
        UM,
        "points/S1: its index has duplicates (2 ids",
        1.0,
    ),
    "points numbered in each partition": (
        points(lambda frame: frame, npartitions=2),
        UM,
        "points/S1: its index has duplicates (112 ids",
        1.0,
    ),
    "shapes numbered in each part": (
        lambda sdata: sdata["S1"].set_index(pd.Index([*range(112), *range(113)]), inplace=True),
        {},
        "The table numbers all spots in their order",
        1.0,
    ),
    "points without size": (points_without_size, {}, "spots have no diameter on a hexagonal lattice", 1.0),
}


@pytest.mark.parametrize("name", REMEDIES)
def test_the_printed_remedy_puts_every_spot_right(name):
    change, arguments, words, share = REMEDIES[name]
    sdata = visium_section()
    expected = truth(sdata)
    change(sdata)
    obs, said = mend(sdata, **arguments)
    assert words in said[0]
    check(obs, expected, share=share)


def test_an_image_of_a_part_of_the_section_takes_the_spots_on_it():
    sdata = visium_section()
    expected = truth(sdata)
    pixels = np.asarray(sdata[IMAGE]["scale0"]["image"].data)[:, :300, :280]
    del sdata.images[IMAGE]
    sdata[IMAGE] = Image2DModel.parse(pixels, dims=("c", "y", "x"), transformations={"S1": Identity()})
    for name in ("S1_hires_image", "S1_lowres_image"):
        del sdata.images[name]
    on = {name for name, (_, place) in expected.items() if (place <= [300, 280]).all()}
    obs, said = mend(sdata)
    assert ".cx[" in said[0] and set(obs.spots) == on and 0.5 < len(on) / 225 < 0.95
    check(obs, {name: expected[name] for name in on})


@pytest.mark.parametrize("written", [False, True])
@pytest.mark.parametrize("others", [False, True])
@pytest.mark.parametrize("x0", [40, 120])
def test_a_cut_image_takes_no_exchange_of_axes(x0, others, written, tmp_path):
    """Spots right of the cut lie where they lay, or a message says that an offset is needed."""
    sdata = hadmst_sc.datasets.phantom(size_um=1000.0, n_genes=4)
    full, key = "phantom_full_image", "cut"
    rows, at = sdata["table"], sdata["phantom"].geometry
    at = dict(zip(rows.obs_names, np.c_[at.y, at.x], strict=True))
    sdata[key] = spatialdata.get_pyramid_levels(sdata[full], n=0).isel(x=slice(x0, None))
    if not others:
        for name in [name for name in sdata.images if name != key]:
            del sdata.images[name]
    if written:  # without the coordinates of its pixels
        sdata.write(tmp_path / "cut.zarr")
        sdata = spatialdata.read_zarr(tmp_path / "cut.zarr")
    if written and not others:
        with pytest.raises(ValueError, match="needs the offset of the part cut off") as raised:
            read_observation(sdata, key, bin_um=20.0)
        assert "exchanged" not in str(raised.value)
        return
    obs, said = mend(sdata, image_key=key)
    assert not any("exchanged" in one for one in said)
    assert written or f"begin at x = {x0}, y = 0" in said[0]
    found = obs.measurement.centres * obs.grid.bin_um / obs.grid.um_per_px
    whole = obs.measurement.area >= 0.999 * obs.measurement.area.max()
    assert obs.source.image_key in (key, full) and whole.sum() > 0.6 * len(at)
    corner = 0 if obs.source.image_key == full else x0
    for name, place in zip(np.array(obs.spots)[whole], found[whole], strict=True):
        np.testing.assert_allclose(place, at[name] - [0, corner], atol=0.51)


def test_an_index_with_a_gap_and_a_copy_is_not_numbered_anew():
    sdata = visium_section()
    sdata.shapes["S1"] = sdata["S1"].iloc[[*range(5), *range(6, 225), 3]]
    expected = truth(visium_section())
    obs, said = mend(sdata)
    assert "If they are copies, keep the first of each" in said[0]
    assert set(obs.spots) == set(expected) - {"spot-5"}
    check(obs, {name: expected[name] for name in obs.spots})


def test_a_square_lattice_may_be_cut_or_exchanged_and_both_are_reported():
    """Only a hexagonal lattice looks different with its axes exchanged."""
    x, y = (axis.ravel() for axis in np.meshgrid(np.arange(20.0, 320, 50), np.arange(20.0, 400, 50)))
    sdata = visium_section(xy=np.c_[x, y], drawn_um=100)
    expected = truth(sdata)
    for name in ("S1_hires_image", "S1_lowres_image"):
        del sdata.images[name]
    exchanged(sdata)
    obs, said = mend(sdata)
    assert "transformation needs the offset" in said[0] and ".cx[" in said[0]
    assert "if x and y are exchanged" in said[0].split(".cx[")[1]
    check(obs, expected)


def test_a_cut_that_loses_no_spot_is_a_warning(caplog):
    sdata = hadmst_sc.datasets.phantom(size_um=600.0, n_genes=4)
    sdata["cut"] = spatialdata.get_pyramid_levels(sdata["phantom_full_image"], n=0).isel(x=slice(8, None))
    read_observation(sdata, "cut", bin_um=20.0)
    assert "images/cut: Its pixel coordinates begin at x = 8, y = 0" in caplog.text
    code = next(one for one in caplog.text.split("`") if "Translation(" in one)
    caplog.clear()
    exec(code, {"sdata": sdata})
    read_observation(sdata, "cut", bin_um=20.0)
    assert "begin at" not in caplog.text


def sizes(spot_um, pitch_um):
    metadata = {"metadata": {"spot_um": spot_um, "pitch_um": pitch_um}}
    return lambda sdata: sdata["table"].uns.__setitem__("spatial", {"S1": metadata})


@pytest.mark.parametrize(
    ("stated", "unit"),
    [((5.5e-5, 1e-4), "metres"), ((0.055, 0.1), "millimetres"), ((np.float64(55e3), 1e5), "nanometres")],
)
def test_sizes_in_another_unit_are_named_and_the_remedy_sets_the_right_scale(stated, unit):
    sdata = visium_section()
    expected = truth(sdata)
    sizes(*stated)(sdata)
    obs, said = mend(sdata)
    assert f"perhaps {unit}. Pass `spot_um=55, pitch_um=100`" in said[0]
    check(obs, expected)
    assert obs.grid.um_per_px == pytest.approx(4.0)


@pytest.mark.parametrize("stated", [True, False])
def test_sizes_that_are_exchanged_are_exchanged_back(stated):
    sdata = visium_section()
    expected = truth(sdata)
    if stated:
        sizes(100, 55)(sdata)
    obs, said = mend(sdata, **({} if stated else {"spot_um": 100, "pitch_um": 55}))
    assert "`uns`" in said[0] and "seem to be exchanged: pass `spot_um=55, pitch_um=100`" in said[0]
    check(obs, expected)
    assert obs.grid.um_per_px == pytest.approx(4.0) and obs.source.spot_um == 55


def test_sizes_are_numbers_in_whatever_form_a_store_keeps_them():
    sdata = visium_section(drawn_um=80.0)
    sizes(np.array([55.0]), np.array(100, np.int64))(sdata)
    assert read_observation(sdata, IMAGE, bin_um=20.0).grid.um_per_px == pytest.approx(4.0)
    sizes(True, True)(sdata)
    with pytest.raises(ValueError, match="`spot_um` and `pitch_um` are needed"):
        read_observation(sdata, IMAGE, bin_um=20.0)
