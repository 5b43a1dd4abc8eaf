"""Nuclei are found where they are drawn, whatever the tiles, the pixels and the pyramid of the image."""

from __future__ import annotations

import importlib
import re

import numpy as np
import pytest
from anndata import AnnData
from scipy import ndimage
from scipy.spatial import cKDTree
from spatialdata import SpatialData, read_zarr
from spatialdata.models import Image2DModel, ShapesModel, TableModel
from spatialdata.transformations import Identity

import hadmst_sc as hd
from hadmst_sc.section.errors import ContractError

UM = 0.5  # per pixel
SIDE_UM = 500.0
STAINS = np.array([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11]])
SCALE = {"spot_um": 55.0, "pitch_um": 100.0, "bin_um": 20.0}


def drawn(seed=0, um=UM):
    """Image ``(3, side, side)`` of ellipses on pink ground with glass to the right, and their centres in µm (x, y)."""
    rng = np.random.default_rng(seed)
    side = round(SIDE_UM / um)
    centres = []
    while len(centres) < 350:
        one = rng.uniform(10, SIDE_UM - 10, 2)
        if one[0] < 390 and all(np.hypot(*(one - other)) > 9 for other in centres):
            centres.append(one)
    y, x = (np.mgrid[:side, :side] + 0.5) * um
    haematoxylin = np.full((side, side), 0.05)
    for cx, cy in centres:
        a, b, turn = rng.uniform(3.5, 5), rng.uniform(3, 4), rng.uniform(0, np.pi)
        rows, columns = (slice(max(0, int((c - 8) / um)), int((c + 8) / um)) for c in (cy, cx))
        dx, dy = x[rows, columns] - cx, y[rows, columns] - cy
        u, v = dx * np.cos(turn) + dy * np.sin(turn), dy * np.cos(turn) - dx * np.sin(turn)
        haematoxylin[rows, columns] += rng.uniform(0.8, 1.4) * ((u / a) ** 2 + (v / b) ** 2 < 1)
    tissue = x < 400
    eosin = (0.4 + 0.1 * ndimage.gaussian_filter(rng.standard_normal((side, side)), 8 / um)) * tissue
    density = STAINS.T @ np.stack([(haematoxylin * tissue).ravel(), eosin.ravel()])
    light = ndimage.gaussian_filter(np.exp(-density).reshape(3, side, side), (0, 0.5 / um, 0.5 / um))
    light += 0.01 * rng.standard_normal(light.shape)
    return (np.clip(light, 0, 1) * 250).astype(np.uint8), np.array(centres)


def section(image, um=UM, **options):
    """A section of spots over an image."""
    at = np.stack(np.meshgrid(np.arange(50, 400, 100.0), np.arange(50, 480, 100.0)), -1).reshape(-1, 2) / um
    names = [f"s{number}" for number in range(len(at))]
    table = AnnData(np.random.default_rng(0).poisson(5.0, (len(at), 3)).astype(np.float32))
    table.obs_names, table.var_names = names, ["a", "b", "c"]
    table.obs["region"], table.obs["spot"] = "spots", names
    table.obs["region"] = table.obs["region"].astype("category")
    circles = ShapesModel.parse(at, geometry=0, radius=27.5 / um, index=names, transformations={"global": Identity()})
    return SpatialData(
        images={"he": Image2DModel.parse(image, dims=("c", "y", "x"), c_coords=["r", "g", "b"], **options)},
        shapes={"spots": circles},
        tables={"table": TableModel.parse(table, region="spots", region_key="region", instance_key="spot")},
    )


def f1(shapes, centres, um=UM, within=3.0):
    """Share of centres and shapes that belong together."""
    xy = np.c_[shapes.geometry.x, shapes.geometry.y] * um
    near, _ = cKDTree(xy).query(centres)
    back, _ = cKDTree(centres).query(xy)
    return 2 * (near < within).sum() / (len(centres) + len(xy)), (back < within).mean()


@pytest.fixture(scope="module")
def truth():
    return drawn()


