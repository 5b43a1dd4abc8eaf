"""Records that modules exchange, and the names of written elements.

``io.read`` makes an :class:`Observation`, inference turns it into a :class:`Prediction`, ``io.write`` writes that back.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np

from hadmst_sc.section.errors import ContractError
from hadmst_sc.section.grid import Grid
from hadmst_sc.section.measurement import Measurement

PROVENANCE_KEY = "hadmst_sc"
ENOUGH_SPOTS = 40  # minimum for registration
# Reliability columns of `var`; see :func:`hadmst_sc.trust.reliability.reliability`.
RELIABILITY = (
    "reliability",
    "reliability_low",
    "reliability_high",
    "gain_over_interpolation",
    "image_helps",
    "finest_um",
)
ORDERED = 1e-3  # bins: positions that differ by less count as equal when spots are sorted
Box = tuple[slice, slice]  # rows and columns of the grid, with start and stop
Facts = dict[int, dict[str, float]]  # statistics of genes, by their index


@dataclass(frozen=True)
class OutputNames:
    """Names of the elements that one run writes, all derived from ``key_added``."""

    image: str

    @property
    def std(self) -> str:
        """Image of posterior standard deviations."""
        return f"{self.image}_std"

    @property
    def bins(self) -> str:
        """Labels that give each in-tissue bin its id."""
        return f"{self.image}_bins"

    @property
    def table(self) -> str:
        """Table with one row per in-tissue bin."""
        return f"{self.image}_table"


@dataclass(frozen=True)
class Source:
    """Elements of the SpatialData object that an observation was read from, for ``io.write`` to place the result."""

    image_key: str
    table_key: str
    shapes_key: str
    coordinate_system: str
    layer: str | None = None
    spot_um: float | None = None  # diameter (or edge) and pitch of the spots, as passed or recognised
    pitch_um: float | None = None
    image_shape: tuple[int, int] | None = None  # pixels of the finest level, (height, width)


@dataclass(frozen=True, eq=False)
class Observation:
    """One section as arrays on one high-resolution grid.

    Parameters
    ----------
    grid
        The lattice of bins over the image.
    he
        ``(3, ny * k, nx * k)`` uint8: H&E resampled so that the edge of a bin is ``k`` whole pixels.
    he_um
        µm per pixel of the image level that was read: the real resolution, regardless of ``k``.
    measurement
        ``A`` on ``grid``; row ``s`` belongs to row ``s`` of ``counts``.
    counts
        ``(spots, genes)`` float32, measured counts; of a spot partly outside the image, the share of the part inside.
    genes, spots
        Names of the columns and rows of ``counts``.
    inside
        ``(ny, nx)`` bool, in tissue; contains every bin under a spot.
    source
        Keys of the elements read; ``None`` if the arrays came from elsewhere.
    rows
        ``(spots,)`` rows of the spots in the table; ``None`` if the arrays came from elsewhere.
    """

    grid: Grid
    he: np.ndarray
    he_um: float
    measurement: Measurement
    counts: np.ndarray
    genes: tuple[str, ...]
    spots: tuple[str, ...]
    inside: np.ndarray
    source: Source | None = None
    rows: np.ndarray | None = None

    def __post_init__(self) -> None:
        ny, nx = self.grid.shape
        problems = []
        if self.he.ndim != 3 or self.he.shape[0] != 3 or self.he.dtype != np.uint8:
            problems.append(f"he: needs (3, y, x) uint8, but has {self.he.shape} {self.he.dtype}.")
        elif self.he.shape[1] % ny or self.he.shape[1] // ny * nx != self.he.shape[2]:
            problems.append(f"he: {self.he.shape[1:]} is not a whole multiple of the grid {self.grid.shape}.")
        if self.counts.shape != (len(self.spots), len(self.genes)):
            problems.append(f"counts: {self.counts.shape} is not (spots, genes) = {len(self.spots), len(self.genes)}.")
        if len(self.measurement) != len(self.spots) or self.measurement.shape != self.grid.shape:
            problems.append("measurement: does not match the spots or the grid.")
        if self.inside.shape != self.grid.shape or self.inside.dtype != bool:
            problems.append(f"inside: needs bool {self.grid.shape}, but has {self.inside.dtype} {self.inside.shape}.")
        if problems:
            raise ContractError("`Observation` is inconsistent", problems)

    @property
    def he_per_bin(self) -> int:
        """Pixels of ``he`` along the edge of a bin (``k``)."""
        return self.he.shape[1] // self.grid.shape[0]

    def subset_spots(self, rows: np.ndarray) -> Observation:
        """The same section with only some of its spots (index or mask), as in a hold-out; ``inside`` stays."""
        rows = np.flatnonzero(rows) if np.asarray(rows).dtype == bool else np.asarray(rows)
        return replace(
            self,
            measurement=self.measurement.subset(rows),
            counts=self.counts[rows],
            spots=tuple(self.spots[i] for i in rows),
            rows=None if self.rows is None else self.rows[rows],
        )

    def in_order(self) -> Observation:
        """The same section with its spots sorted by position, row by row.

        Folds, bootstraps and trees draw spots by number: with this, a result does not depend on the order in which a
        section lists its spots.
        """
        y, x = np.rint(self.measurement.centres / ORDERED).T  # rounded: readers differ in the last digits
        order = np.lexsort((x, y))
        return self if (np.diff(order) == 1).all() else self.subset_spots(order)

    def cropped(self, box: Box) -> Observation:
        """A box of the grid, with the spots whose footprints on the grid are entirely inside the box."""
        k, measurement = self.he_per_bin, self.measurement.cropped(box)
        within = np.flatnonzero(measurement.area >= (1 - 1e-6) * self.measurement.area)
        pixels = tuple(slice(part.start * k, part.stop * k) for part in box)
        grid, he = replace(self.grid, shape=measurement.shape), self.he[(slice(None), *pixels)]
        whole = replace(self, grid=grid, he=he, measurement=measurement, inside=self.inside[box])
        return whole.subset_spots(within)

    def subset_genes(self, columns: np.ndarray) -> Observation:
        """The same section with only some of its genes (index)."""
        return replace(self, counts=self.counts[:, columns], genes=tuple(self.genes[i] for i in columns))


class MapSink(Protocol):
    """Destination of maps as they are made, instead of memory; can be sent to other processes."""

    @property
    def finished(self) -> Facts:
        """Genes (index) whose maps an earlier run has finished, each with its recorded statistics."""

    def write(self, genes: np.ndarray, box: Box, mean: np.ndarray, std: np.ndarray | None, facts: Facts) -> None:
        """Store maps ``(len(genes), *box)``, NaN outside the tissue, with statistics, and mark the genes finished."""

    def maps(self) -> tuple[Any, Any]:
        """Mean and standard deviation (or ``None``) of all genes, lazy ``(genes, ny, nx)``, zero outside the tissue."""


@dataclass(frozen=True, eq=False)
class Prediction:
    """High-resolution maps of one section.

    Parameters
    ----------
    grid
        The lattice of bins.
    genes
        Names of the genes.
    mean
        ``(genes, ny, nx)`` float32, expected counts per bin (the posterior mean); zero outside the tissue. A dask array
        if the maps were written to disk as they were made.
    std
        Standard deviation of the error, of the shape of ``mean``; ``None`` if it was not wanted.
    inside
        ``(ny, nx)`` bool, in tissue.
    covered
        ``(ny, nx)`` share of each bin's area under spots, 0 to 1.
    gene_stats
        Columns for ``var``, each ``(genes,)``.
    provenance
        Parameters, versions, seeds and residuals: only str, int, float, bool, None, lists and dicts of these.
    draws
        ``(n_samples, genes, ny, nx)`` samples of the diffusion model if wanted, expected counts per bin.
    """

    grid: Grid
    genes: tuple[str, ...]
    mean: Any
    std: Any
    inside: np.ndarray
    covered: np.ndarray
    gene_stats: dict[str, np.ndarray] = field(default_factory=dict)
    provenance: dict[str, Any] = field(default_factory=dict)
    draws: np.ndarray | None = None

    def __post_init__(self) -> None:
        expected = (len(self.genes), *self.grid.shape)
        for name in ("mean", "std"):
            value = getattr(self, name)
            if value is not None and value.shape != expected:
                raise ValueError(f"`{name}` needs shape {expected}, but has {value.shape}.")

    @property
    def measured(self) -> np.ndarray:
        """Bins of which more than half is under spots, ``(ny, nx)`` bool; the other bins are inferred."""
        return np.asarray(self.covered > 0.5)
