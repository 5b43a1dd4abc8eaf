"""Sections as SpatialData in the structure of ``spatialdata_io.visium``, and the phantom in that form."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse
from spatialdata import SpatialData
from spatialdata.models import Image2DModel, Labels2DModel, TableModel
from spatialdata.transformations import Scale, Sequence, get_transformation, set_transformation

from hadmst_sc.io.elements import visium_circles, visium_images
from hadmst_sc.phantom.simulate import HELD_OUT_STYLES, TRAIN_STYLES, Phantom, simulate
from hadmst_sc.runtime import memory_limit, usual_errors
from hadmst_sc.section.arguments import FLAG, LENGTH, SEED, SIZE, Requirement, is_pair, number, one_of, optional, whole
from hadmst_sc.section.errors import Problems

_AXES = ("y", "x")


def _reduced(image: np.ndarray, longest: int, least: int) -> tuple[np.ndarray, float]:
    """Downscale ``(3, y, x)`` to at most ``longest`` pixels, at least ``least`` times; the image and its scale."""
    factor = max(least, -(-max(image.shape[1:]) // longest))
    # The border that fills no whole pixel is cropped, so that the factor is exact on both axes.
    whole = [side // factor * factor for side in image.shape[1:]]
    blocks = image[:, : whole[0], : whole[1]].reshape(3, whole[0] // factor, factor, whole[1] // factor, factor)
    return np.round(blocks.mean((2, 4), dtype=np.float32)).astype(np.uint8), 1 / factor


def as_visium(dataset_id: str, image: np.ndarray, table: AnnData, diameter_px: float) -> SpatialData:
    """Assemble image, spots and counts as ``spatialdata_io.visium`` does.

    Parameters
    ----------
    dataset_id
        Prefix of the element names, and the coordinate system of the full image's pixels.
    image
        ``(3, y, x)`` uint8. The hires (≤ 2,000 pixels, at least halved) and lowres (≤ 600, at least quartered) images
        are made from it.
    table
        Counts, with ``obsm["spatial"]`` as (x, y) in pixels of ``image``; receives ``spot_id`` and ``region``.
    diameter_px
        Diameter of a spot, pixels.
    """
    hires, hires_scale = _reduced(image, 2000, 2)
    lowres, lowres_scale = _reduced(image, 600, 4)
    pictures = {"full": (image, 1.0), "hires": (hires, hires_scale), "lowres": (lowres, lowres_scale)}
    table.obs["spot_id"] = np.arange(table.n_obs)
    table.obs["region"] = pd.Categorical([dataset_id] * table.n_obs)
    scales = {kind: scale for kind, (_, scale) in pictures.items()}
    ids = table.obs["spot_id"].copy()
    circles = visium_circles(dataset_id, table.obsm["spatial"], ids, diameter_px, scales)
    images = visium_images(dataset_id, pictures)
    parsed = TableModel.parse(table, region=dataset_id, region_key="region", instance_key="spot_id")
    return SpatialData(images=images, shapes={dataset_id: circles}, tables={"table": parsed})


def spot_table(phantom: Phantom, seed: int) -> AnnData:
    """Table of the counts of a phantom's spots, with columns as Space Ranger writes them."""
    observation = phantom.observation
    grid = observation.grid
    row, column = phantom.array_index.T
    obs = pd.DataFrame(
        {"in_tissue": 1, "array_row": row, "array_col": column, "efficiency": phantom.efficiency},
        index=list(observation.spots),
    )
    var = pd.DataFrame(
        {
            "gene_ids": [f"PHANTOM{g:08d}" for g in range(len(observation.genes))],
            "feature_types": "Gene Expression",
            "genome": "phantom",
            "kind": list(phantom.kinds),
        },
        index=list(observation.genes),
    )
    table = AnnData(sparse.csr_matrix(observation.counts), obs=obs, var=var)
    table.obsm["spatial"] = grid.bins_to_px(observation.measurement.centres)[:, ::-1].copy()
    table.uns["spatial"] = {"phantom": {"metadata": {"um_per_px": grid.um_per_px}}}
    table.uns["phantom"] = {
        "seed": seed,
        "style": phantom.style,
        "clarity": phantom.clarity,
        "bin_um": grid.bin_um,
        "misregistration_um": list(phantom.misregistration_um),
    }
    return table


def _is_shift(value: Any) -> bool:
    return is_pair(value, -500, 500) or number(0, 500).is_met(value)


# Requirement of each argument, with a valid value for the remedy.
ARGUMENTS: dict[str, tuple[Requirement, Any]] = {
    "seed": (SEED, 0),
    "n_genes": (whole(1, 30_000), 24),
    "size_um": (number(200, 50_000, text="a length of 200 to 50,000 µm"), 1200.0),
    "bin_um": (LENGTH, 10.0),
    "spot_um": (SIZE, 55.0),
    "pitch_um": (SIZE, 100.0),
    "he_um": (LENGTH, 2.5),
    "style": (optional(one_of(*TRAIN_STYLES, *HELD_OUT_STYLES)), None),
    "depth": (
        Requirement("0 < low <= high counts per spot", lambda v: is_pair(v, 1e-9, 1e9) and v[0] <= v[1]),
        (0.15, 40.0),
    ),
    "misregistration_um": (optional(Requirement("a length or (dy, dx) up to 500 µm", _is_shift)), 0.0),
    "rotation_deg": (number(-180, 180), 0.0),
    "deformation_um": (number(0, 500), 0.0),
    "augment": (FLAG, True),
}


