"""Maps and cells where cells are given: ours against rivals that get the same maps of cells among their features.

On two sections the cells are known (Xenium; the truth counts their molecules at their centres, so true cells are partly
the truth's own). They are given as they are, and as a good, a bad and a useless segmentation would give them. On two
others nuclei are found by `pp.find_nuclei` in a rendering of the nuclear stain. Every method gets the image of the
first two as registered to the molecules by ours, that of the others as it is.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import pairs
import plan
import records
import rivals
import scores
import xarray as xr
from cases.cells import pseudo_spots, where_known
from frame import Measurement, Record, Row, grouped, rounded, shown
from rivals import gaussian
from rivals import section as of_rivals
from scipy import sparse

from hadmst_sc import metrics
from hadmst_sc.alignment.record import align_image
from hadmst_sc.alignment.register import estimate_alignment
from hadmst_sc.datasets.public import image_of_cells
from hadmst_sc.distillation.cells import LOCAL_UM, Support
from hadmst_sc.pp.find_nuclei import nuclei
from hadmst_sc.section.cells import Cells
from hadmst_sc.section.features import he_features
from hadmst_sc.section.observation import Observation, Prediction

SEED = 0
RIVALS = (
    "GP on H&E + space, soft",
    "GP on H&E + space, log, soft",
    "gradient boosting, soft spread",
    "gradient boosting, log, soft spread",
    "extra trees + kriging, log, soft",
)
FIXED = "ours without cells × density"
NONE = "none"


class Quality(NamedTuple):
    """Errors of a segmentation."""

    missed: float = 0.0
    false: float = 0.0
    jitter_um: float = 0.0
    off_um: float = 0.0
    area_sd: float = 0.0  # of the logarithm


KNOWN = {
    "true": Quality(),
    "good": Quality(0.1, 0.1, 1.5, 3.0, 0.2),
    "bad": Quality(0.2, 0.15, 4.0, 0.0, 0.3),
    "useless": Quality(0.4, 0.3, 6.0, 15.0, 0.3),
}
BREAST, BRAIN = "training/breast_only.safetensors", "training/brain_only.safetensors"
SETS: dict[str, dict[str, Any]] = {
    "breast, 20 µm": {"section": "xenium_breast_crop", "n_genes": 200, "bin_um": 20.0, "weights": BRAIN},
    "brain, no image, 20 µm": {"section": "xenium_mouse_brain", "n_genes": 200, "bin_um": 20.0, "weights": BREAST},
    **{
        f"{name}{geometry}, 10 µm": {"section": section, "n_genes": 60, "bin_um": 10.0, "weights": weights} | pitch
        for name, section, weights in (
            ("MERFISH", "merfish_mouse_hippocampus", BREAST),
            ("breast DAPI", "xenium_breast_dapi", BRAIN),
        )
        for geometry, pitch in (("", {}), (", half pitch", {"pitch_um": 50.0}))
    },
}


def segmented(xy_um: np.ndarray, area: np.ndarray, quality: Quality) -> tuple[np.ndarray, np.ndarray]:
    """Centres and areas as a segmentation of that quality finds them."""
    rng = np.random.default_rng(SEED)
    found = rng.random(len(xy_um)) >= quality.missed
    n_false = round(quality.false * len(xy_um))
    low, high = xy_um.min(0), xy_um.max(0)
    places = np.concatenate([xy_um[found], rng.uniform(low, high, (n_false, 2))])
    places = places + rng.normal(0, quality.jitter_um, places.shape) + [quality.off_um, 0.0]
    areas = np.concatenate([area[found], rng.choice(area, n_false)])
    return places, areas * np.exp(rng.normal(0, quality.area_sd, len(areas)))


def on_grid(xy_um: np.ndarray, area: np.ndarray, obs: Observation, n: int = 9) -> Cells:
    """Circles of these areas in bins, by ``n`` × ``n`` points in each."""
    (ny, nx), um = obs.grid.shape, obs.grid.bin_um
    step = np.stack(np.meshgrid(*[np.linspace(-1, 1, n)] * 2), -1).reshape(-1, 2)
    step = step[np.hypot(*step.T) <= 1.01]
    x, y = np.floor((xy_um[:, None] + np.sqrt(area / np.pi)[:, None, None] * step) / um).astype(int).transpose(2, 0, 1)
    on = (x >= 0) & (y >= 0) & (x < nx) & (y < ny)
    cell = np.broadcast_to(np.arange(len(xy_um))[:, None], on.shape)[on]
    share = np.broadcast_to((area / um**2 / len(step))[:, None], on.shape)[on]
    overlap = sparse.coo_array((share, (cell, (y * nx + x)[on])), (len(xy_um), ny * nx)).tocsr()
    return Cells("cells", np.arange(len(xy_um)), overlap, areal=True)


def given(name: str, obs: Observation, cells: Any) -> Iterator[tuple[str, Cells | None]]:
    """Segmentations of a section by their names, the first without."""
    yield NONE, None
    if "nucleus_area" in cells.obs:
        xy, area = cells.obsm["spatial"] * obs.grid.um_per_px, cells.obs["nucleus_area"].fillna(40.0).to_numpy(float)
        for quality, errs in KNOWN.items():
            yield quality, on_grid(*segmented(xy, area, errs), obs)
        return
    pixels = image_of_cells(name)
    assert pixels is not None
    level = xr.DataArray(pixels, dims=("c", "y", "x"), coords={"c": ["r", "g", "b"]})
    found = nuclei(level, obs.grid.um_per_px, obs, name)
    xy, area = found[["x", "y"]].to_numpy() * obs.grid.um_per_px, found["area_um2"].to_numpy()
    yield "found", on_grid(xy, area, obs)


def methods(obs: Observation, cells: Cells | None, weights: str) -> Iterator[tuple[str, Callable[[], Any]]]:
    """Every method by its name; maps ``(genes, ny, nx)``, with the strength that ours learned."""
    from hadmst_sc import tl

    def ours(model: str | None) -> Any:
        return tl.predict(obs, model=model, cells=cells, align=False)

    yield "ours", lambda: ours(str(plan.weights_path(weights)))
    yield "ours, closed form", lambda: ours(None)
    if cells is not None:
        relative = Support.of(cells, obs.inside, obs.grid.bin_um).relative

        def fixed() -> np.ndarray:
            return np.asarray(tl.predict(obs, model=None, align=False).mean * relative)

        yield FIXED, fixed
    for name in RIVALS:
        yield name, lambda name=name: rivals.rival(name)(obs)  # type: ignore[misc]


def with_cells(cells: Cells | None) -> Callable[[Observation], np.ndarray]:
    """H&E features of rivals, with the maps of cells that ours has: at bins, and smoothed."""

    def features(obs: Observation) -> np.ndarray:
        maps = he_features(obs)
        if cells is None:
            return maps
        support = Support.of(cells, obs.inside, obs.grid.bin_um)
        more = [*support.features(obs.grid.bin_um), support.relative.astype(np.float32)]
        return np.concatenate([maps, np.stack(more)])

    return features


def per_cell(maps: np.ndarray, cells: Cells, obs: Observation, strength: float, true: np.ndarray) -> float:
    """PCC of the counts of cells, mean over genes, for cells in the tissue."""
    shares = Support.of(cells, obs.inside, obs.grid.bin_um).shares(cells, strength)
    inside = np.asarray(shares.sum(1)).ravel() > 0
    found = (shares @ maps.reshape(len(maps), -1).T)[inside]
    return float(metrics.pearson(found.T, true[inside].T, np.ones(inside.sum(), bool)).mean())


def of_set(name: str, qualities: list[str]) -> Iterator[Row]:
    """A row per segmentation and method of a set."""
    options = dict(SETS[name])
    weights = options.pop("weights")
    obs, truth, cells = pseudo_spots(**options)
    if "nucleus_area" in cells.obs:  # cells lie with the molecules, not with the image
        obs = align_image(obs, estimate_alignment(obs))
    window = where_known(obs, cells)
    in_cells = np.asarray(cells[:, list(obs.genes)].X.todense(), float) if hasattr(cells.X, "todense") else None
    for quality, one in given(options["section"], obs, cells):
        if qualities and quality not in qualities:
            continue
        for module in (of_rivals, gaussian):
            module.he_features = with_cells(one)  # type: ignore[attr-defined]
        for method, predict in methods(obs, one, weights):
            made = predict()
            maps = made.mean if isinstance(made, Prediction) else made
            found = scores.of_counts(maps, truth, window)
            row: Row = {"set": name, "cells": quality, "method": method}
            row |= rounded({key: np.mean(found[key]) for key in ("pcc", "rmse", "deviance")}, 4)
            again = scores.resampled(maps[:, window], truth[:, window], np.argwhere(window))
            row["genes"] = np.round(found["pcc"], 4).tolist()
            row["resampled"] = np.round(again["pcc"], 4).tolist()
            strength = 0.0
            if isinstance(made, Prediction) and one is not None:
                strength = float(made.provenance["strength_of_cells"]["used"])
                row["strength"] = round(strength, 3)
            if quality == "true" and in_cells is not None:
                row["of_cells"] = round(per_cell(maps, one, obs, strength, in_cells), 4)
            if quality == NONE and in_cells is not None and "nucleus_area" in cells.obs:
                true_cells = dict(given(options["section"], obs, cells))["true"]
                row["of_cells"] = round(per_cell(maps, true_cells, obs, 0.0, in_cells), 4)
            yield row


def measure(options: argparse.Namespace) -> Record:
    names = options.sets or list(SETS)
    rows = [row for name in names for row in shown_briefly(of_set(name, options.qualities))]
    return {"rows": rows, "local_um": LOCAL_UM}


def shown_briefly(rows: Iterator[Row]) -> list[Row]:
    """Print each row when it is measured, without its lists."""
    found = []
    for row in rows:
        found.append(row)
        shown([{key: value for key, value in row.items() if not isinstance(value, list)}])
    return found


def render(found: Record) -> str:
    """The page."""
    tables = []
    for (name,), of_name in grouped(found["rows"], "set").items():
        lines = []
        for (quality,), of_quality in grouped(of_name, "cells").items():
            best = max((one for one in of_quality if not one["method"].startswith("ours")), key=lambda one: one["pcc"])
            for one in of_quality:
                difference = pairs.paired(
                    {name: np.array(one["genes"])},
                    {name: np.array(best["genes"])},
                    ({name: np.array(one["resampled"])}, {name: np.array(best["resampled"])}),
                )
                assert difference is not None
                apart = f"{difference.mean:+.3f} [{difference.low:+.3f}, {difference.high:+.3f}]"
                lines.append(
                    [
                        quality,
                        one["method"],
                        *(f"{one[key]:.3f}" for key in ("pcc", "rmse", "deviance")),
                        "" if one is best else apart,
                        f"{one['strength']:.2f}" if "strength" in one else "",
                        f"{one['of_cells']:.3f}" if "of_cells" in one else "",
                    ]
                )
        header = ["cells", "method", "PCC", "RMSE", "deviance", "PCC minus best rival", "strength", "PCC of cells"]
        tables += [f"## {name}", records.table(header, lines)]
    return records.page(found, "# Maps where cells are given", __doc__ or "", *tables)


CELLS = Measurement("given_cells", __doc__, measure, render, weights=None)

if __name__ == "__main__":
    CELLS.main()
