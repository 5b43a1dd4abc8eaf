"""Spots hidden before a section is read: is their area still tissue, and how well are they predicted?

    python benchmarks/hidden.py tissue                 # area of hidden spots in tissue; lumina of phantoms; minutes
    python benchmarks/hidden.py scores --as after      # four folds of every public section; an hour on two cores
    PYTHONPATH=<old checkout>/src python benchmarks/hidden.py scores --as before

A quarter of the spots is removed from the SpatialData object itself, so that neither the tissue mask nor the
registration nor the grid has seen them. Four folds are pooled before scoring. ``--as`` names the row of the table, and
other rows are kept: so two versions of the package can be compared.
"""

from __future__ import annotations

import argparse
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import records
from cases import abundant, folds, phantom_plan
from frame import Record, Row, parser
from plan import weights_path
from scipy.ndimage import binary_opening, label
from skimage.morphology import disk
from spatialdata import SpatialData

import hadmst_sc as hd
from hadmst_sc import metrics
from hadmst_sc.datasets.public import available
from hadmst_sc.io import read_observation
from hadmst_sc.phantom.simulate import simulate
from hadmst_sc.section.measurement import Measurement, degrade, discs
from hadmst_sc.section.observation import Observation

BIN_UM, N_GENES, N_FOLDS = 20.0, 200, 4
LUMEN_UM = 100.0  # least width of a lumen that is judged
NOT_SEEN = {"her2st": "brain_only"}  # weights that were not trained on a section's organ; else those without brain


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    made = parser("hidden", __doc__)
    made.add_argument("task", choices=("tissue", "scores"))
    options = made.parse_args(arguments)
    options.sections = options.sections or [name for name in available() if not name.startswith("xenium")]
    return options


def hide(sdata: SpatialData, hidden: np.ndarray) -> SpatialData:
    """The section without some rows of its table, and without their spots."""
    table = sdata.tables["table"]
    region, of_rows = table.uns["spatialdata_attrs"]["region"], table.obs["spot_id"].to_numpy()
    region = region if isinstance(region, str) else region[0]
    shapes, images = sdata.shapes[region], {name: sdata.images[name] for name in sdata.images}
    kept = shapes[~shapes.index.isin(of_rows[hidden])]
    return SpatialData(images=images, shapes={region: kept}, tables={"table": table[~hidden].copy()})


def footprints(whole: Observation, part: Observation, rows: np.ndarray) -> Measurement:
    """Spots of ``whole`` on the grid of ``part``, whose scale was estimated from fewer spots."""
    assert whole.source is not None and whole.source.spot_um is not None
    centres = whole.measurement.centres[rows] * whole.grid.px_per_bin / part.grid.px_per_bin
    return discs(centres, whole.source.spot_um / part.grid.bin_um, part.grid.shape)


def splits(name: str, genes: list[str]) -> Iterator[tuple[Observation, Observation, np.ndarray]]:
    """All of a section, what is left of it, and which spots were hidden: once per fold."""
    image, sdata = f"{name}_full_image", hd.datasets.load(name)
    whole = read_observation(sdata, image, genes=genes, bin_um=BIN_UM)
    fold = folds(len(whole.spots), N_FOLDS)
    order = {spot: row for row, spot in enumerate(sdata.tables["table"].obs_names)}
    rows = np.array([order[spot] for spot in whole.spots])
    for k in range(N_FOLDS):
        hidden = np.zeros(len(order), bool)
        hidden[rows[fold == k]] = True
        yield whole, read_observation(hide(sdata, hidden), image, genes=genes, bin_um=BIN_UM), fold == k


def tissue_of(name: str) -> dict[str, float]:
    """Area of the hidden spots in tissue, and share of them that lie mostly outside, over all folds."""
    genes = list(map(str, hd.datasets.load(name).tables["table"].var_names[:3]))
    inside = []
    for whole, part, hidden in splits(name, genes):
        spots = footprints(whole, part, np.flatnonzero(hidden))
        inside.append(spots.matrix @ part.inside.ravel().astype(float) / spots.area)
    share = np.concatenate(inside)
    return {"in_tissue": float(share.mean()), "mostly_outside": float((share < 0.5).mean()), "n_spots": len(share)}


