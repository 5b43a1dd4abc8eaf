"""Small sections in exactly the structure that ``spatialdata_io.visium`` makes."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import xarray as xr
from scipy import sparse
from spatialdata import SpatialData, get_pyramid_levels
from spatialdata.models import Image2DModel, ShapesModel, TableModel
from spatialdata.transformations import Identity, Scale, get_transformation

from hadmst_sc.io.counts import layers_of
from hadmst_sc.section.observation import Observation, Prediction

UM_PER_PX = 4.0
SIZE = (400, 320)  # 80 x 64 bins of 20 µm: a whole number, so that flips keep the phase of the grid


def hexagonal(size: tuple[int, int], pitch: float, margin: float) -> np.ndarray:
    """Hexagonal lattice as (x, y) in pixels."""
    points, row = [], 0
    y = margin
    while y <= size[0] - margin:
        x = margin + (row % 2) * pitch / 2
        while x <= size[1] - margin:
            points.append((x, y))
            x += pitch
        y, row = y + pitch * np.sqrt(3) / 2, row + 1
    return np.array(points)


def tissue_image(size: tuple[int, int], seed: int = 0) -> np.ndarray:
    """White glass, a pink disc with darker grain, and a white hole in it; ``(3, y, x)`` uint8."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[: size[0], : size[1]] + 0.5
    radius = np.hypot(y - size[0] / 2, x - size[1] / 2)
    tissue = (radius < 0.45 * min(size)) & (np.hypot(y - size[0] / 2, x - size[1] / 2.5) > 0.1 * min(size))
    grain = rng.integers(0, 40, size)
    pink = np.stack([210 - grain, 130 - grain, 180 - grain])
    return np.where(tissue, pink, rng.integers(240, 250, (3, *size))).astype(np.uint8)


def visium_section(
    *,
    size: tuple[int, int] = SIZE,
    um_per_px: float = UM_PER_PX,
    image: np.ndarray | None = None,
    xy: np.ndarray | None = None,
    drawn_um: float = 55.0,
    n_genes: int = 8,
    name: str = "S1",
    seed: int = 0,
) -> SpatialData:
    """Full, hires and lowres image, circles, a table called ``table``, and no system called ``global``."""
    rng = np.random.default_rng(seed)
    image = tissue_image(size, seed) if image is None else image
    xy = hexagonal(size, 100 / um_per_px, 40 / um_per_px) if xy is None else xy
    systems = {name: Identity()}
    shrink = {"hires": 0.5, "lowres": 0.25}
    scales = {key: Scale([factor, factor], axes=("y", "x")) for key, factor in shrink.items()}
    systems |= {f"{name}_downscaled_{key}": one for key, one in scales.items()}
    images = {
        f"{name}_full_image": Image2DModel.parse(
            image, dims=("c", "y", "x"), scale_factors=[2, 2], transformations={name: Identity()}
        )
    }
    for key, step in (("hires", 2), ("lowres", 4)):
        small = image[:, : size[0] // step * step, : size[1] // step * step]
        small = small.reshape(len(image), size[0] // step, step, size[1] // step, step).mean((2, 4)).astype(image.dtype)
        images[f"{name}_{key}_image"] = Image2DModel.parse(
            small,
            dims=("c", "y", "x"),
            transformations={f"{name}_downscaled_{key}": Identity(), name: scales[key].inverse()},
        )
    obs = pd.DataFrame(
        {"in_tissue": 1, "spot_id": np.arange(len(xy)), "region": name}, index=[f"spot-{i}" for i in range(len(xy))]
    )
    counts = sparse.csr_matrix(rng.poisson(rng.gamma(2.0, 2.0, n_genes), (len(xy), n_genes)).astype(np.float32))
    table = ad.AnnData(counts, obs=obs, var=pd.DataFrame(index=[f"gene-{i}" for i in range(n_genes)]))
    circles = ShapesModel.parse(
        xy, geometry=0, radius=drawn_um / um_per_px / 2, index=obs["spot_id"].copy(), transformations=systems
    )
    table = TableModel.parse(table, region=name, region_key="region", instance_key="spot_id")
    return SpatialData(images=images, shapes={name: circles}, tables={"table": table})


def stand_in(obs: Observation, *, with_std: bool = True) -> Prediction:
    """Every bin under a spot gets its share of the spot's counts, so that positions can be checked."""
    share = obs.measurement.matrix.T @ (obs.counts / obs.measurement.area[:, None])
    mean = share.T.reshape(len(obs.genes), *obs.grid.shape).astype(np.float32)
    covered = obs.measurement.coverage.astype(np.float32)
    stats = {"r2": np.linspace(0, 1, len(obs.genes))}
    std = np.sqrt(mean) if with_std else None
    provenance = {"seed": 0, "genes": None, "shift": (1.0, 2.0), "residual": np.float32(0.5)}
    return Prediction(obs.grid, obs.genes, mean, std, obs.inside, covered, stats, provenance)


def fingerprint(sdata: SpatialData) -> dict[str, tuple]:
    """Everything a user could notice to have changed, by element."""
    found = {"attrs": (repr(sdata.attrs), str(sdata.path))}
    for kind, name, element in sdata.gen_elements():
        if kind in ("images", "labels"):
            arrays = [get_pyramid_levels(element, n=0)] if isinstance(element, xr.DataTree) else [element]
            values = [(a.dtype, a.shape, hash(np.asarray(a.data).tobytes())) for a in arrays]
        elif kind == "tables":
            x = element.X.compute() if hasattr(element.X, "dask") else element.X
            x = x.toarray() if sparse.issparse(x) else np.asarray(x)
            tables = (element.obs.to_csv(), element.var.to_csv(), repr(sorted(element.uns)), element.is_view)
            values = [type(element.X).__name__, x.dtype, hash(x.tobytes()), *tables, sorted(layers_of(element))]
        else:
            values = [element.to_csv() if hasattr(element, "geometry") else len(element)]
        maps = {} if kind == "tables" else get_transformation(element, get_all=True)
        found[name] = (kind, values, {cs: repr(one) for cs, one in maps.items()})
    return found
