"""Exactness and speed of the shipped network: ``python benchmarks/laws.py``.

Each law is one function that returns a number; the limit stands beside it in ``LAWS``. Writes ``results/laws.json`` and
``.md``, and exits with status 1 where a law does not hold.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import numpy as np
import records
import torch
from cases import load_section
from spatialdata import read_zarr
from spatialdata.transformations import Affine, Sequence, get_transformation, set_transformation

from hadmst_sc import tl
from hadmst_sc.datasets import phantom
from hadmst_sc.distillation.genes import distill
from hadmst_sc.io.read import read_observation
from hadmst_sc.io.resolve import XY, affine, transform
from hadmst_sc.models.diffusion import N_CHANNELS, SIGMA_MEAN, HadmstModel
from hadmst_sc.models.weights import load_model
from hadmst_sc.section.grid import Grid
from hadmst_sc.section.measurement import discs, residual
from hadmst_sc.section.observation import Observation, OutputNames, Prediction

SEED = 920_000  # a phantom that neither training nor the quality benchmark draws
UNTILED, TILED = 160, 48  # cores in bins, multiples of the model's alignment; the phantom has 160 × 160 bins
DRAWS = {"n_samples": 2, "n_steps": 4, "random_state": 1}


@cache
def model() -> HadmstModel:
    """The bundled one."""
    return load_model("default")


@cache
def section() -> Observation:
    """A phantom of 160 × 160 bins and 8 genes."""
    from hadmst_sc.phantom.simulate import simulate

    return simulate(SEED, size_um=1600.0, n_genes=8).observation


def predict(obs: Observation, **settings: object) -> Prediction:
    """Ours, with the bundled network."""
    return tl.predict(obs, model=model(), **settings)


def relative_difference(a: np.ndarray, b: np.ndarray) -> float:
    """Largest difference over the largest value, of the worst gene."""
    top = np.maximum(np.abs(b).max((1, 2)), 1e-12)
    return float((np.abs(a - b).max((1, 2)) / top).max())


def difference(a: Prediction, b: Prediction) -> float:
    """Of means and, where there are draws, standard deviations; ``b`` in the gene order of ``a``."""
    order = [b.genes.index(gene) for gene in a.genes]
    worst = relative_difference(a.mean, b.mean[order])
    return worst if a.std is None or b.std is None else max(worst, relative_difference(a.std, b.std[order]))


# --- the laws ---------------------------------------------------------------------------------------------------------


def hard_spot_sums() -> float:
    """Largest relative error of the spot sums with ``consistency="hard"``."""
    obs = section()
    found = predict(obs, consistency="hard", n_samples=0)
    return float(residual(found.mean.astype(float), obs.counts, obs.measurement).max())


def tiled_against_untiled() -> float:
    """The estimate from windows against the estimate from one piece."""
    tiled, whole = (predict(section(), n_samples=0, window=window) for window in (TILED, UNTILED))
    return difference(tiled, whole)


def other_window() -> float:
    """Same seed, other windows: mean and spread of the draws."""
    return difference(predict(section(), window=TILED, **DRAWS), predict(section(), window=UNTILED, **DRAWS))


def other_gene_chunk() -> float:
    """Same seed, three genes at a time instead of all."""
    return difference(predict(section(), gene_chunk=3, **DRAWS), predict(section(), gene_chunk=8, **DRAWS))


def other_gene_order() -> float:
    """Same seed, genes in reverse."""
    obs = section()
    back = replace(obs, counts=np.ascontiguousarray(obs.counts[:, ::-1]), genes=obs.genes[::-1])
    return difference(predict(obs, **DRAWS), predict(back, **DRAWS))


def reach_over_halo() -> float:
    """Farthest bin that changes when one input bin does, over the halo in the spec."""
    return measured_reach(model()) / model().spec.halo


def measured_reach(network: HadmstModel) -> int:
    """Reach in bins of the raw network, encoder included: one bin of every input map is changed, at every phase.

    In double precision, so that an output that does not depend on the bin is unchanged to the last digit; before the
    output's clamp, which could hide a change. The closed-form base enters bin by bin and adds no reach.
    """
    spec = network.spec
    twin = HadmstModel(spec)
    twin.load_state_dict(network.state_dict())
    twin = twin.double().eval()
    side = 2 * spec.halo + 8 * spec.align  # a change in the middle is seen past the halo on all sides
    generator = torch.Generator().manual_seed(0)
    channels = (spec.context, N_CHANNELS, 1)
    inputs = [torch.randn(1, c, side, side, generator=generator, dtype=torch.float64) for c in channels]
    token = torch.randn(1, spec.token, generator=generator, dtype=torch.float64)

    @torch.no_grad()
    def output(sigma: float, changed: int | None = None) -> torch.Tensor:
        context, maps, x = (values.clone() for values in inputs)
        if changed is not None:
            for values in (context, maps, x):
                values[..., changed, changed] += 1
        features, _ = twin.encode(context, align=False)  # offsets are bounded and found once for the whole section
        return twin.network(x, torch.tensor([sigma], dtype=torch.float64), twin.condition(features, maps), token)

    reach = 0
    for sigma in (SIGMA_MEAN, 1.0):
        unchanged = output(sigma)
        for centre in range(side // 2, side // 2 + spec.align):
            felt = (output(sigma, centre) != unchanged)[0, 0].nonzero()
            reach = max(reach, int((felt - centre).abs().max()) if len(felt) else 0)
    if reach == 0:
        raise ValueError("`network` needs a trained head, but no output depends on any input; its reach says nothing.")
    return reach


def position_on_disk() -> float:
    """Spots and bins of a stored result against where the operator has them, in bins; the image mirrored, sheared."""
    sdata, (image_key, spots_key), system = phantom(), ("phantom_full_image", "phantom"), "world"
    squeeze = Affine([[-1.3, 2.1, 40.0], [0.4, 2.9, -7.0], [0, 0, 1]], input_axes=XY, output_axes=XY)
    for element in (sdata[image_key], sdata[spots_key]):
        before = get_transformation(element, "phantom")
        set_transformation(element, Sequence([before, squeeze]), to_coordinate_system=system)
    names = OutputNames("superres")
    with TemporaryDirectory() as folder:
        sdata.write(Path(folder) / "section.zarr")
        tl.superresolve(sdata, image_key, coordinate_system=system, genes=1, model=None, show_progress_bar=False)
        stored = read_zarr(Path(folder) / "section.zarr")
        to_world = {name: affine(stored[name], system) for name in (names.image, spots_key)}
        table, spots = stored[names.table], stored[spots_key].geometry
    obs = read_observation(sdata, image_key, coordinate_system=system, genes=1)
    to_bins = np.linalg.inv(to_world[names.image])
    placed = transform(to_bins @ to_world[spots_key], np.c_[spots.x, spots.y])
    bins = transform(to_bins, table.obsm["spatial"]) - np.c_[table.obs["array_col"], table.obs["array_row"]]
    return float(max(np.abs(placed - obs.measurement.centres[:, ::-1]).max(), np.abs(bins - 0.5).max()))


def distill_seconds() -> float:
    """Closed form on the mouse brain: 2,698 spots × 200 genes."""
    return _seconds(brain())


def distill_large_seconds() -> float:
    """Closed form on 5,041 spots × 2,000 genes of noise around forty random programmes: the cost, not the quality."""
    rng = np.random.default_rng(SEED)
    side, n_genes, shape = 71, 2_000, (360, 360)
    centres = (np.indices((side, side)).reshape(2, -1).T + 0.5) * 5
    counts = rng.poisson(rng.gamma(0.5, 1, (side**2, 40)) @ rng.gamma(0.2, 1, (40, n_genes))).astype(np.float32)
    he = rng.integers(0, 256, (3, *(4 * n for n in shape)), np.uint8)
    genes, spots = (tuple(map(str, range(n))) for n in (n_genes, side**2))
    grid = Grid(shape, 20.0, 4.0)
    return _seconds(Observation(grid, he, 5.0, discs(centres, 2.75, shape), counts, genes, spots, np.ones(shape, bool)))


def _seconds(obs: Observation) -> float:
    started = time.perf_counter()
    distill(obs)
    return time.perf_counter() - started


@cache
def brain() -> Observation:
    """200 genes of the mouse brain on 20 µm bins."""
    return load_section("visium_mouse_brain", 200, 20.0)


class Law(NamedTuple):
    """A number and what it must not exceed."""

    measure: Callable[[], float]
    limit: float
    unit: str


LAWS: dict[str, Law] = {
    "hard consistency: spot sums": Law(hard_spot_sums, 1e-4, "relative error"),
    "tiled = untiled": Law(tiled_against_untiled, 1e-5, "relative error"),
    "reach within the halo": Law(reach_over_halo, 1.0, "of the halo"),
    "same seed, other window": Law(other_window, 1e-5, "relative error"),
    "same seed, other gene chunk": Law(other_gene_chunk, 1e-5, "relative error"),
    "same seed, other gene order": Law(other_gene_order, 1e-5, "relative error"),
    "position after disk, any affine": Law(position_on_disk, 1e-6, "bins"),
    "distill, 2,698 spots × 200 genes": Law(distill_seconds, 60.0, "s"),
    "distill, 5,041 spots × 2,000 genes": Law(distill_large_seconds, 300.0, "s"),
}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--laws", nargs="+", choices=list(LAWS), metavar="LAW", help="default: all")
    parser.add_argument("--output", type=Path, default=records.RESULTS)
    options = parser.parse_args(arguments)
    results = []
    for name in options.laws or LAWS:
        law = LAWS[name]
        value = law.measure()
        results.append({"law": name, "value": float(f"{value:.3g}"), "limit": law.limit, "unit": law.unit})
        print(f"  {name}: {value:.3g} {law.unit}", flush=True)
    settings = {"seed": SEED, "windows": [TILED, UNTILED], **DRAWS}
    record = {"provenance": records.provenance(weights="default"), "settings": settings, "results": results}
    records.save("laws", record, render(record), options.output)
    if not all(holds(result) for result in results):
        raise SystemExit(1)


def holds(result: dict) -> bool:
    return result["value"] <= result["limit"]


def render(record: dict) -> str:
    rows = [
        [r["law"], f"{r['value']:.3g}", f"{r['limit']:g}", r["unit"], "yes" if holds(r) else "NO"]
        for r in record["results"]
    ]
    return "\n\n".join(
        ["# Laws", records.table(["law", "measured", "at most", "unit", "holds"], rows), records.footer(record)]
    )


if __name__ == "__main__":
    main()
