"""Nuclei in an H&E image, for sections without a segmentation."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple, Unpack

import numpy as np
import pandas as pd
import xarray as xr
from scipy import ndimage
from skimage import feature, filters, measure, segmentation
from spatialdata import SpatialData
from spatialdata.models import ShapesModel

from hadmst_sc.io.given import check_sdata
from hadmst_sc.io.read import computed_here, read_observation
from hadmst_sc.io.resample import resample_rgb
from hadmst_sc.io.resolve import levels, systems
from hadmst_sc.runtime import side_by_side, usual_errors
from hadmst_sc.section.arguments import ELEMENT, SECTION, SectionArguments, takes
from hadmst_sc.section.errors import ContractError, Problems, logger
from hadmst_sc.section.features import stain_vectors
from hadmst_sc.section.observation import Observation

# Lengths in µm. Tuned by eye on H&E of breast at 0.7 µm per pixel, and on phantoms at 0.5 and 1 µm.
TARGET_UM = 0.5  # edge of a pixel that nuclei are found at, or that of the image if it is coarser
COARSEST_UM = 1.1  # coarser pixels do not show nuclei
TILE_UM, MARGIN_UM = 600.0, 30.0  # tiles are found one by one; a nucleus belongs to the tile of its centre
SMOOTH = 0.7  # standard deviation of the smoothing of the stain
BACKGROUND = 12.0  # nuclei are narrower: what is wider is background
SEED, SEED_APART = 1.75, 2.5  # standard deviation of a blob in the centre of a nucleus, and distance between centres
OF_DARK, OF_DEPTH = 3.0, 0.3  # weights of darkness, and of the distance to the border in µm, where nuclei touch
SMALLEST, LARGEST = 12.0, 600.0  # areas in µm²
THRESHOLD = 0.8  # of Otsu's
N_SAMPLED = 12  # tiles that the threshold is chosen from
COLUMNS = ("area_um2", "eccentricity", "haematoxylin")


class _Stain(NamedTuple):
    """Haematoxylin as a linear function of optical density."""

    weights: np.ndarray  # (3,)

    def __call__(self, he: np.ndarray) -> np.ndarray:
        """Amount of haematoxylin ``(y, x)``: about one in dark nuclei."""
        density = -np.log((he.astype(np.float32) + 1) / 256)
        return np.tensordot(self.weights, density, 1).astype(np.float32)


class _Tile(NamedTuple):
    """A tile in pixels of the level: where it begins, and the part of it that it keeps."""

    y: slice
    x: slice
    core: tuple[float, float, float, float]  # y0, y1, x0, x1


@takes(SECTION)
@computed_here()
@usual_errors
def find_nuclei(
    sdata: SpatialData,
    image_key: str,
    *,
    key_added: str = "nuclei",
    **section: Unpack[SectionArguments],
) -> None:
    """Find nuclei in the H&E, and add them as circles of the same area.

    Haematoxylin is separated from eosin, its background is subtracted, and it is thresholded; a watershed splits
    touching nuclei. A trained segmenter is better, and :func:`hadmst_sc.tl.superresolve` takes its shapes or labels
    too; this function needs no download and works on images of up to 1 µm per pixel.

    Parameters
    ----------
    sdata
        Holds the H&E and the spots; receives the shapes.
    image_key
        The H&E image.
    {shared}
    key_added
        Name of the circles. Those of an earlier call are replaced. They are in memory; if the object is backed by a
        store, a warning says how to write them.

    Returns
    -------
    ``None``. Adds shapes with the columns ``area_um2``, ``eccentricity`` and ``haematoxylin`` (mean over the nucleus,
    about one in dark nuclei).

    Raises
    ------
    ContractError
        If the image is too coarse, or shows no nuclei.
    KeyError, ValueError
        As :func:`hadmst_sc.io.read_observation` raises them, or if ``key_added`` is the name of another element.

    Examples
    --------
    The pixels of a generated section are too coarse:

    >>> sdata = hd.datasets.phantom(n_genes=4, size_um=600.0)
    >>> hd.pp.find_nuclei(sdata, "phantom_full_image")
    Traceback (most recent call last):
    hadmst_sc.section.errors.ContractError: nuclei cannot be found in this image (1 problem): ...
    """
    check_sdata(sdata)
    problems = Problems("nuclei cannot be found in this image")
    if not problems.check({"key_added": key_added}, {"key_added": (ELEMENT, "nuclei")}) and _taken(sdata, key_added):
        problems.add(f"`key_added={key_added!r}` is the name of another element. Pass another name.", ValueError)
    obs = read_observation(sdata, image_key, **section, problems=problems)
    image = sdata.images[image_key]
    level, level_um = _level(image, obs)
    if level_um > COARSEST_UM:
        problems.add(
            f"images/{image_key}: has {level_um:.2g} µm per pixel at its finest, and nuclei need 1 µm or less. Add the "
            f"full-resolution image, or pass a segmentation as `cells_key=` of `tl.superresolve`."
        )
    problems.raise_if_any()
    found = nuclei(level, level_um, obs, image_key)
    if not len(found):
        raise ContractError(
            "nuclei cannot be found in this image",
            [f"images/{image_key}: shows no nuclei. Pass a segmentation as `cells_key=` of `tl.superresolve`."],
        )
    to_finest = levels(image)[0].sizes["x"] / level.sizes["x"]
    xy = found[["x", "y"]].to_numpy() * to_finest
    radius = np.sqrt(found["area_um2"].to_numpy() / np.pi) / obs.grid.um_per_px
    shapes = ShapesModel.parse(xy, geometry=0, radius=radius, transformations=dict(systems(image)))
    for name in COLUMNS:
        shapes[name] = found[name].to_numpy()
    sdata.shapes[key_added] = shapes
    logger.info("found %s nuclei", f"{len(shapes):,}")
    if sdata.is_backed():
        calls = [f"sdata.write_element({key_added!r})"]
        if f"shapes/{key_added}" in sdata.elements_paths_on_disk():  # spatialdata does not overwrite it
            calls.insert(0, f"sdata.delete_element_from_disk({key_added!r})")
        logger.warning("shapes/%s: in memory only. To keep them, call `%s`", key_added, "; ".join(calls))


def _taken(sdata: SpatialData, name: str) -> bool:
    return name in sdata and not (name in sdata.shapes and set(COLUMNS) <= set(sdata.shapes[name].columns))


def _level(image: Any, obs: Observation) -> tuple[xr.DataArray, float]:
    """The coarsest level of the image that is no coarser than ``TARGET_UM``, else the finest; and its µm per pixel."""
    pyramid = levels(image)
    ums = [obs.grid.um_per_px * pyramid[0].sizes["x"] / level.sizes["x"] for level in pyramid]
    best = max((number for number, um in enumerate(ums) if um <= TARGET_UM * 1.01), default=0)
    return pyramid[best], ums[best]


def nuclei(level: xr.DataArray, level_um: float, obs: Observation, key: str) -> pd.DataFrame:
    """Nuclei in the tissue of a section: centres ``x`` and ``y`` in pixels of the level, and ``COLUMNS``.

    Parameters
    ----------
    level
        ``(c, y, x)`` image of ``level_um`` µm per pixel.
    obs
        The section, whose tissue and stains are used.
    key
        Name of the image, for messages.
    """
    stain, tiles = _haematoxylin(obs), list(_tiles(level, level_um, obs))
    um = max(TARGET_UM, level_um)

    def read(tile: _Tile) -> np.ndarray:
        part = level.isel(y=tile.y, x=tile.x)
        step = um / level_um
        shape = (max(1, round(part.sizes["y"] / step)), max(1, round(part.sizes["x"] / step)))
        problems = Problems("nuclei cannot be found in this image")
        he = resample_rgb(part, key, (part.sizes["y"] / shape[0], part.sizes["x"] / shape[1]), shape, problems)
        problems.raise_if_any()
        return _foreground(stain(he), um)

    every = max(1, len(tiles) // N_SAMPLED)
    sampled = np.concatenate([read(tile)[::4, ::4].ravel() for tile in tiles[::every][:N_SAMPLED]] or [np.zeros(0)])
    if not sampled.size or np.ptp(sampled) < 1e-3:
        return pd.DataFrame(columns=["x", "y", *COLUMNS])
    threshold = THRESHOLD * filters.threshold_otsu(sampled)
    found = pd.concat(side_by_side(lambda tile: _in_tile(read(tile), threshold, um, um / level_um, tile), tiles))
    bins = (found[["y", "x"]].to_numpy() * level_um / obs.grid.bin_um).astype(int)
    inside = obs.inside[tuple(np.minimum(bins, np.array(obs.inside.shape) - 1).T)] if len(bins) else slice(0, 0)
    return found[inside].reset_index(drop=True)


def _haematoxylin(obs: Observation) -> _Stain:
    """Stain of a section, scaled so that its 99th percentile in tissue is one."""
    inside = obs.inside.repeat(obs.he_per_bin, 0).repeat(obs.he_per_bin, 1)
    density = -np.log((obs.he[:, inside].T.astype(np.float32) + 1) / 256)
    density = density[:: max(1, len(density) // 200_000)]
    weights = np.linalg.pinv(stain_vectors(density))[:, 0]
    return _Stain((weights / max(np.percentile(density @ weights, 99), 1e-3)).astype(np.float32))


def _tiles(level: xr.DataArray, level_um: float, obs: Observation) -> Iterator[_Tile]:
    """Tiles with tissue, each with a margin; their cores cover the level."""
    height, width = level.sizes["y"], level.sizes["x"]
    edge, margin = max(1, round(TILE_UM / level_um)), round(MARGIN_UM / level_um)
    bins = level_um / obs.grid.bin_um
    for y in range(0, height, edge):
        for x in range(0, width, edge):
            rows = slice(int(y * bins), int(np.ceil((y + edge) * bins)))
            columns = slice(int(x * bins), int(np.ceil((x + edge) * bins)))
            if obs.inside[rows, columns].any():
                yield _Tile(
                    slice(max(0, y - margin), min(height, y + edge + margin)),
                    slice(max(0, x - margin), min(width, x + edge + margin)),
                    (y, y + edge, x, x + edge),
                )


def _foreground(haematoxylin: np.ndarray, um: float) -> np.ndarray:
    """Smoothed stain minus its background, ``(y, x)``."""
    smooth = ndimage.gaussian_filter(haematoxylin, max(SMOOTH / um, 0.5))
    step = max(1, round(2.0 / um))  # the background is smooth, and needs no more pixels
    size = 2 * round(BACKGROUND / um / step) // 2 + 1
    low = ndimage.gaussian_filter(ndimage.minimum_filter(smooth[::step, ::step], size), size / 2)
    at = np.mgrid[: smooth.shape[0], : smooth.shape[1]].astype(np.float32) / step
    return smooth - ndimage.map_coordinates(low, at, order=1, mode="nearest")


def _in_tile(foreground: np.ndarray, threshold: float, um: float, per_px: float, tile: _Tile) -> pd.DataFrame:
    """Nuclei centred in the core of a tile; ``per_px`` is the pixel of the foreground in pixels of the level."""
    mask = ndimage.binary_opening(foreground > threshold, iterations=max(1, round(0.8 / um)))
    depth = ndimage.distance_transform_edt(mask).astype(np.float32) * um
    sigma = SEED / um
    dark = -ndimage.gaussian_laplace(foreground, sigma) * sigma**2  # above zero where it is darker than around
    height = OF_DARK * dark + OF_DEPTH * ndimage.gaussian_filter(depth, 1.0 / um)
    apart = max(1, round(SEED_APART / um))
    peaks = feature.peak_local_max(height, min_distance=apart, labels=mask.astype(np.int32), exclude_border=False)
    seeds = np.zeros(mask.shape, np.int32)
    seeds[tuple(peaks.T)] = np.arange(1, len(peaks) + 1)
    labels = segmentation.watershed(-height, seeds, mask=mask)
    properties = ("centroid", "area", "eccentricity", "intensity_mean")
    found = pd.DataFrame(measure.regionprops_table(labels, foreground, properties=properties))
    area = found["area"] * um**2
    y = (found["centroid-0"] + 0.5) * per_px + tile.y.start
    x = (found["centroid-1"] + 0.5) * per_px + tile.x.start
    y0, y1, x0, x1 = tile.core
    kept = (area >= SMALLEST) & (area <= LARGEST) & (y >= y0) & (y < y1) & (x >= x0) & (x < x1)
    table = {"x": x, "y": y, "area_um2": area, "eccentricity": found["eccentricity"]}
    return pd.DataFrame(table | {"haematoxylin": found["intensity_mean"]})[kept]
