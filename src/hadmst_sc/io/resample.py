"""The only resampling of images: exact area averages, a strip of rows at a time."""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr
from PIL import Image

from hadmst_sc.io.pixels import Channels, find_channels, full_scale, made_from, values_code
from hadmst_sc.io.resolve import levels, transform
from hadmst_sc.section.errors import Problems, logger
from hadmst_sc.section.grid import Grid, area_weights

FINEST_UM = 2.5  # nuclei are ~8 µm: finer pixels need more memory and the model does not use them
MAX_PER_BIN = 8
STRIP = 256  # rows converted to floating point at a time
EXTREME = 0.9  # smallest share of values that are zero or full in an opacity; other fourth channels are not one


def check_image(element: Any, key: str, problems: Problems) -> bool:
    """Return True if an image element is RGB or RGBA of a numeric type; otherwise add a problem."""
    pyramid = levels(element)
    if not pyramid or not all(pyramid[0].shape):
        found = f"the shape {pyramid[0].shape}" if pyramid else "no level"
        problems.add(f"images/{key}: needs pixels, but has {found}. Pass another `image_key=`.")
        return False
    image, values = pyramid[0], values_code(element, key)
    sizes, before = image.sizes, len(problems.found)
    if image.dims != ("c", "y", "x"):
        plane = f"{values.removesuffix('.values')}.isel(z={sizes.get('z', 0) // 2}).values"
        remedy = made_from(key, "plane", plane) if set(image.dims) == {"c", "z", "y", "x"} else "Pass another image."
        problems.add(f"images/{key}: needs the axes ('c', 'y', 'x'), but has {image.dims}. {remedy}")
    elif sizes["c"] not in (3, 4):
        if sizes["c"] == 1:
            remedy = made_from(key, "rgb", f"numpy.repeat({values}, 3, axis=0)")
        elif sizes["x"] in (3, 4):
            remedy = f"Its channels are on the x axis. {made_from(key, 'rgb', f'numpy.moveaxis({values}, -1, 0)')}"
        else:
            remedy = "Pass the H&E as `image_key=`."
        problems.add(
            f"images/{key}: needs 3 (RGB) or 4 (RGBA) channels, but has {sizes['c']}. H&E needs colour. {remedy}"
        )
    if image.dtype.kind not in "uif":
        problems.add(
            f"images/{key}: needs uint8, uint16 or floating point, but is {image.dtype}. Pass the H&E as `image_key=`."
        )
    return len(problems.found) == before


def level_to_read(element: Any, grid: Grid) -> tuple[xr.DataArray, float]:
    """Return the coarsest level of at most 2.5 µm per pixel (or the native size if coarser), and its µm per pixel.

    No pixels are read.
    """
    pyramid = levels(element)
    height, width = pyramid[0].sizes["y"], pyramid[0].sizes["x"]
    target = max(FINEST_UM, grid.um_per_px) * (1 + 1e-6)
    level, he_um = pyramid[0], grid.um_per_px
    for other in pyramid[1:]:
        # Pyramids round odd sides: a level's factor is the ratio of sizes, not a power of two.
        um = grid.um_per_px * max(height / other.sizes["y"], width / other.sizes["x"])
        if he_um < um <= target:
            level, he_um = other, um
    return level, float(he_um)


def resample_he(element: Any, key: str, grid: Grid, problems: Problems) -> tuple[np.ndarray, float]:
    """Resample the H&E onto the grid, with an integer number ``k`` of pixels along the edge of a bin.

    One level is read (:func:`level_to_read`) and averaged to the smallest pixel of at least its own size and 2.5 µm.

    Returns
    -------
    ``(3, ny * k, nx * k)`` uint8, and the µm per pixel of the level that was read.
    """
    finest, (level, he_um) = levels(element)[0], level_to_read(element, grid)
    k = int(np.clip(np.floor(grid.bin_um / max(FINEST_UM, he_um) + 1e-6), 1, MAX_PER_BIN))
    fine = grid.px_per_bin / k
    step = (fine * level.sizes["y"] / finest.sizes["y"], fine * level.sizes["x"] / finest.sizes["x"])
    shape = (grid.shape[0] * k, grid.shape[1] * k)
    return resample_rgb(level, key, step, shape, problems, values_code(element, key)), he_um