def _check(given: dict[str, Any]) -> None:
    """Raise all problems with the arguments of a phantom, among them a size that needs too much memory."""
    problems = Problems("cannot draw this phantom")
    if not problems.check(given, ARGUMENTS):
        size_um, bin_um, pitch_um = given["size_um"], given["bin_um"], given["pitch_um"]
        needed = 16 * given["n_genes"] * (size_um / bin_um) ** 2 + 400 * (size_um / min(pitch_um, 2.5)) ** 2
        if needed > memory_limit():
            problems.add(
                f"`size_um={size_um:g}` needs {needed / 1e9:,.0f} GB for {given['n_genes']:,} genes in bins of "
                f"{bin_um:g} µm, but {memory_limit() / 1e9:.0f} GB are available. Pass `size_um=1200.0, bin_um=10.0`.",
                ValueError,
            )
    problems.raise_if_any()


@usual_errors
def phantom(
    seed: int = 0,
    *,
    n_genes: int = 24,
    size_um: float = 1200.0,
    bin_um: float = 10.0,
    spot_um: float = 55.0,
    pitch_um: float = 100.0,
    he_um: float = 2.5,
    style: str | None = None,
    depth: tuple[float, float] = (0.15, 40.0),
    misregistration_um: float | tuple[float, float] | None = 0.0,
    rotation_deg: float = 0.0,
    deformation_um: float = 0.0,
    augment: bool = True,
) -> SpatialData:
    """Generate a procedural section with known truth, in the structure of ``spatialdata_io.visium``.

    Parameters
    ----------
    seed
        Seed of everything: the same arguments give the same section.
    n_genes
        Number of genes, spread evenly over their kinds.
    size_um, bin_um
        Edge of the square section; edge of the bins of the truth.
    spot_um, pitch_um
        Diameter of the spots; distance between their centres.
    he_um
        Finest resolution of the H&E, µm per pixel.
    style
        Style of the regions, one of ``TRAIN_STYLES`` or ``HELD_OUT_STYLES`` of :mod:`hadmst_sc.phantom.simulate`;
        ``None`` draws one of ``TRAIN_STYLES``.
    depth
        Range of the mean counts per spot, log-uniform over genes.
    misregistration_um
        Shift of the image relative to the spots, ``(dy, dx)`` or a length; ``None`` draws one.
    rotation_deg, deformation_um
        Rotation of the image about its centre; root mean square length of a smooth random deformation.
    augment
        Add random damage, image quality, spot efficiency, bleed and ambient RNA, as in training.

    Returns
    -------
    SpatialData with

    - images ``phantom_full_image`` (H&E, 2.5 µm per pixel), ``phantom_hires_image``, ``phantom_lowres_image``;
    - shapes ``phantom``, the spots, and ``table``, their counts;
    - image ``phantom_truth``, ``(genes, y, x)`` true expected counts per bin, and labels ``phantom_regions``, 0
      outside the tissue.

    ``table.var["kind"]`` is what drives each gene, ``table.obs["efficiency"]`` the share of its counts that each spot
    captured, and ``table.uns["phantom"]`` the parameters of the section.

    Examples
    --------
    >>> sdata = hd.datasets.phantom(seed=1, n_genes=8, size_um=600.0)
    >>> sdata["phantom_truth"].sizes["c"]
    8
    """
    given: dict[str, Any] = {
        "n_genes": n_genes,
        "size_um": size_um,
        "bin_um": bin_um,
        "spot_um": spot_um,
        "pitch_um": pitch_um,
        "he_um": he_um,
        "style": style,
        "depth": depth,
        "misregistration_um": misregistration_um,
        "rotation_deg": rotation_deg,
        "deformation_um": deformation_um,
        "augment": augment,
    }
    _check({"seed": seed} | given)
    drawn = simulate(seed, **given)
    observation = drawn.observation
    grid = observation.grid
    sdata = as_visium("phantom", observation.he, spot_table(drawn, seed), spot_um / grid.um_per_px)
    truth = Image2DModel.parse(drawn.rate, dims=("c", "y", "x"), c_coords=list(observation.genes))
    regions = Labels2DModel.parse((drawn.regions + 1).astype(np.uint32), dims=_AXES)
    to_pixels = Scale([grid.px_per_bin, grid.px_per_bin], axes=_AXES)
    systems = {
        system: Sequence([to_pixels, scale])
        for system, scale in get_transformation(sdata["phantom"], get_all=True).items()
    }
    for element in (truth, regions):
        set_transformation(element, systems, set_all=True)
    sdata["phantom_truth"], sdata["phantom_regions"] = truth, regions
    return sdata
