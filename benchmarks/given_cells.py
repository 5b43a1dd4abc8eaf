"""Maps and cells where cells are given: ours against rivals that get the same maps of cells among their features.

On two sections the cells are known (Xenium; the truth counts their molecules at their centres, so true cells are partly
the truth's own). They are given as they are, and as a good, a bad and a useless segmentation would give them. On two
others nuclei are found by `pp.find_nuclei` in a rendering of the nuclear stain. Every method gets the image of the
first two as registered to the molecules by ours, that of the others as it is. In a section of few spots tiles share
spots: its intervals are too narrow to decide anything.
"""

from __future__ import annotations

import argparse
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pairs
import plan
import records
import rivals
import scores
import xarray as xr
from cases.case import abundant
from cases.cells import pseudo_spots, where_known
from cases.holdout import N_FOLDS, folds, footprints, hide
from frame import Measurement, Record, Row, grouped, rounded, shown
from rivals import gaussian
from rivals import section as of_rivals
from scipy import sparse
from scipy.spatial import cKDTree
from sklearn.metrics import f1_score

from hadmst_sc.alignment.record import align_image
from hadmst_sc.alignment.register import estimate_alignment
from hadmst_sc.datasets.public import image_of_cells, load
from hadmst_sc.distillation.cells import LOCAL_UM, Support
from hadmst_sc.io.cells import cells_of
from hadmst_sc.io.read import read_observation
from hadmst_sc.metrics.maps import pearson
from hadmst_sc.pp.find_nuclei import find_nuclei, nuclei
from hadmst_sc.section.cells import Cells
from hadmst_sc.section.errors import Problems
from hadmst_sc.section.features import he_features
from hadmst_sc.section.measurement import degrade
from hadmst_sc.section.observation import Observation, Prediction
from hadmst_sc.tl.predict import predict

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
NEAREST_SPOT = "nearest spot"
MARKERS: dict[str, dict[str, list[str]]] = {
    section: tomllib.loads(Path(__file__).with_name(file).read_text())
    for section, file in (
        ("xenium_breast_crop", "breast_markers.toml"),
        ("xenium_mouse_brain", "brain_markers.toml"),
    )
}
CLEAR = 3  # counts of markers that a cell needs to have a true type
HELD_OUT = "held-out spots"
OF_TYPES = (
    "F1 of types: cells are called by the markers of `breast_markers.toml` or `brain_markers.toml`, by their true "
    'counts and by their estimated ones; "nearest spot" gives each cell the counts of the nearest spot.'
)
OF_HELD_OUT = (
    "Spots of 100 µm do not show what lies within them, so this table says only if nuclei found in the H&E do harm."
)
SECTIONS = ("her2st_C2", "her2st_C3", "her2st_C4", "her2st_C5", "her2st_C6")


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
SETS: dict[str, dict[str, Any]] = {
    "breast, 20 µm": {"section": "xenium_breast_crop", "n_genes": 200, "bin_um": 20.0},
    "brain, no image, 20 µm": {"section": "xenium_mouse_brain", "n_genes": 200, "bin_um": 20.0},
    **{
        f"{name}{geometry}, 10 µm": {"section": section, "n_genes": 60, "bin_um": 10.0} | pitch
        for name, section in (
            ("MERFISH", "merfish_mouse_hippocampus"),
            ("breast DAPI", "xenium_breast_dapi"),
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

    def ours(model: str | None) -> Any:
        return predict(obs, model=model, cells=cells, align=False)

    yield "ours", lambda: ours(weights)
    yield "ours, closed form", lambda: ours(None)
    if cells is not None:
        relative = Support.of(cells, obs.inside, obs.grid.bin_um).relative

        def fixed() -> np.ndarray:
            return np.asarray(predict(obs, model=None, align=False).mean * relative)

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


def per_cell(maps: np.ndarray, cells: Cells, obs: Observation, strength: float) -> np.ndarray:
    """Estimated counts ``(cells, genes)``."""
    shares = Support.of(cells, obs.inside, obs.grid.bin_um).shares(cells, strength)
    return np.asarray(shares @ maps.reshape(len(maps), -1).T)


def of_cells(found: np.ndarray, true: np.ndarray, genes: Sequence[str], markers: Mapping[str, Sequence[str]]) -> Row:
    """PCC of counts ``(cells, genes)``, mean over genes, and macro F1 of the types that cells are called."""
    pcc = float(pearson(found.T, true.T, np.ones(len(true), bool)).mean())
    columns = [[i for i, gene in enumerate(genes) if gene in set(names)] for names in markers.values()]
    columns = [own for own in columns if own]
    clear = true[:, [i for own in columns for i in own]].sum(1) >= CLEAR
    predicted, types = (called(counts, columns)[clear] for counts in (found, true))
    return {"of_cells": round(pcc, 4), "f1": round(float(f1_score(types, predicted, average="macro")), 4)}


def called(counts: np.ndarray, columns: Sequence[Sequence[int]]) -> np.ndarray:
    """Type of each cell: that whose markers stand out most, in standard deviations over cells, of log1p counts."""
    values = np.log1p(1e2 * counts / np.maximum(counts.sum(1, keepdims=True), 1e-12))
    scores = np.stack([values[:, own].mean(1) for own in columns], 1)
    return ((scores - scores.mean(0)) / np.maximum(scores.std(0), 1e-12)).argmax(1)


def of_set(name: str, qualities: list[str]) -> Iterator[Row]:
    """A row per segmentation and method of a set."""
    options = SETS[name]
    weights = str(plan.weights_of(options["section"]))
    obs, truth, cells = pseudo_spots(**options)
    if "nucleus_area" in cells.obs:  # cells lie with the molecules, not with the image
        obs = align_image(obs, estimate_alignment(obs))
    window = where_known(obs, cells)
    in_cells, markers = None, MARKERS.get(options["section"], {})
    if markers:  # truth of cells, of those in the tissue
        in_cells = np.asarray(cells[:, list(obs.genes)].X.todense(), float)
        true_cells = dict(given(options["section"], obs, cells))["true"]
        known = np.asarray(true_cells.overlap[:, obs.inside.ravel()].sum(1)).ravel() > 0
        xy = cells.obsm["spatial"][known] * obs.grid.um_per_px / obs.grid.bin_um
        nearest = cKDTree(obs.measurement.centres[:, ::-1]).query(xy)[1]
        row = {"set": name, "cells": "true", "method": NEAREST_SPOT}
        yield row | of_cells(obs.counts[nearest].astype(float), in_cells[known], obs.genes, markers)
    for quality, one in given(options["section"], obs, cells):
        if qualities and quality not in qualities:
            continue
        for module in (of_rivals, gaussian):
            module.he_features = with_cells(one)  # type: ignore[attr-defined]
        for method, estimate in methods(obs, one, weights):
            made = estimate()
            maps = made.mean if isinstance(made, Prediction) else made
            found = scores.of_counts(maps, truth, window)
            row: Row = {"set": name, "cells": quality, "method": method, "spots": len(obs.spots)}
            row |= rounded({key: np.mean(found[key]) for key in ("pcc", "rmse", "deviance")}, 4)
            again = scores.resampled(maps[:, window], truth[:, window], np.argwhere(window))
            row["genes"] = np.round(found["pcc"], 4).tolist()
            row["resampled"] = np.round(again["pcc"], 4).tolist()
            strength = 0.0
            if isinstance(made, Prediction) and one is not None:
                strength = float(made.provenance["strength_of_cells"]["used"])
                row["strength"] = round(strength, 3)
            if in_cells is not None and quality in (NONE, "true"):
                row |= of_cells(per_cell(maps, true_cells, obs, strength)[known], in_cells[known], obs.genes, markers)
            yield row


def of_held_out(section: str) -> Iterator[Row]:
    """Scores at held-out spots of a section, with and without nuclei of its H&E."""
    image, sdata = f"{section}_full_image", load(section)
    find_nuclei(sdata, image)
    table = sdata.tables["table"]
    genes = abundant(table, 200)
    whole = read_observation(sdata, image, genes=genes, bin_um=20.0)
    rows = table.obs_names.get_indexer(list(whole.spots))
    fold = folds(len(rows))
    predicted = {NONE: np.zeros(whole.counts.shape), "found": np.zeros(whole.counts.shape)}
    strengths = []
    for k in range(N_FOLDS):
        hidden = np.isin(np.arange(table.n_obs), rows[fold == k])
        part = hide(sdata, hidden)
        part["nuclei"] = sdata["nuclei"]
        obs = read_observation(part, image, genes=genes, bin_um=20.0)
        cells = cells_of(part, "nuclei", obs, Problems("these nuclei cannot be read"))
        for quality, one in ((NONE, None), ("found", cells)):
            made = predict(obs, model=str(plan.weights_of(section)), cells=one, align="spots")
            predicted[quality][fold == k] = degrade(made.mean, footprints(whole, obs, np.flatnonzero(fold == k)))
            if one is not None:
                strengths.append(float(made.provenance["strength_of_cells"]["used"]))
    for quality, counts in predicted.items():
        found = scores.of_counts(counts.T, whole.counts.T, np.ones(len(rows), bool))
        row: Row = {"set": HELD_OUT, "section": section, "cells": quality, "method": "ours"}
        row |= rounded({key: np.mean(found[key]) for key in ("pcc", "rmse", "deviance")}, 4)
        row["genes"] = np.round(found["pcc"], 4).tolist()
        yield row | ({"strength": round(float(np.mean(strengths)), 3)} if quality == "found" else {})


def measure(options: argparse.Namespace) -> Record:
    names = options.sets or [*SETS, HELD_OUT]
    rows = [row for name in names if name in SETS for row in shown_briefly(of_set(name, options.qualities))]
    if HELD_OUT in names:
        rows += [row for section in SECTIONS for row in shown_briefly(of_held_out(section))]
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
        table = held_out_table(of_name) if name == HELD_OUT else set_table(of_name)
        tables += [f"## {name}", table]
    return records.page(found, "# Maps where cells are given", __doc__ or "", *tables)


def set_table(rows: list[Row]) -> str:
    """Methods of a set by the segmentation that they were given."""
    lines = []
    for (quality,), of_quality in grouped(rows, "cells").items():
        maps = [one for one in of_quality if "pcc" in one]
        best = max((one for one in maps if not one["method"].startswith("ours")), key=lambda one: one["pcc"])
        for one in of_quality:
            lines.append(
                [
                    quality,
                    one["method"],
                    *(f"{one[key]:.3f}" if key in one else "" for key in ("pcc", "rmse", "deviance")),
                    "" if one is best or one not in maps else apart({"": one}, {"": best}),
                    f"{one['strength']:.2f}" if "strength" in one else "",
                    *(f"{one[key]:.3f}" if key in one else "" for key in ("of_cells", "f1")),
                ]
            )
    header = ["cells", "method", "PCC", "RMSE", "deviance", "PCC minus best rival", "strength", "PCC of cells"]
    if any("f1" in one for one in rows):
        return records.table([*header, "F1 of types"], lines) + f"\n\n{OF_TYPES}"
    return records.table(header, [line[:-1] for line in lines])


def held_out_table(rows: list[Row]) -> str:
    """Held-out spots of each section, with nuclei and without, and the difference over sections."""
    lines = [
        [
            one["section"],
            one["cells"],
            *(f"{one[key]:.3f}" for key in ("pcc", "rmse", "deviance")),
            f"{one['strength']:.2f}" if "strength" in one else "",
        ]
        for one in rows
    ]
    found, none = ({one["section"]: one for one in rows if one["cells"] == quality} for quality in ("found", NONE))
    difference = f"PCC with nuclei minus PCC without, {len(found)} sections: {apart(found, none)}."
    return (
        records.table(["section", "nuclei", "PCC", "RMSE", "deviance", "strength"], lines)
        + f"\n\n{difference} {OF_HELD_OUT}"
    )


def apart(first: Mapping[str, Row], second: Mapping[str, Row]) -> str:
    """Difference of PCC with its interval; over sections, or over tiles and genes where there is one."""

    def of(rows: Mapping[str, Row], key: str) -> dict[str, np.ndarray]:
        return {name: np.array(row[key]) for name, row in rows.items() if key in row}

    again = (of(first, "resampled"), of(second, "resampled"))
    n_spots = min((row["spots"] for row in first.values() if "spots" in row), default=None)
    difference = pairs.paired(of(first, "genes"), of(second, "genes"), again, n_spots)
    assert difference is not None
    few = " (too few spots)" if difference.has_few_spots else ""
    return f"{difference.mean:+.3f} [{difference.low:+.3f}, {difference.high:+.3f}]{few}"


CELLS = Measurement("given_cells", __doc__, measure, render, weights=None)

if __name__ == "__main__":
    CELLS.main()
