"""Exactness of the shipped network. Each law is a function of a section that returns a number; its limit is beside it.

The tests take a small phantom, and the laws that no other test has. ``python benchmarks/laws.py`` writes what a larger
phantom gives into ``results/laws.md``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import numpy as np
import pytest
import torch
from spatialdata import read_zarr
from spatialdata.transformations import Affine, Sequence, get_transformation, set_transformation

from hadmst_sc import tl
from hadmst_sc.datasets import phantom
from hadmst_sc.io.read import read_observation
from hadmst_sc.io.resolve import XY, affine, transform
from hadmst_sc.models.diffusion import N_CHANNELS, HadmstModel
from hadmst_sc.models.weights import load_model
from hadmst_sc.phantom.simulate import simulate
from hadmst_sc.section.measurement import residual
from hadmst_sc.section.observation import Observation, OutputNames, Prediction

SEED = 920_000  # a phantom that neither training nor the quality benchmark draws
UNTILED, TILED = 160, 48  # cores in bins, multiples of the model's alignment; the phantom has at most 160 × 160 bins
DRAWS = {"n_samples": 2, "n_steps": 4, "random_state": 1}


@cache
def model() -> HadmstModel:
    """The bundled one."""
    return load_model("default")


@cache
def section(size_um: float = 1600.0, n_genes: int = 8) -> Observation:
    """A phantom on bins of 10 µm."""
    return simulate(SEED, size_um=size_um, n_genes=n_genes).observation


@cache
def drawn(obs: Observation, **settings: object) -> Prediction:
    """Estimate and samples of the bundled network."""
    return tl.predict(obs, model=model(), **DRAWS, **settings)


def relative_difference(a: np.ndarray, b: np.ndarray) -> float:
    """Largest difference over the largest value, of the worst gene."""
    top = np.maximum(np.abs(b).max((1, 2)), 1e-12)
    return float((np.abs(a - b).max((1, 2)) / top).max())


def difference(a: Prediction, b: Prediction) -> float:
    """Difference of means and, where there are any, samples; ``b`` in the gene order of ``a``."""
    order = [b.genes.index(gene) for gene in a.genes]
    worst = relative_difference(a.mean, b.mean[order])
    if a.draws is None or b.draws is None:
        return worst
    return max(worst, *(relative_difference(one, other[order]) for one, other in zip(a.draws, b.draws, strict=True)))


def hard_spot_sums(obs: Observation) -> float:
    """Largest relative error of the spot sums with ``consistency="hard"``."""
    found = tl.predict(obs, model=model(), consistency="hard")
    return float(residual(found.mean.astype(float), obs.counts, obs.measurement).max())


def tiled_against_untiled(obs: Observation) -> float:
    """The estimate from windows against the estimate from one piece."""
    return difference(*(tl.predict(obs, model=model(), window=window) for window in (TILED, UNTILED)))


def other_window(obs: Observation) -> float:
    """Same seed, other windows: mean and spread of the draws."""
    return difference(drawn(obs, window=TILED), drawn(obs, window=UNTILED))


def other_gene_chunk(obs: Observation) -> float:
    """Same seed, three genes at a time instead of all."""
    return difference(drawn(obs, gene_chunk=3), drawn(obs, gene_chunk=8))


def other_gene_order(obs: Observation) -> float:
    """Same seed, genes in reverse."""
    back = replace(obs, counts=np.ascontiguousarray(obs.counts[:, ::-1]), genes=obs.genes[::-1])
    return difference(drawn(obs), drawn(back))


def reach_over_halo(_: Observation) -> float:
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
    for sigma in (80.0, 1.0):  # far above and within what denoising is trained on
        unchanged = output(sigma)
        for centre in range(side // 2, side // 2 + spec.align):
            felt = (output(sigma, centre) != unchanged)[0, 0].nonzero()
            reach = max(reach, int((felt - centre).abs().max()) if len(felt) else 0)
    if reach == 0:
        raise ValueError("`network` needs a trained head, but no output depends on any input; its reach says nothing.")
    return reach


def position_on_disk(_: Observation) -> float:
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


class Law(NamedTuple):
    """A number and what it must not exceed."""

    measure: Callable[[Observation], float]
    limit: float
    unit: str = "relative error"


LAWS: dict[str, Law] = {
    "hard consistency: spot sums": Law(hard_spot_sums, 1e-4),
    "tiled = untiled": Law(tiled_against_untiled, 1e-5),
    "reach within the halo": Law(reach_over_halo, 1.0, "of the halo"),
    "same seed, other window": Law(other_window, 1e-5),
    "same seed, other gene chunk": Law(other_gene_chunk, 1e-5),
    "same seed, other gene order": Law(other_gene_order, 1e-5),
    "position after disk, any affine": Law(position_on_disk, 1e-6, "bins"),
}


# Windows, chunks and the order of the genes: tests/e2e/test_laws.py.
@pytest.mark.parametrize(
    "name", ["hard consistency: spot sums", "reach within the halo", "position after disk, any affine"]
)
def test_law_holds(name):
    assert LAWS[name].measure(section(800.0, 4)) <= LAWS[name].limit