def test_nuclei_are_found_once_each(truth):
    image, centres = truth
    sdata = section(image)
    hd.pp.find_nuclei(sdata, "he", **SCALE)
    shapes = sdata["nuclei"]
    score, right = f1(shapes, centres)
    assert score > 0.93 and right > 0.95
    area = np.pi * (shapes["radius"] * UM) ** 2
    np.testing.assert_allclose(area, shapes["area_um2"], rtol=1e-6)
    assert 30 < np.median(area) < 65
    assert cKDTree(np.c_[shapes.geometry.x, shapes.geometry.y]).query_pairs(1.0) == set()
    hd.pp.find_nuclei(sdata, "he", **SCALE)  # replaces them
    assert sdata["nuclei"].equals(shapes)


def test_tiles_do_not_show(truth, monkeypatch):
    image, _ = truth
    whole, tiled = section(image), section(image)
    hd.pp.find_nuclei(whole, "he", **SCALE)
    module = importlib.import_module("hadmst_sc.pp.find_nuclei")
    monkeypatch.setattr(module, "TILE_UM", 130.0)
    monkeypatch.setattr(module, "N_SAMPLED", 1000)
    hd.pp.find_nuclei(tiled, "he", **SCALE)
    places = [np.c_[one["nuclei"].geometry.x, one["nuclei"].geometry.y] for one in (whole, tiled)]
    apart, _ = cKDTree(places[0]).query(places[1])
    assert (apart < 1.0).mean() > 0.97 and abs(len(places[0]) - len(places[1])) < 0.03 * len(places[0])


@pytest.mark.parametrize("factor", [1, 2])
def test_any_pyramid_and_pixel_gives_the_same_places(truth, factor):
    image, centres = truth
    fine = image.repeat(factor, 1).repeat(factor, 2)
    sdata = section(fine, UM / factor, scale_factors=[2, 2])
    hd.pp.find_nuclei(sdata, "he", **SCALE)
    assert f1(sdata["nuclei"], centres, UM / factor)[0] > 0.93


def test_one_micrometre_is_fine_enough(truth):
    image, centres = drawn(um=1.0)
    sdata = section(image, 1.0)
    hd.pp.find_nuclei(sdata, "he", **SCALE)
    assert f1(sdata["nuclei"], centres, 1.0)[0] > 0.85


def test_a_floating_point_image_gives_the_same(truth):
    image, _ = truth
    as_bytes, as_floats = section(image), section((image / 255).astype(np.float32))
    for sdata in (as_bytes, as_floats):
        hd.pp.find_nuclei(sdata, "he", **SCALE)
    assert len(as_bytes["nuclei"]) == pytest.approx(len(as_floats["nuclei"]), rel=0.02)


def test_nothing_is_found_on_glass(truth):
    image, _ = truth
    image = image.copy()
    image[:, 600:620, 930:950] = 40  # dirt
    sdata = section(image)
    hd.pp.find_nuclei(sdata, "he", **SCALE)
    assert (sdata["nuclei"].geometry.x * UM < 425).all()


def test_a_backed_object_is_told_how_to_keep_them(truth, tmp_path, caplog):
    section(truth[0]).write(tmp_path / "section.zarr")
    sdata = read_zarr(tmp_path / "section.zarr")
    for _ in range(2):  # the second time they are on disk already
        caplog.clear()
        hd.pp.find_nuclei(sdata, "he", **SCALE)
        (calls,) = re.findall(r"shapes/nuclei: in memory only\. To keep them, call `(.*)`", caplog.text)
        exec(calls, {"sdata": sdata})
        assert read_zarr(tmp_path / "section.zarr")["nuclei"].equals(sdata["nuclei"])
        sdata["nuclei"] = sdata["nuclei"][:-1]


