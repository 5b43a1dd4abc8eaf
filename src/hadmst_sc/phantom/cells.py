"""Cells of a phantom: positions, types, and the appearance of each type in the H&E."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from hadmst_sc.phantom.fields import LAYOUT_UM, random_field, sample
from hadmst_sc.phantom.tissue import Layout

Rng = np.random.Generator
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
