"""Cells of a phantom: positions, types, appearance in the H&E, and the expression of their genes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage, sparse

from hadmst_sc.phantom.fields import LAYOUT_UM, Rng, random_field, sample
from hadmst_sc.phantom.tissue import Layout

CLARITIES = ("blank", "partial", "clear")  # amount of information on expression in the H&E


@dataclass(frozen=True, eq=False)
class Look:
    """Appearance of nuclear templates, each ``(templates,)``; types with the same template look the same.

    Parameters
    ----------
    radius_um
        Radius of the nucleus.
    elongation
        Long over short axis.
    haematoxylin, eosin
        Optical density of the nucleus and of the cytoplasm around it.
    spread_um
        Width of the cytoplasm.
    """

    radius_um: np.ndarray
    elongation: np.ndarray
    haematoxylin: np.ndarray
    eosin: np.ndarray
    spread_um: np.ndarray


@dataclass(frozen=True, eq=False)
class Cells:
    """All cells of a section.

    Parameters
    ----------
    position_um
        ``(n, 2)`` as (y, x).
    type
        ``(n,)`` int.
    region
        ``(n,)`` int.
    size
        ``(n,)`` relative size of the nucleus, mean about one.
    vitality
        ``(n,)`` in ``(0, 1]``: necrotic cells have lost stain and RNA.
    template_of
        ``(types,)`` index of the template of each type.
    look
        The templates.
    """

    position_um: np.ndarray
    type: np.ndarray
    region: np.ndarray
    size: np.ndarray
    vitality: np.ndarray
    template_of: np.ndarray
    look: Look

    @property
    def n_types(self) -> int:
        """Number of cell types, including those without cells."""
        return len(self.template_of)

    @property
    def visible(self) -> np.ndarray:
        """``(types,)`` bool: True if the type has its own template, so that the H&E shows it."""
        return (np.bincount(self.template_of) == 1)[self.template_of] & (self.template_of.max() > 0)


def _templates(rng: Rng, n_types: int, clarity: str) -> np.ndarray:
    """Template of each type: one for all, one each, or some with their own and others in groups that share one."""
    if clarity == "blank":
        return np.zeros(n_types, int)
    if clarity == "clear":
        return rng.permutation(n_types)
    n_hidden = rng.integers(2, n_types - 1)
    n_groups = rng.integers(1, n_hidden // 2 + 1)
    shared = np.arange(n_hidden) % n_groups
    return rng.permutation(np.concatenate([shared, n_groups + np.arange(n_types - n_hidden)]))


def _look(rng: Rng, n: int) -> Look:
    """Draw distinct templates: each property is stratified over the templates, in an independent random order."""

    def strata(low: float, high: float) -> np.ndarray:
        return low + (high - low) * (rng.permutation(n) + rng.random(n)) / n

    return Look(strata(2.3, 6.0), strata(1.0, 2.8), strata(0.35, 1.15), strata(-0.12, 0.35), strata(4, 10))


def _positions(rng: Rng, layout: Layout, density: np.ndarray) -> np.ndarray:
    """Jittered lattice thinned to the local density, so that few cells are much closer than the spacing."""
    side = len(layout.regions) * LAYOUT_UM
    spacing = rng.uniform(8, 14)
    line = np.arange(0, side, spacing)
    grid = np.stack(np.meshgrid(line, line, indexing="ij"), -1).reshape(-1, 2)
    points = grid + rng.uniform(-0.5, 0.5, grid.shape) * spacing
    points = points[((points >= 0) & (points < side)).all(1)]
    return points[rng.random(len(points)) < sample(density, points)]


def draw_cells(rng: Rng, layout: Layout, clarity: str) -> Cells:
    """Draw the cells of a layout; ``clarity`` is one of ``CLARITIES``."""
    n_types, n_regions = int(rng.integers(5, 10)), layout.n_regions
    mix = rng.dirichlet(np.full(n_types, rng.uniform(0.2, 1)), n_regions)
    crowding = rng.uniform(0.35, 1, n_regions)
    if rng.random() < 0.5:
        crowding[rng.integers(n_regions)] *= rng.uniform(0.1, 0.4)
    if clarity == "blank":
        crowding[:] = crowding.mean()
    density = crowding[layout.regions] * layout.tissue
    for patch, factor in ((layout.fat, 0.12), (layout.necrosis, 0.4)):
        density[patch] *= factor
    if clarity != "blank":
        density[layout.infiltrate & layout.tissue] = 1
    points = _positions(rng, layout, density)
    region = sample(layout.regions, points)
    types = (rng.random(len(points))[:, None] > mix.cumsum(1)[region]).sum(1).clip(0, n_types - 1)
    immune = rng.integers(n_types)
    types[sample(layout.infiltrate, points) & (rng.random(len(points)) < 0.8)] = immune
    if rng.random() < 0.6:  # a niche: one type gathers in patches that no region explains
        niche = sample(random_field(rng, layout.regions.shape, rng.uniform(2, 8)), points) > rng.uniform(1, 1.8)
        types[niche & (rng.random(len(points)) < 0.7)] = rng.integers(n_types)
    template_of = _templates(rng, n_types, clarity)
    look = _look(rng, template_of.max() + 1)
    if clarity != "blank":  # lymphocytes are small, round and dark
        look.radius_um[template_of[immune]], look.elongation[template_of[immune]] = rng.uniform(2.2, 3), 1.0
        look.haematoxylin[template_of[immune]] = rng.uniform(0.9, 1.3)
    size = np.exp(0.15 * rng.standard_normal(len(points)))
    vitality = np.where(sample(layout.necrosis, points), rng.uniform(0.1, 0.4), 1.0)
    return Cells(points, types, region, size, vitality, template_of, look)


KINDS = ("region", "visible", "invisible", "gradient", "sparse", "housekeeping", "hidden", "mixed")
CELL_UM = 10.0  # width of the square over which a cell's molecules are spread


def _pool(rng: Rng, shape: tuple[int, int], number: int, low_um: float, high_um: float) -> list[np.ndarray]:
    """Fields that several genes share, so that they are co-expressed."""
    scales = np.exp(rng.uniform(np.log(low_um), np.log(high_um), number)) / LAYOUT_UM
    return [random_field(rng, shape, scale, rough=rng.random() < 0.3) for scale in scales]


class Programmes:
    """Sources of the expression of genes, evaluated at the cells: types, regions and fields.

    Parameters
    ----------
    rng
        Random generator.
    cells
        Cells of the section.
    shape
        Shape of the layout.
    """

    def __init__(self, rng: Rng, cells: Cells, shape: tuple[int, int]) -> None:
        self.rng, self.cells = rng, cells
        present = np.bincount(cells.type, minlength=cells.n_types) > 0.002 * len(cells.type)
        if not present.any():
            present[:] = True
        self.present = np.flatnonzero(present)
        self.visible_types = np.flatnonzero(present & cells.visible)
        self.invisible_types = np.flatnonzero(present & ~cells.visible)
        at = cells.position_um
        self.smooth = [sample(field, at) for field in _pool(rng, shape, 4, 200, 800)]
        self.hidden = [sample(field, at) for field in _pool(rng, shape, 6, 40, 600)]
        self.fine = [sample(field, at) for field in _pool(rng, shape, 6, 15, 60)]

    def kinds(self, n_genes: int) -> tuple[str, ...]:
        """Kind of each gene, in equal numbers; if no type is visible or none invisible, the other kind is used."""
        kinds = [KINDS[i % len(KINDS)] for i in self.rng.permutation(n_genes)]
        if not len(self.visible_types):
            kinds = ["invisible" if kind == "visible" else kind for kind in kinds]
        if not len(self.invisible_types):
            kinds = ["visible" if kind == "invisible" else kind for kind in kinds]
        return tuple(kinds)

    def _of_type(self, types: np.ndarray) -> np.ndarray:
        return (self.cells.type == self.rng.choice(types)).astype(np.float32)

    def _by_region(self, low: float) -> np.ndarray:
        level = 10 ** self.rng.uniform(low, 0, self.cells.region.max(initial=0) + 1)
        return level[self.cells.region]

    def _field(self, pool: list[np.ndarray]) -> np.ndarray:
        return pool[self.rng.integers(len(pool))]

    def expression(self, kind: str) -> np.ndarray:
        """Relative expression of one gene in every cell, ``(cells,)``, of any scale."""
        rng, cells = self.rng, self.cells
        background = 10 ** rng.uniform(-2.5, -0.7)
        match kind:
            case "region":
                return self._by_region(-2)
            case "visible":
                return background + self._of_type(self.visible_types)
            case "invisible":
                return background + self._of_type(self.invisible_types)
            case "gradient":
                return np.exp(rng.uniform(0.4, 1.2) * self._field(self.smooth))
            case "sparse":
                spot = self._field(self.fine) > rng.uniform(0.8, 1.8)
                return 0.2 * background + spot * self._of_type(self.present)
            case "housekeeping":
                return 0.3 + cells.size
            case "hidden":
                return np.exp(rng.uniform(0.6, 1.4) * self._field(self.hidden))
        total = np.full(len(cells.type), background)
        for _ in range(rng.integers(2, 4)):
            total += rng.uniform(0.2, 1) * self._of_type(self.present)
        if rng.random() < 0.5:
            total *= self._by_region(-1)
        if rng.random() < 0.5:
            total *= np.exp(0.6 * self._field(self.hidden + self.smooth))
        return total


def express(rng: Rng, cells: Cells, shape: tuple[int, int], n_genes: int) -> tuple[np.ndarray, tuple[str, ...]]:
    """Relative expression ``(cells, genes)`` float32 of any scale, and the kind of each gene.

    In addition to the pattern of its kind, every gene follows the RNA content of the cell, one of a few co-expression
    programmes, and independent noise.
    """
    sources = Programmes(rng, cells, shape)
    kinds = sources.kinds(n_genes)
    n = len(cells.type)
    expression = np.empty((n, n_genes), np.float32)
    for g, kind in enumerate(kinds):
        expression[:, g] = sources.expression(kind)
    content = cells.vitality * np.exp(rng.uniform(0, 0.6) * rng.standard_normal(n))
    latent = rng.standard_normal((n, max(2, n_genes // 8)), dtype=np.float32)
    member, loading = rng.integers(latent.shape[1], size=n_genes), rng.uniform(0, 0.5, n_genes).astype(np.float32)
    own = rng.uniform(0.1, 0.6, n_genes).astype(np.float32)
    noise = loading * latent[:, member] + own * rng.standard_normal((n, n_genes), dtype=np.float32)
    return expression * np.exp(noise) * content.astype(np.float32)[:, None], kinds


def splat(position_um: np.ndarray, shape: tuple[int, int], bin_um: float) -> sparse.csr_matrix:
    """Share of every cell in every bin, ``(ny * nx, cells)``; a cell is a square of ``CELL_UM`` or a bin if smaller.

    Columns sum to one except at the border, where parts of cells are beyond the grid.
    """
    width = min(CELL_UM, bin_um)
    low = (position_um - width / 2) / bin_um
    first = np.floor(low).astype(int)
    second_share = np.clip(low + width / bin_um - first - 1, 0, 1) * bin_um / width
    parts = []
    for dy in (0, 1):
        for dx in (0, 1):
            y, x = first[:, 0] + dy, first[:, 1] + dx
            share = np.prod(np.where([dy, dx], second_share, 1 - second_share), 1)
            on = np.flatnonzero((y >= 0) & (y < shape[0]) & (x >= 0) & (x < shape[1]))
            parts.append(np.stack([y[on] * shape[1] + x[on], on, share[on]]))
    rows, cols, shares = np.concatenate(parts, 1)
    matrix = (shares.astype(np.float32), (rows.astype(int), cols.astype(int)))
    return sparse.csr_matrix(matrix, shape=(shape[0] * shape[1], len(position_um)))


def binned(expression: np.ndarray, cells: Cells, shape: tuple[int, int], bin_um: float, blur_um: float) -> np.ndarray:
    """Relative expected counts per bin, ``(genes, ny, nx)`` float32, blurred by a Gaussian of ``blur_um``."""
    maps = (splat(cells.position_um, shape, bin_um) @ expression).T.reshape(-1, *shape)
    return ndimage.gaussian_filter(maps, blur_um / bin_um, axes=(1, 2)) if blur_um > 0.1 * bin_um else maps