def test_nuclei_at_the_edge_of_the_image_are_found_in_it(truth):
    image, centres = truth
    corner = np.array([120.0, 130.0])  # (x, y) in µm: the image begins among nuclei
    x, y = (corner / UM).astype(int)
    cropped = image[:, y:, x:]
    sdata = section(cropped)
    sdata["spots"] = sdata["spots"].cx[: cropped.shape[2] - 60, : cropped.shape[1] - 60]
    hd.pp.find_nuclei(sdata, "he", **SCALE)
    xy = np.c_[sdata["nuclei"].geometry.x, sdata["nuclei"].geometry.y]
    assert (xy >= 0).all() and (xy <= np.array(cropped.shape[:0:-1])).all()
    distance = (centres - corner).min(1)  # from the edges on the left and at the top
    near, whole = (distance > -2) & (distance < 20), distance > 4
    apart, _ = cKDTree(xy * UM).query(centres[near & whole] - corner)
    assert near.sum() > 15 and (apart < 3.0).mean() > 0.9
    at_edge = (xy * UM).min(1) < 10
    back, _ = cKDTree(centres - corner).query(xy[at_edge] * UM)
    assert at_edge.sum() > 5 and (back < 4.0).mean() > 0.85


def test_a_coarse_image_is_refused():
    sdata = hd.datasets.phantom(n_genes=3, size_um=600.0)
    with pytest.raises(ContractError, match=r"has 2.5 µm per pixel at its finest, and nuclei need 1 µm or less"):
        hd.pp.find_nuclei(sdata, "phantom_full_image")


def test_an_image_without_nuclei_is_refused(truth):
    image = np.full_like(truth[0], 200)
    with pytest.raises(ContractError, match="shows no nuclei"):
        hd.pp.find_nuclei(section(image), "he", **SCALE)


@pytest.mark.parametrize(("name", "message"), [("he", "name of another element"), ("a b", "needs at most 200 letters")])
def test_a_wrong_name_is_refused(truth, name, message):
    sdata = section(truth[0])
    with pytest.raises(ValueError, match=message):
        hd.pp.find_nuclei(sdata, "he", key_added=name, **SCALE)


@pytest.mark.parametrize(
    ("move", "message"),
    [
        (lambda x, y: (x, y), None),
        (lambda x, y: (x + 60 / UM, y - 40 / UM), r"displaced.* moved (30|40|50) µm down and (50|60|70) µm left"),
        (lambda x, y: (400 / UM - x, y), "flipped left to right"),
        (lambda x, y: (x, SIDE_UM / UM - y), "flipped upside down"),
    ],
)
def test_validate_names_cells_that_lie_elsewhere(truth, move, message):
    sdata = section(truth[0])
    hd.pp.find_nuclei(sdata, "he", **SCALE)
    shapes = sdata["nuclei"]
    xy = np.c_[move(shapes.geometry.x.to_numpy(), shapes.geometry.y.to_numpy())]
    xy = xy if xy.shape[1] == 2 else xy.T
    places = {"global": Identity()}
    sdata["cells"] = ShapesModel.parse(xy, geometry=0, radius=shapes["radius"].to_numpy(), transformations=places)
    report = hd.pp.validate(sdata, "he", cells_key="cells", align=False, **SCALE | {"bin_um": 10.0})
    assert report.ok and report.facts["cells_on_tissue"] > 100
    told = [finding.message for finding in report.findings if finding.message.startswith("cells")]
    assert (told == []) if message is None else re.search(message, told[0])


def test_validate_says_what_cells_are_like(truth):
    sdata = section(truth[0])
    hd.pp.find_nuclei(sdata, "he", **SCALE)
    facts = hd.pp.validate(sdata, "he", cells_key="nuclei", align=False, **SCALE).facts
    assert 30 < facts["median_cell_um2"] < 65
    assert facts["cells_per_mm2"] == pytest.approx(350 / 0.19, rel=0.15)
    report = hd.pp.validate(sdata, "he", cells_key="none", align=False, **SCALE)
    assert not report.ok and "`cells_key='none'` is not in `sdata.shapes" in str(report)


def test_nuclei_go_into_a_run_and_come_out_as_cells(truth):
    sdata = section(truth[0])
    hd.pp.find_nuclei(sdata, "he", **SCALE)
    hd.tl.superresolve(sdata, "he", cells_key="nuclei", model=None, show_progress_bar=False, **SCALE)
    cells = hd.tl.to_cells(sdata, "nuclei")
    assert cells.n_obs == len(sdata["nuclei"]) and cells.uns["spatialdata_attrs"]["region"] == "nuclei"