def glass_of_phantoms(n_per_set: int) -> dict[str, float]:
    """Share of the glass of phantoms that stays glass: in lumina wider than 100 µm; and of tissue that stays tissue."""
    kept, tissue, n_lumina = [], [], 0
    for _, seed, style in phantom_plan(n_per_set):
        drawn = simulate(seed, style=style, size_um=1500.0, n_genes=24, misregistration_um=0.0)
        obs, glass = drawn.observation, drawn.regions < 0
        parts, _ = label(glass)
        border = np.unique(np.r_[parts[0], parts[-1], parts[:, 0], parts[:, -1]])
        radius = round(LUMEN_UM / 2 / obs.grid.bin_um)
        wide = binary_opening(np.pad(glass, 2 * radius, mode="edge"), disk(radius))
        wide = wide[2 * radius : -2 * radius, 2 * radius : -2 * radius]
        lumina = wide & ~np.isin(parts, border) & (obs.measurement.coverage == 0)
        inside = hd.io.tissue.detect_tissue(obs.he, obs.grid, obs.measurement, 100.0, obs.counts.sum(1))
        n_lumina += len(np.unique(parts[lumina]))
        kept.append(~inside[lumina])
        tissue.append(inside[~glass].mean())
    return {"glass": float(np.concatenate(kept).mean()), "n_lumina": n_lumina, "tissue": float(np.mean(tissue))}


def score(name: str, *, closed_form: bool) -> Row:
    """PCC of log1p counts and relative deviance, means over genes, at hidden spots of four folds pooled."""
    weights = f"training/{NOT_SEEN.get(name.split('_')[0], 'breast_only')}.safetensors"
    model = None if closed_form else str(weights_path(weights))
    predicted = None
    for whole, part, hidden in splits(name, abundant(hd.datasets.load(name).tables["table"], N_GENES)):
        maps = hd.tl.predict(part, model=model, n_samples=0, show_progress_bar=False).mean
        predicted = np.zeros_like(whole.counts) if predicted is None else predicted
        predicted[hidden] = degrade(np.asarray(maps), footprints(whole, part, np.flatnonzero(hidden)))
    found, true = predicted.T, whole.counts.T
    where, least = np.ones(true.shape[1], bool), 1e-3 * true.mean(1, keepdims=True)
    return {
        "pcc": float(metrics.pearson(found, true, where).mean()),
        "deviance": float(metrics.deviance(np.maximum(found, least), true, where).mean()),
        "n_spots": true.shape[1],
        "n_genes": len(true),
    }


def commit_of_package() -> str:
    """Commit of the checkout from which the package was imported, which need not be this one."""
    folder = Path(hd.__file__).parent
    found = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=folder, capture_output=True, text=True)
    return found.stdout.strip() or "unknown"


def tissue_text(found: Record) -> str:
    """Page of the task ``tissue``."""
    rows = [
        [name, f"{one['in_tissue']:.3f}", f"{one['mostly_outside']:.1%}", str(one["n_spots"])]
        for name, one in found["sections"].items()
    ]
    glass = found["phantoms"]
    return records.page(
        found,
        "# Tissue of spots that were hidden before reading",
        records.table(["section", "area in tissue", "mostly outside", "spots"], rows),
        f"Lumina of phantoms wider than 100 µm ({glass['n_lumina']} of them): {glass['glass']:.3f} of their glass "
        f"stays glass. {glass['tissue']:.3f} of the tissue stays tissue.",
    )


def scores_text(found: Record) -> str:
    """Page of the task ``scores``."""
    versions = found["rows"]
    rows = []
    for name in dict.fromkeys(name for row in versions.values() for name in row["sections"]):
        of_rows = [row["sections"].get(name) for row in versions.values()]
        cells = [f"{one['pcc']:.3f} / {one['deviance']:.3f}" if one else "-" for one in of_rows]
        rows.append([name, *cells, next(f"{one['n_spots']} x {one['n_genes']}" for one in of_rows if one)])
    parts = [
        "# Spots that were hidden before reading, predicted",
        "PCC of log1p counts / Poisson deviance relative to a constant per gene, means over genes; four folds "
        "pooled. A predicted count is at least a thousandth of the gene's mean: else deviance is infinite.",
        records.table(["section", *versions, "spots x genes"], rows),
    ]
    made = [f"{name}: package of commit {row['package']}. {records.footer(row)}" for name, row in versions.items()]
    return "\n\n".join([*parts, *made])


def main(arguments: list[str] | None = None) -> None:
    options = parse(arguments)
    made = {"provenance": records.provenance(weights=None)}
    if options.task == "tissue":
        sections = {name: tissue_of(name) for name in options.sections}
        found = made | {"sections": sections, "phantoms": glass_of_phantoms(options.phantoms)}
        records.save("hidden_tissue", found, tissue_text(found), options.output)
        return
    rows = records.read(options.output / "hidden_scores.json").get("rows", {})
    row = rows[getattr(options, "as")] = made | {"sections": {}, "package": commit_of_package()}
    for name in options.sections:
        row["sections"][name] = score(name, closed_form=options.closed_form)
        records.save("hidden_scores", {"rows": rows}, scores_text({"rows": rows}), options.output)


if __name__ == "__main__":
    main()
