"""Pictures look as they did. `pytest <this file> --mpl-generate-path tests/pl/baseline` draws the baseline again."""

from __future__ import annotations

import numpy as np
import pytest
from spatialdata.models import Image2DModel

import hadmst_sc as hd

pytest.importorskip("pytest_mpl")
# Without titles and tick labels, which other versions of fonts draw otherwise; their words are tested elsewhere.
looks = pytest.mark.mpl_image_compare(
    baseline_dir="baseline", tolerance=1, style="default", remove_text=True, savefig_kwargs={"dpi": 50}
)


@looks
def test_superresolve(result):
    return hd.pl.superresolve(result, ["ramp", "spike"])[0, 0].figure


@looks
def test_superresolve_of_squares(result_of_squares):
    return hd.pl.superresolve(result_of_squares, "ramp")[0, 0].figure


@looks
def test_uncertainty(result):
    return hd.pl.uncertainty(result, ["ramp", "flat"])[0, 0].figure


@looks
def test_cells(result_with_cells):
    return hd.pl.cells(result_with_cells, "cells", ["ramp", "spike"])[0, 0].figure


@looks
def test_cells_in_a_part(result_with_cells):
    return hd.pl.cells(result_with_cells, "cells", "ramp", crop=(60, 40, 140, 120))[0, 0].figure


@looks
def test_compare(result):
    image = result["superres"]
    systems = image.attrs["transform"]
    flipped = np.asarray(image.data)[:, :, ::-1].copy()
    result.images["other"] = Image2DModel.parse(
        flipped, dims=("c", "y", "x"), c_coords=list(image.coords["c"].values), transformations=systems
    )
    result.labels["other_bins"], result.tables["other_table"] = result["superres_bins"], result["superres_table"].copy()
    return hd.pl.compare(result, {"ours": "superres", "flipped": "other"}, "ramp")[0, 0].figure


@looks
def test_reliability(result):
    rng = np.random.default_rng(0)
    result["superres_table"].var = result["superres_table"].var.assign(
        reliability=[0.1, 0.8, 0.5],
        reliability_low=[-0.1, 0.7, 0.3],
        reliability_high=[0.3, 0.9, 0.7],
        gain_over_interpolation=rng.normal(0, 0.1, 3),
        image_helps=[False, True, True],
        finest_um=[np.nan, 55.0, 100.0],
    )
    return hd.pl.reliability(result)[0].figure


@looks
def test_registration(registered):
    record = {"dy_um": 12.0, "dx_um": -6.0, "score_here": 0.2, "score_there": 0.3, "applied": True, "rotation_deg": 2.0}
    return hd.pl.registration(registered(record))[0].figure
