"""The data of the panels, read from the elements that `io.write` wrote, in µm from the corner of the grid.

Drawing in the frame of the grid instead of a coordinate system of the object keeps bins square and upright under any
rotation or reflection of the image; only the spots are transformed.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
from scipy.spatial import cKDTree
from spatialdata import SpatialData

from hadmst_sc.io.abundances import abundances_of
from hadmst_sc.io.counts import Matrix, matrix_of, places_of, rows_as_csr
from hadmst_sc.io.resample import check_image, resample_rgb
from hadmst_sc.io.resolve import affine, levels, pair, systems, transform
from hadmst_sc.io.result import again, find_result
from hadmst_sc.io.spots import footprints, scale
from hadmst_sc.section.arguments import printable
from hadmst_sc.section.errors import MissingKeyError, Problems
from hadmst_sc.section.observation import OutputNames

SAME = 1e-4  # relative difference of sums due to rounding
BORDER_PX = 16
BORDER = 0.05  # the same with spots at the border of the image, of whose counts a run uses a share
WITHOUT_SPOTS = "Leave the spots out: `panels=['he', 'map']` of `pl.superresolve`, `spots=False` of `pl.compare`."
Extent = tuple[float, float, float, float]  # left, right, bottom, top in µm, as `imshow(origin="upper")` expects


@dataclass(frozen=True, eq=False)
class Spots:
    """Footprints of the observations.

    Parameters
    ----------
    centres
        ``(spots, 2)`` as (x, y), in µm.
    size_um
        Diameter of a disc or edge of a square.
    square
        True if the footprints are squares.
    angle
        Angle of the squares' edges to the x axis, towards y, radians.
    rows
        ``(spots,)`` their rows in the table.
    """

    centres: np.ndarray
    size_um: float
    square: bool
    angle: float
    rows: np.ndarray

    @property
    def distance_um(self) -> float:
        """Distance to the nearest spot, the median of all."""
        return float(np.median(cKDTree(self.centres).query(self.centres, 2)[0][:, -1]))

    @property
    def area_um2(self) -> float:
        """Area of one footprint."""
        return self.size_um**2 * (1.0 if self.square else np.pi / 4)


class Section:
    """One super-resolved result inside a SpatialData object.

    Parameters
    ----------
    sdata
        Holds the result.
    key
        Name of the result.
    image_key, table_key
        Elements to show instead of those the result was made from.

    Raises
    ------
    KeyError
        If the result or an element it was made from is not in ``sdata``.
    """

    def __init__(self, sdata: SpatialData, key: str, image_key: str | None, table_key: str | None) -> None:
        self.sdata, self.result = sdata, find_result(sdata, key)
        self._he: dict[tuple[int, ...], np.ndarray] = {}  # by level and pixels
        self.provenance, self.inside = self.result.provenance, np.asarray(self.result.labels.data) > 0
        self.image_key = image_key or self.result.source("image_key", sdata.images)
        self.table_key = table_key or self.result.source("table_key", sdata.tables)
        self._is_own_table = table_key is None
        self.shapes_key = self.result.source("shapes_key", sdata)
        self.bin_um = float(self.provenance["bin_um"])
        self.corner = (0.0, 0.0)  # (x, y) of the grid, in µm
        problems, self.system = Problems("`superresolve` cannot be drawn"), self.result.system
        if image_key is not None and image_key not in sdata.images:
            problems.missing("image_key", image_key, "sdata.images", list(sdata.images))
        if table_key is not None and table_key not in sdata.tables:
            problems.missing("table_key", table_key, "sdata.tables", list(sdata.tables))
        problems.raise_if_any()

    def in_frame_of(self, other: Section) -> Section:
        """The same section, drawn in µm from the corner of another grid."""
        x, y = (other._to_um @ self.result.to_system(other.system))[:2, 2].round(6)
        self.corner = (float(x), float(y))
        return self

    @cached_property
    def genes(self) -> list[str]:
        """Names of the channels."""
        return [str(gene) for gene in self.result.image().coords["c"].values]

    @property
    def has_std(self) -> bool:
        """True if the run computed a standard deviation."""
        return self.result.std_key is not None

    @property
    def has_he(self) -> bool:
        """True if the image exists in the coordinate system of the run."""
        return self.image_key in self.sdata.images and self.system in systems(self.sdata.images[self.image_key])

    @property
    def has_spots(self) -> bool:
        """True if spots and their counts exist."""
        return self.shapes_key in self.sdata and self.table_key in self.sdata.tables

    def check_std(self, what: str) -> None:
        """Raise an error with the remedy if there is no standard deviation."""
        if not self.has_std:
            raise MissingKeyError(
                f"{what} needs {OutputNames(self.result.key).std!r}, which is not in `sdata.images`. It is written "
                f"unless the run has `with_std=False`. {again(self.result)}"
            )

    def check_he(self, what: str) -> None:
        """Raise an error with the available images if that of the run is missing."""
        if not self.has_he:
            shared = [name for name, image in self.sdata.images.items() if self.system in systems(image)]
            problems = Problems(f"{what} cannot be drawn")
            problems.missing("image_key", self.image_key, f"sdata.images of system {self.system!r}", shared)
            problems.raise_if_any()

    def check_spots(self, what: str) -> None:
        """Raise an error that names missing shapes or table."""
        problems = Problems(f"{what} cannot be drawn")
        if self.table_key not in self.sdata.tables:
            problems.missing("table_key", self.table_key, "sdata.tables", list(self.sdata.tables))
        if self.shapes_key not in self.sdata:
            problems.missing("shapes_key", self.shapes_key, "sdata.shapes", list(self.sdata.shapes))
        problems.raise_if_any()

    @cached_property
    def _to_um(self) -> np.ndarray:
        """``(3, 3)`` affine on (x, y, 1) from the run's coordinate system to µm from the corner of the grid."""
        return self.from_system(self.system)

    def from_system(self, system: str) -> np.ndarray:
        """``(3, 3)`` affine on (x, y, 1) from a coordinate system to µm from the corner of the grid."""
        return np.diag([self.bin_um, self.bin_um, 1]) @ np.linalg.inv(self.result.to_system(system))

    @cached_property
    def moved_um(self) -> np.ndarray:
        """(x, y) of the grid's corner in the grid of the run; not zero if the section was cropped after the run."""
        rows, y, x = self.result.places
        if not len(rows) or not {"array_row", "array_col"} <= set(self.result.table.obs):
            return np.zeros(2)
        first = self.result.table.obs[["array_col", "array_row"]].iloc[rows[0]].to_numpy(float)
        return (first - [x[0], y[0]]) * self.bin_um

    @property
    def extent(self) -> Extent:
        """Extent of the grid."""
        (ny, nx), (x, y) = self.inside.shape, self.corner
        return x, x + nx * self.bin_um, y + ny * self.bin_um, y

    def _stated(self, parameter: str) -> Any:
        """A parameter of the run; stores write ``None`` as text."""
        value = self.provenance.get(parameter)
        return None if value in (None, "none") else value

    def channel(self, gene: str, std: bool = False) -> np.ma.MaskedArray:
        """One gene's map, ``(ny, nx)`` counts per bin, masked outside the tissue.

        Only this channel is read.
        """
        values = np.asarray(self.result.image(std=std).sel(c=gene).data)
        return np.ma.masked_where(~self.inside | np.isnan(values), values)

    def he(self, um_per_px: float, box: Extent) -> tuple[np.ndarray, np.ndarray]:
        """H&E in a box, at the coarsest level whose pixels are no larger than ``um_per_px``, else the finest.

        Returns
        -------
        ``(y, x, 3)`` pixels, and the ``(3, 3)`` affine on (x, y, 1) that takes them to µm.
        """
        element = self.sdata.images[self.image_key]
        problems = Problems("`panels='he'` cannot be drawn")
        check_image(element, self.image_key, problems)
        problems.raise_if_any()
        to_um = self._to_um @ affine(element, self.system)
        finest = levels(element)[0]
        for level in reversed(levels(element)):
            # Levels are not exact halves, so each has its own factor per axis.
            shrink = np.diag([finest.sizes["x"] / level.sizes["x"], finest.sizes["y"] / level.sizes["y"], 1])
            if np.linalg.norm(to_um[:2, :2] @ shrink[:2, :2], 2) <= um_per_px or level is finest:
                break
        to_um = to_um @ shrink
        x, y = _pixels_in(box, to_um, level)
        part = level.isel(x=slice(*x), y=slice(*y))
        size = part.sizes["y"], part.sizes["x"]
        # Shown in every row; a level that is not on disk is computed from the finest.
        if (key := (level.sizes["x"], *x, *y)) not in self._he:
            pixels = resample_rgb(part, self.image_key, (1.0, 1.0), size, problems)  # as the run reads them
            problems.raise_if_any()
            self._he[key] = np.moveaxis(pixels, 0, -1)
        shift = np.eye(3)
        shift[:2, 2] = x[0], y[0]
        return self._he[key], to_um @ shift

    @cached_property
    def spots(self) -> Spots:
        """Footprints of the spots that the result was made from."""
        problems, bins = Problems("`panels='spots'` cannot be drawn"), self.result.image_key
        assert bins is not None  # channels are read first
        # The map is in every system of the H&E, and the H&E may be missing: so the pixels of the map are used.
        paired = pair(self.sdata, bins, self.table_key, self.shapes_key, self.system, problems)
        prints = footprints(paired.shapes, self.shapes_key, paired.spots_to_px, problems) if paired else None
        problems.raise_if_any()
        assert paired and prints  # each is None only after a problem
        # Circles of a reader can be wider than the spots (see `io.spots`), so a known platform sets the size.
        known = scale(prints, self.shapes_key, self._stated("spot_um"), self._stated("pitch_um"), Problems(""))
        size_um = known.spot_um if known else prints.size * self.bin_um
        centres = prints.xy[paired.places] - self.result.offset
        return Spots(centres * self.bin_um, size_um, prints.square, prints.angle, paired.rows)

    def belief(self, gene: str) -> tuple[str, bool]:
        """Reliability of the map of a gene in words, and True if it is a guess; no words for tables without it."""
        var = self.result.table.var
        if gene not in var.index or not {"reliability", "image_helps", "finest_um"} <= set(var):
            return "", False
        reliability, helps, finest = var.loc[gene, ["reliability", "image_helps", "finest_um"]]
        is_guess = not np.isfinite(finest)
        width = "" if is_guess else f", supported from {finest:.0f} µm"
        helps = bool(pd.notna(helps) and helps)  # missing in tables that were joined
        return f"reliability {reliability:.2f}{', image helps' * helps}{width}", is_guess

    @property
    def unit(self) -> str:
        """Unit of the maps: counts of genes, or cells of types."""
        return "cells per bin" if self._stated("obsm_key") else "counts per bin"

    @cached_property
    def _measured(self) -> list[Matrix]:
        """Matrices of the spots' table that may be what the run read, the likeliest first."""
        table, layer, obsm_key = self.sdata.tables[self.table_key], self._stated("layer"), self._stated("obsm_key")
        if obsm_key is not None:
            return [abundances_of(table, self.table_key, obsm_key)] if obsm_key in table.obsm else []
        places = dict.fromkeys([layer if layer in places_of(table) else None, None, *places_of(table)])
        return [matrix_of(table, self.table_key, place) for place in places]

    def measured_genes(self) -> set[str]:
        """Names of all genes that the run could have read; empty without their table."""
        return set(self._measured[0].var.index) if self.has_spots and self._measured else set()

    def at_spots(self, gene: str) -> np.ndarray:
        """``(spots,)`` measured counts of one gene per bin of the footprint, in the unit of the maps."""
        having = [one for one in self._measured if one.values is not None and gene in one.var.index]
        if not having:
            problems = Problems("`panels='spots'` cannot be drawn")
            if obsm_key := self._stated("obsm_key"):
                problems.add(
                    f"tables/{self.table_key}: needs the abundances that the run read, {printable(gene)!r} of "
                    f"`obsm[{obsm_key!r}]`, but they are not there. Available: "
                    f"{list(self.sdata.tables[self.table_key].obsm)}. {WITHOUT_SPOTS}",
                    MissingKeyError,
                )
                problems.raise_if_any()
            others = [name for name, one in self.sdata.tables.items() if gene in one.var_names]
            problems.missing("table_key", self.table_key, f"the tables with gene {printable(gene)!r}", others)
            problems.raise_if_any()
        bins_of_spot, expected = self.spots.area_um2 / self.bin_um**2, self._total_of_run(gene)
        for matrix in having:
            counts = rows_as_csr(matrix.values, self.spots.rows, matrix.var.index.get_indexer([gene])).toarray().ravel()
            total = counts.sum(dtype=float)
            if expected is None or -SAME * expected <= total - expected <= BORDER * expected:
                return np.asarray(counts / bins_of_spot)
        raise ValueError(
            f"tables/{self.table_key}: needs the counts that the run read, {expected:g} of {printable(gene)!r} in all "
            f"spots, but neither `X` nor a layer has them; they were probably normalised since. {WITHOUT_SPOTS}"
        )

    def _total_of_run(self, gene: str) -> float | None:
        """Counts in all spots as the run read them; ``None`` if these are not the spots of the run."""
        var, column = self.result.table.var, "spot_counts"
        all_spots = self._is_own_table and len(self.spots.rows) == self.provenance.get("n_spots")
        return float(var.at[gene, column]) if all_spots and column in var and gene in var.index else None


def _pixels_in(box: Extent, to_um: np.ndarray, level: Any) -> tuple[tuple[int, int], tuple[int, int]]:
    """First pixel in a box and the one after the last, along x and y, with a border for the interpolation.

    The nearest pixels if the box is outside the image.
    """
    corners = transform(np.linalg.inv(to_um), np.array([[x, y] for x in box[:2] for y in box[2:]]))
    low, high = np.floor(corners.min(0)).astype(int) - BORDER_PX, np.ceil(corners.max(0)).astype(int) + BORDER_PX
    sizes = level.sizes["x"], level.sizes["y"]
    x, y = (
        (int(np.clip(a, 0, size - 1)), int(np.clip(b, 1, size))) for a, b, size in zip(low, high, sizes, strict=True)
    )
    return x, y
