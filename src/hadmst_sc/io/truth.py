"""Read a truth onto the bins of a result: molecules, cells or bins with their table, or maps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import shapely
import xarray as xr
from scipy import sparse
from spatialdata import SpatialData

from hadmst_sc.io.cells import on_bins, read_cells
from hadmst_sc.io.counts import layers_of, rows_as_csr
from hadmst_sc.io.frame import systems_of
from hadmst_sc.io.match import positions, table_regions
from hadmst_sc.io.read import computed_here
from hadmst_sc.io.remedies import alike, set_identity
from hadmst_sc.io.resolve import affine, levels, systems, transform
from hadmst_sc.io.result import Result
from hadmst_sc.io.tissue import outlines
from hadmst_sc.io.values import broken, transformed
from hadmst_sc.section.arguments import shown
from hadmst_sc.section.errors import MissingKeyError, Problems, WrongTypeError

FEATURE = "feature_key"  # in the metadata of points: the column of the genes
DUST = 1e-6  # bins by which a bin may stick out of what is known


@dataclass(frozen=True, eq=False)
class Truth:
    """True counts of some genes on the grid of a result.

    Parameters
    ----------
    genes
        Genes of the result that the truth has, in the order of the result.
    read
        Returns the values of one of these genes, ``(rows,)``: by molecule bins, cells, or pixels.
    place
        ``(bins, rows)`` share of each row that lies in each bin of the flattened grid.
    known
        ``(ny, nx)`` bool, bins that the truth covers.
    noisy
        True if the values are counts; False if they are expected counts, without counting noise.
    """

    genes: tuple[str, ...]
    read: Callable[[int], np.ndarray]
    place: sparse.csr_array
    known: np.ndarray
    noisy: bool = True

    def of(self, gene: int) -> np.ndarray:
        """Return the map of a gene, ``(ny, nx)`` counts per bin."""
        return self._map(self.read(gene))

    def halves(self, gene: int) -> np.ndarray | None:
        """Return maps of two random halves of the counts of a gene, ``(2, ny, nx)``; ``None`` if they are not whole."""
        counts = self.read(gene)
        if not self.noisy or (counts != np.rint(counts)).any():
            return None
        half = np.random.default_rng(gene).binomial(counts.astype(np.int64), 0.5)
        return np.stack([self._map(half), self._map(counts - half)])

    def _map(self, values: np.ndarray) -> np.ndarray:
        return np.asarray(self.place @ values.astype(float)).reshape(self.known.shape)


@computed_here()
def read_truth(result: Result, truth: Any, holder: SpatialData, coordinate_system: str | None, owner: str) -> Truth:
    """Read a truth onto the grid of a result.

    Parameters
    ----------
    result
        The result; its genes are read.
    truth
        Name of an element of ``holder``, or an array.
    holder
        Holds the truth.
    coordinate_system
        System that truth and result share; ``None`` = that of the run if the truth is in it, else any.
    owner
        Name of the argument ``holder``, for messages.

    Raises
    ------
    KeyError
        If there is no such element, or truth and result share no coordinate system or no gene.
    TypeError
        If the truth is neither a name nor an array.
    ValueError
        If the truth cannot be read.
    """
    source = _Source(result, holder, coordinate_system, owner)
    if isinstance(truth, xr.DataArray | xr.DataTree | np.ndarray):
        return source.of_image(truth, "the image") if systems(truth) else source.of_grid(truth)
    if not isinstance(truth, str):
        raise WrongTypeError(
            f"`truth` needs the name of an element or an array, but is {shown(truth)}. Pass the name of the molecules "
            f"or of the table, with `truth_sdata=` if another object holds them."
        )
    if truth in holder.tables:
        return source.of_table(truth)
    if truth in holder.points:
        return source.of_molecules(truth)
    if truth in holder.images:
        return source.of_image(holder.images[truth], f"images/{truth}")
    raise MissingKeyError(_unknown(truth, holder, owner))


def _unknown(truth: str, holder: SpatialData, owner: str) -> str:
    tables = [name for name, table in holder.tables.items() if "spatialdata_attrs" in table.uns]
    having = [name for name in tables if truth in np.atleast_1d(holder.tables[name].uns["spatialdata_attrs"]["region"])]
    available = [*tables, *holder.points, *holder.images]
    close = having[0] if having else alike(truth, available)
    remedy = f"Pass `truth={close!r}`." if close else "If another object holds it, pass that as `truth_sdata=`."
    return f"`truth={truth!r}` needs a table, points or an image of `{owner}`. Available: {available}. {remedy}"


@dataclass(frozen=True, eq=False)
class _Source:
    """The object that holds a truth, and the result on whose grid it is read."""

    result: Result
    holder: SpatialData
    coordinate_system: str | None
    owner: str

    @property
    def shape(self) -> tuple[int, int]:
        ny, nx = self.result.labels.shape
        return ny, nx

    def of_table(self, key: str) -> Truth:
        """Counts of cells or bins, spread evenly over the area of each; those of points are in the bin of the point."""
        table, problems = self.holder.tables[key], Problems("the truth cannot be read")
        keys = table_regions(self.holder, table, key, problems)
        problems.raise_if_any()
        assert keys is not None  # for types: a problem otherwise
        regions, region_key, instance_key = keys
        kinds = (self.holder.shapes, self.holder.labels, self.holder.points)
        elements = {one: kind[one] for one in regions for kind in kinds if one in kind}
        sharing = [one for one in elements if systems(elements[one]).keys() & set(self.available)]
        if len(sharing) > 1 or not elements:
            raise MissingKeyError(
                f"`truth={key!r}` needs a table of one element, but it annotates {regions}, of which "
                f"{sharing if elements else 'none'} {'lie on the result' if elements else 'exists'}. Pass a part: "
                f"`truth_sdata={self.owner}.filter_by_coordinate_system(...)`."
            )
        region = (sharing or list(elements))[0]
        cells = read_cells(
            self.holder, region, self.place_of_result, self.available, self.to_bins, self.shape, problems, "truth"
        )
        problems.raise_if_any()
        assert cells is not None and cells.centres is not None  # for types: a problem otherwise
        rows = np.flatnonzero(table.obs[region_key].astype(str) == region)
        found = positions(np.asarray(table.obs[instance_key])[rows], pd.Index(cells.ids))
        if (found < 0).all():
            raise ValueError(
                f"`truth={key!r}` needs rows whose `obs[{instance_key!r}]` are ids of {region!r}, but none is. They "
                f"start with {table.obs[instance_key].iloc[0]!r} and {cells.ids[0]!r}. "
                f"If the rows are in its order: `{self.owner}[{key!r}].obs[{instance_key!r}] = "
                f"{self.owner}[{region!r}].index`."
            )
        rows, found = rows[found >= 0], found[found >= 0]
        genes = self.shared(table.var_names, f"`var_names` of {self.owner}[{key!r}]", table.var)
        counts = self.counts(key, rows, genes)
        overlap = cells.overlap[found]
        area = np.asarray(overlap.sum(1)).ravel()
        if cells.areal and region in self.holder.shapes:  # also of the part that is not on the grid
            system = next(name for name in self.available if name in systems(elements[region]))
            matrix = self.to_bins(system) @ affine(elements[region], system)
            area = on_bins(outlines(elements[region]), matrix).area.to_numpy()[found]
        place = (sparse.diags_array(1 / np.maximum(area, 1e-12)) @ overlap).T.tocsr()
        return Truth(genes, lambda gene: _column(counts, gene), place, covered(cells.centres[found], self.shape))

    def counts(self, key: str, rows: np.ndarray, genes: Sequence[str]) -> sparse.csc_array:
        """Counts of some rows and genes of a table."""
        table, place = self.holder.tables[key], f"{self.owner}[{key!r}]"
        if not table.var_names.is_unique:
            raise ValueError(f"`truth={key!r}` needs unique gene names. Call `{place}.var_names_make_unique()`.")
        found = None if table.X is None else rows_as_csr(table.X, rows, table.var_names.get_indexer(list(genes)))
        kind = "missing"
        if found is not None:
            bad = broken(found.data)
            law = None if bad.any() else transformed(found)
            kind = f"such as {found.data[bad][0]:g}" if bad.any() else law.what if law else ""
        if kind or found is None:
            layers = layers_of(table)
            best = "counts" if "counts" in layers else next(iter(layers), None)
            remedy = f"Set `{place}.X = {place}.layers[{best!r}]`." if best else "Read the table again from its files."
            raise ValueError(f"`truth={key!r}` needs counts in `X` of the table, but they are {kind}. {remedy}")
        return sparse.csc_array(found)

    def of_molecules(self, key: str) -> Truth:
        """Molecules, counted in the bin of each."""
        points = self.holder.points[key]
        column = points.attrs.get("spatialdata_attrs", {}).get(FEATURE)
        if column not in points.columns:
            names = set(self.result.table.var_names)
            having = [one for one in points.columns if names & set(points[one].head(1000).astype(str))]
            raise MissingKeyError(
                f"`truth={key!r}` needs the column of genes in its metadata, {FEATURE!r}, but that is {column!r}. "
                f"Available: {list(points.columns)}. Call `{self.owner}[{key!r}].attrs.setdefault('spatialdata_attrs', "
                f"{{}})[{FEATURE!r}] = {having[0] if having else 'gene'!r}`."
            )
        system = self.system(points, key)
        to_bins, (ny, nx) = self.to_bins(system) @ affine(points, system), self.shape
        genes = pd.Index(self.result.table.var_names.astype(str))
        total, seen = sparse.csr_array((ny * nx, len(genes))), np.zeros(len(genes), bool)
        hull, others = shapely.MultiPoint(), set[str]()
        for number in range(points.npartitions):
            part = points[["x", "y", column]].partitions[number].compute()
            xy, names = transform(to_bins, part[["x", "y"]].to_numpy(float)), part[column].astype("category")
            indices = genes.get_indexer(names.cat.categories.astype(str))
            gene = np.append(indices, -1)[names.cat.codes]  # a molecule without a gene has the code -1: the last
            xy, gene = xy[at := np.isfinite(xy).all(1)], gene[at]
            if len(xy) > 1:
                hull = shapely.union(hull, shapely.linestrings(xy).convex_hull).convex_hull
            seen[np.unique(gene[gene >= 0])] = True
            others.update(list(names.cat.categories.astype(str))[:3])
            x, y = np.floor(xy).T
            on = (gene >= 0) & (x >= 0) & (y >= 0) & (x < nx) & (y < ny)
            where = (y[on] * nx + x[on]).astype(int)
            total += sparse.coo_array((np.ones(on.sum()), (where, gene[on])), total.shape).tocsr()
        found = self.shared(genes[seen] if seen.any() else pd.Index(sorted(others)), f"`{column}` of {key!r}")
        counts = total.tocsc()[:, genes.get_indexer(list(found))]
        known = covered(shapely.get_coordinates(hull), self.shape)
        return Truth(found, lambda gene: _column(counts, gene), sparse.eye_array(ny * nx, format="csr"), known)

    def of_image(self, element: Any, name: str) -> Truth:
        """Maps with a transformation; a pixel is divided between bins by area."""
        image, system = levels(element)[0], self.system(element, name)
        matrix = self.to_bins(system) @ affine(element, system)
        (scale_x, skew, first_x), (skew_too, scale_y, first_y) = matrix[:2]
        if max(abs(skew), abs(skew_too)) > 1e-6 * min(scale_x, scale_y):
            raise ValueError(
                f"`truth`: {name} needs pixels parallel to the bins, but it is rotated or flipped: "
                f"{matrix[:2].round(6).tolist()}. Transform it: `spatialdata.transform(element, "
                f"to_coordinate_system={system!r})`, and pass the result."
            )
        (ny, nx), (height, width) = self.shape, image.shape[1:]
        rows, columns = _shares(height, scale_y, first_y, ny), _shares(width, scale_x, first_x, nx)
        return self._of_maps(image, sparse.csr_array(sparse.kron(rows, columns)), scale_x * scale_y)

    def of_grid(self, array: Any) -> Truth:
        """Maps on the grid of the result; genes need names, as a result has them in another order than its input."""
        ny, nx = self.shape
        named = isinstance(array, xr.DataArray) and "c" in array.coords
        if not named or array.dims != ("c", "y", "x") or array.shape[1:] != self.shape:
            raise ValueError(
                f"`truth` needs named genes and the bins of the result, (genes, {ny}, {nx}), but is an array of shape "
                f"{np.shape(array)} {'with' if named else 'without'} names. Pass "
                f"`truth=xarray.DataArray(array, dims=('c', 'y', 'x'), coords={{'c': genes}})` on these bins."
            )
        return self._of_maps(array, sparse.eye_array(ny * nx, format="csr"), 1.0)

    def _of_maps(self, image: xr.DataArray, place: sparse.csr_array, area: float) -> Truth:
        channels = [str(gene) for gene in image.coords["c"].values]
        genes = self.shared(pd.Index(channels), "channels of `truth`")
        numbers = [channels.index(gene) for gene in genes]

        def read(gene: int) -> np.ndarray:
            return np.nan_to_num(np.asarray(image.data[numbers[gene]], float).ravel())

        first = np.asarray(image.data[numbers[0]], float)
        known = place @ np.isfinite(first).ravel().astype(float) * area >= 1 - DUST
        some = map(read, range(min(len(genes), 8)))
        return Truth(genes, read, place, known.reshape(self.shape), all((one == np.rint(one)).all() for one in some))

    @property
    def available(self) -> list[str]:
        """Coordinate systems that may be used, the preferred one first."""
        found = list(dict.fromkeys(systems_of(self.result)))
        if self.coordinate_system is None:
            return found
        if self.coordinate_system not in found:
            raise MissingKeyError(
                f"`coordinate_system={self.coordinate_system!r}` is not one of {self.place_of_result}. "
                f"Pass `coordinate_system={found[0]!r}`."
            )
        return [self.coordinate_system]

    @property
    def place_of_result(self) -> str:
        return f"labels/{self.result.region}"

    def system(self, element: Any, name: str) -> str:
        """Coordinate system that an element shares with the result."""
        if shared := [one for one in self.available if one in systems(element)]:
            return shared[0]
        raise MissingKeyError(
            f"`truth`: {name!r} shares no coordinate system with {self.place_of_result}: it has "
            f"{list(systems(element))}, the result {self.available}. "
            f"{set_identity(name, self.available[0]).replace('sdata[', f'{self.owner}[')}"
        )

    def to_bins(self, system: str) -> np.ndarray:
        """Return the affine from a coordinate system to bins of the result."""
        return np.asarray(np.linalg.inv(self.result.to_system(system)))

    def shared(self, names: pd.Index, place: str, var: pd.DataFrame | None = None) -> tuple[str, ...]:
        """Genes of the result among some names, in its order."""
        wanted = self.result.table.var_names
        found = tuple(str(gene) for gene in wanted if gene in names)
        if found:
            return found
        having = [] if var is None else [one for one in var if set(wanted) & set(var[one].astype(str))]
        of_truth = place.removeprefix("`var_names` of ")
        remedy = "Rename the genes of the truth as those of the result."
        if having:
            remedy = f"Call `{of_truth}.var_names = {of_truth}.var[{having[0]!r}].astype(str)`."
        raise MissingKeyError(
            f"`truth` needs genes of the result, such as {list(wanted[:3])}, but {place} are others, such as "
            f"{list(names[:3])}. {remedy}"
        )


def _column(counts: sparse.csc_array, gene: int) -> np.ndarray:
    return np.asarray(counts[:, [gene]].toarray()).ravel()


def covered(xy: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Bins that lie wholly within the convex hull of some points, ``(ny, nx)`` bool; all of them are known."""
    ny, nx = shape
    xy = xy[np.isfinite(xy).all(1)]
    if len(xy) < 3:
        return np.zeros(shape, bool)
    hull = shapely.linestrings(xy).convex_hull.buffer(DUST)
    shapely.prepare(hull)
    y, x = np.mgrid[: ny + 1, : nx + 1]
    corner = shapely.intersects_xy(hull, x.ravel(), y.ravel()).reshape(y.shape)
    return np.asarray(corner[1:, 1:] & corner[1:, :-1] & corner[:-1, 1:] & corner[:-1, :-1])


def _shares(n_pixels: int, scale: float, first: float, n_bins: int) -> sparse.csr_array:
    """``(bins, pixels)`` share of each pixel of a row that lies in each bin of a row."""
    low = first + scale * np.arange(n_pixels)
    bins = np.arange(n_bins)[:, None]
    share = (np.minimum(low + scale, bins + 1) - np.maximum(low, bins)) / scale
    return sparse.csr_array(np.where(share > DUST, share, 0.0))
