"""What the panels show, read back from the elements that `io.write` made, in µm from the corner of the grid.

Drawing in the frame of the grid, rather than in a coordinate system of the object, keeps bins square and upright
whatever rotation or reflection the image carries; only the spots have to be transformed.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from spatialdata import SpatialData

from hadmst_sc.contract import PROVENANCE_KEY, OutputNames
from hadmst_sc.io.counts import matrix_of, rows_as_csr
from hadmst_sc.io.given import check_sdata
from hadmst_sc.io.problems import Problems
from hadmst_sc.io.resample import check_image, rgb_channels
from hadmst_sc.io.resolve import affine, levels, pair, systems
from hadmst_sc.io.spots import footprints, scale

Extent = tuple[float, float, float, float]  # left, right, bottom, top in µm, as `imshow(origin="upper")` wants it


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
        Whether the footprints are squares.
    rows
        ``(spots,)`` their rows in the table.
    """

    centres: np.ndarray
    size_um: float
    square: bool
    rows: np.ndarray

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
        Elements to show instead of the ones the result was made from.

    Raises
    ------
    KeyError
        If the result or what it was made from is not in ``sdata``.
    """

    def __init__(self, sdata: SpatialData, key: str, image_key: str | None, table_key: str | None) -> None:
        check_sdata(sdata)
        self.sdata, self.names = sdata, OutputNames(key)
        self._he: dict[tuple[int, int], np.ndarray] = {}
        problems = Problems("`superresolve` cannot be drawn")
        results = [k for k in sdata.images if PROVENANCE_KEY in getattr(sdata.tables.get(f"{k}_table"), "uns", {})]
        if key not in results:
            problems.missing("key_added", key, "the results in `sdata`", results)
            problems.raise_if_any()
        self.provenance: dict[str, Any] = sdata.tables[self.names.table].uns[PROVENANCE_KEY]
        self.image_key = image_key or str(self.provenance["image_key"])
        self.table_key = table_key or str(self.provenance["table_key"])
        self.bin_um = float(self.provenance["bin_um"])
        self.um_per_px = float(self.provenance["um_per_px"])
        if self.names.bins not in sdata.labels:
            problems.missing("key", self.names.bins, "sdata.labels", list(sdata.labels))
        for image in dict.fromkeys([self.image_key, str(self.provenance["image_key"])]):
            if image not in sdata.images:
                problems.missing("image_key", image, "sdata.images", list(sdata.images))
        if self.table_key not in sdata.tables:
            problems.missing("table_key", self.table_key, "sdata.tables", list(sdata.tables))
        problems.raise_if_any()
        system = str(self.provenance["coordinate_system"])
        if system not in systems(sdata.images[self.image_key]):
            shared = [name for name, image in sdata.images.items() if system in systems(image)]
            problems.missing("image_key", self.image_key, f"the coordinate system {system!r}", shared)
        problems.raise_if_any()

    @cached_property
    def genes(self) -> list[str]:
        """Names of the channels."""
        return [str(gene) for gene in levels(self.sdata.images[self.names.image])[0].coords["c"].values]

    @cached_property
    def inside(self) -> np.ndarray:
        """``(ny, nx)`` bool, in tissue."""
        return np.asarray(levels(self.sdata.labels[self.names.bins])[0].data) > 0

    @property
    def has_std(self) -> bool:
        """Whether the run drew samples."""
        return self.names.std in self.sdata.images

    def check_std(self, what: str) -> None:
        """Say how to get a standard deviation, if there is none."""
        if not self.has_std:
            raise KeyError(
                f"{what} needs {self.names.std!r}, which is not in `sdata.images`. It is written when draws are "
                f"made. Try `tl.superresolve(sdata, {self.image_key!r}, n_samples=4)`."
            )

    @property
    def extent(self) -> Extent:
        """Of the grid."""
        ny, nx = self.inside.shape
        return 0.0, nx * self.bin_um, ny * self.bin_um, 0.0

    def _stated(self, parameter: str) -> Any:
        """A parameter of the run; stores keep ``None`` as its name."""
        value = self.provenance.get(parameter)
        return None if value in (None, "none") else value

    def channel(self, gene: str, std: bool = False) -> np.ma.MaskedArray:
        """One gene's map, ``(ny, nx)`` counts per bin, masked outside the tissue.

        Picks the channel before touching the data: the others are never read.
        """
        image = levels(self.sdata.images[self.names.std if std else self.names.image])[0]
        return np.ma.masked_where(~self.inside, np.asarray(image.sel(c=gene).data))

    def he(self, um_per_px: float) -> tuple[np.ndarray, np.ndarray]:
        """H&E at the coarsest level whose pixels are no larger than ``um_per_px``, else the finest.

        Returns
        -------
        ``(y, x, 3)`` pixels, and the ``(3, 3)`` affine on (x, y, 1) that takes them to µm.
        """
        system = str(self.provenance["coordinate_system"])
        element = self.sdata.images[self.image_key]
        problems = Problems("`panels='he'` cannot be drawn")
        check_image(element, self.image_key, problems)
        problems.raise_if_any()
        made_from = self.sdata.images[str(self.provenance["image_key"])]
        to_um = np.diag([self.um_per_px, self.um_per_px, 1]) @ np.linalg.inv(affine(made_from, system))
        to_um = to_um @ affine(element, system)
        finest = levels(element)[0]
        for level in reversed(levels(element)):
            # Levels are not exact halves, so each has its own factor per axis.
            shrink = np.diag([finest.sizes["x"] / level.sizes["x"], finest.sizes["y"] / level.sizes["y"], 1])
            if np.linalg.norm(to_um[:2, :2] @ shrink[:2, :2], 2) <= um_per_px or level is finest:
                break
        size = level.sizes["y"], level.sizes["x"]
        if size not in self._he:  # every row shows it, and a level that is not on disk is made from the finest
            self._he[size] = _displayable(np.moveaxis(np.asarray(level.data[rgb_channels(level)]), 0, -1))
        return self._he[size], to_um @ shrink

    @cached_property
    def spots(self) -> Spots:
        """Footprints that the result was made from."""
        problems, made = Problems("`panels='low'` cannot be drawn"), self.provenance
        shapes_key, system = str(made["shapes_key"]), str(made["coordinate_system"])
        paired = pair(self.sdata, str(made["image_key"]), self.table_key, shapes_key, system, problems)
        prints = footprints(paired.shapes, shapes_key, paired.spots_to_px, problems) if paired else None
        problems.raise_if_any()
        assert paired and prints  # each is None only after a problem
        # The circles of a reader can be wider than the spots (see `io.spots`), so a known platform decides on the size.
        known = scale(prints, shapes_key, self._stated("spot_um"), self._stated("pitch_um"), Problems(""))
        size_um = known.spot_um if known else prints.size * self.um_per_px
        return Spots(prints.xy[paired.places] * self.um_per_px, size_um, prints.square, paired.rows)

    def low(self, gene: str) -> np.ndarray:
        """``(spots,)`` measured counts of one gene per bin of the footprint: the same unit as the maps."""
        table, layer = self.sdata.tables[self.table_key], self._stated("layer")
        matrix = matrix_of(table, self.table_key, layer)
        if gene not in matrix.var.index:
            raise KeyError(f"`genes`: {gene!r} is not in `sdata.tables[{self.table_key!r}]`. Pass another `table_key`.")
        counts = rows_as_csr(matrix.values, self.spots.rows, matrix.var.index.get_indexer([gene]))
        return counts.toarray().ravel() / (self.spots.area_um2 / self.bin_um**2)


def _displayable(pixels: np.ndarray) -> np.ndarray:
    """Pixels as matplotlib takes them: uint8, or float in ``[0, 1]``."""
    if pixels.dtype == np.uint8:
        return pixels
    if pixels.dtype.kind in "ui":
        return np.clip(pixels / np.iinfo(pixels.dtype).max, 0, 1)
    return np.clip(pixels / (1.0 if pixels.max() <= 1 else 255.0), 0, 1)
