"""Sizes are compared with the memory there is before anything is allocated, and the remedy fits."""

from __future__ import annotations

import re
import runpy
import subprocess
import sys
import tracemalloc
from pathlib import Path

import dask.array as da
import pytest
import spatialdata
from spatialdata.models import Image2DModel
from spatialdata.transformations import Scale

from hadmst_sc import pp, tl
from hadmst_sc.io import read_observation
from hadmst_sc.runtime import memory_limit

visium_section = runpy.run_path(str(Path(__file__).with_name("conftest.py")))["visium_section"]
IMAGE = "S1_full_image"


@pytest.fixture(scope="module")
def section():
    return visium_section()


def refused(sdata, **arguments) -> str:
    """The message; reading it took next to no memory."""
    tracemalloc.start()
    with pytest.raises(ValueError, match=r"`bin_um` needs|`image_key` needs an image that fits") as raised:
        read_observation(sdata, IMAGE, **arguments)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 20e6
    return str(raised.value)


@pytest.mark.parametrize("bin_um", [1e-6, 1e-3, 0.05, 1000.0, 1e4, 1e6])
def test_bins_that_cannot_be_are_refused_and_the_remedy_fits(section, bin_um):
    message = refused(section, bin_um=bin_um)
    remedy = float(re.search(r"Pass `bin_um=([^`]+)`", message)[1])
    obs = read_observation(section, IMAGE, bin_um=remedy, genes=2)
    assert 1000 < obs.grid.n_bins < 400_000
    assert obs.counts.sum() > 0 and obs.inside.any()


def test_the_largest_bins_that_may_be_are_two_distances_of_spots(section):
    assert read_observation(section, IMAGE, bin_um=200.0, genes=2).grid.shape == (8, 7)


@pytest.mark.parametrize("factor", [1.0, 0.25])
def test_an_image_that_goes_far_beyond_its_spots_is_to_be_cropped_and_then_reads(factor):
    sdata, side = visium_section(), 100_000
    here = sdata[IMAGE]["scale0"]["image"].data
    there = da.pad(here, ((0, 0), (0, side - here.shape[1]), (0, side - here.shape[2])), constant_values=255)
    del sdata[IMAGE], sdata["S1_hires_image"], sdata["S1_lowres_image"]
    scale = Scale([factor, factor], axes=("x", "y"))
    sdata[IMAGE] = Image2DModel.parse(
        there.rechunk((3, 4000, 4000)), dims=("c", "y", "x"), transformations={"S1": scale}
    )
    spatialdata.transformations.set_transformation(sdata["S1"], {"S1": scale}, set_all=True)
    whole = read_observation(visium_section(), IMAGE, bin_um=20.0, genes=["gene-1"])
    message = refused(sdata, bin_um=20.0)
    code = re.search(r"`(sdata = spatialdata.bounding_box_query\([^`]+\))`", message)[1]
    space = {"sdata": sdata, "spatialdata": spatialdata}
    exec(code, space)  # the remedy, as it is printed
    obs = read_observation(space["sdata"], IMAGE, bin_um=20.0, genes=["gene-1"])
    assert sorted(obs.spots) == sorted(whole.spots) and obs.counts.sum() == whole.counts.sum()
    assert obs.source.spot_um == pytest.approx(55.0) and obs.grid.n_bins < 20_000


def test_validate_reports_a_size_and_does_not_end_with_it(section):
    report = pp.validate(section, IMAGE, bin_um=1e-3)
    assert not report.ok and "needs bins that fit in memory" in str(report)


def test_validate_reports_a_result_too_large_for_memory_as_the_run_would(section, monkeypatch):
    monkeypatch.setattr("hadmst_sc.io.write.MAX_IN_MEMORY", 1000)
    arguments = {"genes": ["gene-1"], "bin_um": 20.0}
    report = pp.validate(section, IMAGE, **arguments)
    with pytest.raises(ValueError, match="needs to be backed by a store") as raised:
        tl.superresolve(section, IMAGE, model=None, **arguments)
    assert not report.ok and report.facts["cost"] and str(raised.value).splitlines()[-1].strip() in str(report)


def test_sizes_that_no_platform_has_are_named_where_they_stand():
    sdata = visium_section()
    sdata["table"].uns["spatial"] = {"S1": {"metadata": {"spot_um": 1e9, "pitch_um": 2e9}}}
    with pytest.raises(ValueError, match=r"tables/table: `uns\['spatial'\]\['S1'\]\['metadata'\]\['spot_um'\]`"):
        read_observation(sdata, IMAGE, bin_um=20.0)
    assert read_observation(sdata, IMAGE, bin_um=20.0, spot_um=55, pitch_um=100).grid.shape == (80, 64)


def test_the_limit_is_that_of_the_machine_or_of_the_shell():
    import psutil

    assert 0 < memory_limit() <= psutil.virtual_memory().total * 1.01
    code = (
        "import resource; resource.setrlimit(resource.RLIMIT_AS, (2**31, 2**31));"
        "from hadmst_sc.runtime import memory_limit; print(memory_limit())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert float(done.stdout) <= 2**31