def resample_rgb(
    image: xr.DataArray,
    key: str,
    step: tuple[float, float],
    shape: tuple[int, int],
    problems: Problems,
    code: str | None = None,
) -> np.ndarray:
    """Average an image over cells of ``step`` (y, x) pixels, to ``(3, *shape)`` uint8.

    Transparent pixels become white, like glass. The white level is that of :func:`~hadmst_sc.io.pixels.full_scale`;
    an unknown white level and NaN are problems.

    Parameters
    ----------
    code
        Expression for the image's finest pixels, for messages.
    """
    channels = find_channels(image)
    sums = _Sums(image, step, shape, channels)
    full = full_scale(image.dtype, sums.low, sums.high)
    if full is None or not sums.finite:
        problems.add(_no_white(image.dtype, key, sums, full, code or f"sdata[{key!r}].values"))
        return np.zeros((3, *shape), np.uint8)
    total = sums.colour * (255 / full)
    if sums.has_opacity(channels):
        opacity = sums.opacity / sums.most_opaque
        colour = sums.colour if sums.premultiplied else sums.weighted / sums.most_opaque
        total = colour * (255 / full) + 255 * (1 - opacity)
    # Half-way values round up whatever the order of summation, so that flipped images give flipped results.
    return np.clip(np.floor(total + (0.5 + 1e-3)), 0, 255).astype(np.uint8)


class _Sums:
    """Averages over cells, and statistics of all pixels, in one pass.

    ``colour`` ``(3, *shape)``; with an opacity also ``weighted``, the colour times the opacity, and ``opacity``
    ``(*shape)``. Opacities are in the unit of the image.
    """

    def __init__(
        self, image: xr.DataArray, step: tuple[float, float], shape: tuple[int, int], channels: Channels
    ) -> None:
        self.low, self.high, self.finite = np.inf, -np.inf, True
        self.most_opaque, self.least_opaque, self.premultiplied, self._extreme, self._seen = 0.0, np.inf, True, 0, 0
        n_rows, alpha = image.sizes["y"], channels.alpha
        down = area_weights(n_rows, step[0], shape[0])
        across = area_weights(image.sizes["x"], step[1], shape[1]).T.tocsr()
        total = np.zeros((3 if alpha is None else 7, *shape), np.float32)
        read = [*channels.rgb, *([] if alpha is None else [alpha])]
        for chunk in _chunk_edges(image, n_rows):
            pixels = np.asarray(image.data[:, chunk])[read]  # each chunk of a lazy image is decoded once
            self._look_at(pixels)
            for top in range(chunk.start, chunk.stop, STRIP):
                bottom = min(top + STRIP, chunk.stop)
                first = min(int(top / step[0]), shape[0] - 1)
                last = shape[0] if bottom == n_rows else min(shape[0], int(np.ceil(bottom / step[0])) + 1)
                weights = down[first:last, top:bottom]
                strip = pixels[:, top - chunk.start : bottom - chunk.start].astype(np.float64)
                parts = strip if alpha is None else np.concatenate([strip, strip[:3] * strip[3]])
                for c, part in enumerate(parts):
                    total[c, first:last] += (weights @ part) @ across
        self.colour, self.opacity, self.weighted = total[:3], total[3:4], total[4:]

    def _look_at(self, pixels: np.ndarray) -> None:
        colours = pixels[:3]
        if colours.dtype.kind == "f":
            known = np.isfinite(pixels)
            self.finite = self.finite and bool(known.all())
            colours = colours[known[:3]] if not self.finite else colours
        if colours.size:
            self.low, self.high = min(self.low, float(colours.min())), max(self.high, float(colours.max()))
        for opacity in pixels[3:]:
            largest = 1 if opacity.dtype.kind == "f" else np.iinfo(opacity.dtype).max
            self.most_opaque = max(self.most_opaque, float(opacity.max()))
            self.least_opaque = min(self.least_opaque, float(opacity.min()))
            self._extreme += int(((opacity == 0) | (opacity == largest)).sum())
            self._seen += opacity.size
            self.premultiplied = self.premultiplied and bool((pixels[:3] <= opacity).all())

    def has_opacity(self, channels: Channels) -> bool:
        """Return True if there is an opacity that varies; an unnamed fourth channel must also look like one."""
        varies = self.least_opaque < self.most_opaque
        return varies and (channels.alpha_named or self._extreme >= EXTREME * self._seen)


def bin_colours(he: np.ndarray, grid: Grid) -> np.ndarray:
    """Average the H&E ``(3, ny * k, nx * k)`` uint8 over each bin: colours ``(3, ny, nx)``, 0 to 1."""
    ny, nx = grid.shape
    return np.asarray(he.reshape(3, ny, he.shape[1] // ny, nx, he.shape[2] // nx).mean((2, 4)) / 255)


def _chunk_edges(image: xr.DataArray, n_rows: int) -> list[slice]:
    sizes = image.chunks[1] if image.chunks else (n_rows,)
    stops = np.cumsum(sizes)
    return [slice(int(stop - size), int(stop)) for stop, size in zip(stops, sizes, strict=True)]


def _no_white(dtype: np.dtype, key: str, sums: _Sums, full: float | None, code: str) -> str:
    wanted = "0..65535" if dtype.kind in "iu" else "[0, 1] or [0, 255]"
    problem = f"images/{key}: {dtype} needs values in {wanted}, but has {sums.low:.4g} to {sums.high:.4g}"
    if not sums.finite:
        problem += ", and values that are nan or infinite"
        code = f"numpy.nan_to_num({code}, nan={full or sums.high}, posinf={full or sums.high}, neginf=0)"
    low = min(sums.low, 0.0)
    if full is None and sums.high > low:
        code = f"(numpy.clip(({code} - {low:.9g}) / {sums.high - low:.9g}, 0, 1) * 255).astype('uint8')"
    remedy = made_from(key, "rgb", code) if np.isfinite(sums.high) else "Pass another `image_key=`."
    return f"{problem}. The white level is needed to separate tissue from glass. {remedy}"


THUMBNAIL = 2000  # pixels along the longer side of the section; its square limits the total: 12 MB
GLASS = (255, 255, 255)


def thumbnail(element: Any, key: str, to_system: np.ndarray) -> tuple[np.ndarray, float]:
    """Resample an image into a coordinate system, for scanpy and squidpy.

    Both packages put the corner of the image at coordinate 0. A section that starts elsewhere is padded with white, and
    gets fewer pixels if the padding would need more than ``THUMBNAIL`` squared. Both cannot show negative coordinates,
    so these are cut off.

    Parameters
    ----------
    element
        The image, plain or a pyramid.
    key
        Name of the image, for messages.
    to_system
        ``(3, 3)`` affine on (x, y, 1) from pixels of its finest level to the system.

    Returns
    -------
    ``(y, x, 3)`` uint8, and thumbnail pixels per unit of the system.
    """
    pyramid = levels(element)
    height, width = pyramid[0].sizes["y"], pyramid[0].sizes["x"]
    corners = transform(to_system, np.array([[0, 0], [width, 0], [0, height], [width, height]], float))
    low, high = corners.min(0), corners.max(0)
    extent = np.maximum(high, 1e-9 * (high - low))  # the part with positive coordinates
    if (low < -0.01 * (high - low)).any():
        logger.warning(
            "images/%s: a part has negative coordinates, where scanpy and squidpy show no image. "
            "Draw these bins with `img=False` (squidpy) or `img_key=None` (scanpy).",
            key,
        )
    scale = min(THUMBNAIL / (high - low).max(), THUMBNAIL / np.sqrt(extent.prod()))
    scale = min(scale, 1 / np.sqrt(abs(np.linalg.det(to_system[:2, :2]))))  # never finer than the image
    small, to_small = _shrunk(pyramid, key, scale * to_system[:2, :2])
    # Affine from pixels of the thumbnail to those of the shrunk image.
    back = to_small @ np.linalg.inv(to_system) @ np.diag([1 / scale, 1 / scale, 1])
    size = np.maximum(np.ceil(extent * scale - 1e-6), 1).astype(int)
    drawn = Image.fromarray(small).transform(
        tuple(size.tolist()),
        Image.Transform.AFFINE,
        back[:2].ravel().tolist(),
        Image.Resampling.BILINEAR,
        fillcolor=GLASS,
    )
    return np.array(drawn), float(scale)


def _shrunk(pyramid: list[Any], key: str, to_thumbnail: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Average the image to about the pixels of the thumbnail, ``(y, x, 3)``; also return the affine to them."""
    height, width = pyramid[0].sizes["y"], pyramid[0].sizes["x"]
    step = 1 / np.clip(np.linalg.norm(to_thumbnail, axis=0), 1e-9, 1)  # (x, y) pixels of the finest level
    enough = [
        level for level in pyramid if level.sizes["x"] * step[0] >= width and level.sizes["y"] * step[1] >= height
    ]
    level, problems = enough[-1], Problems(f"cannot draw image {key!r}")
    own = (step[1] * level.sizes["y"] / height, step[0] * level.sizes["x"] / width)
    shape = (int(np.ceil(height / step[1] - 1e-6)), int(np.ceil(width / step[0] - 1e-6)))
    pixels = resample_rgb(level, key, own, shape, problems)
    problems.raise_if_any()
    return np.ascontiguousarray(np.moveaxis(pixels, 0, -1)), np.diag([1 / step[0], 1 / step[1], 1])
