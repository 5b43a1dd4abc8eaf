"""Find results in a SpatialData object by their metadata, also after their elements were renamed or cropped."""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import dask.array as da
import numpy as np
import pandas as pd
import xarray as xr
from anndata import AnnData
from spatialdata import SpatialData
from spatialdata.models import get_table_keys

from hadmst_sc.io.elements import at_bins
from hadmst_sc.io.given import check_sdata
from hadmst_sc.io.remedies import alike, he_of, spelt
from hadmst_sc.io.resolve import affine, levels, systems, transform
from hadmst_sc.section.errors import MissingKeyError
from hadmst_sc.section.observation import PROVENANCE_KEY, OutputNames

INSTANCE_KEY = "bin_id"


@dataclass(frozen=True, eq=False)
class Result:
    """One result: a table of bins, and its labels and images.

    Names change: :func:`spatialdata.concatenate` adds a suffix to all of them, and users rename elements. The table
    names its labels. Images have the expected name, or otherwise hold the table's values on the bins of the labels.

    Parameters
    ----------
    table_key
        Name of the table.
    region
        Name of the labels that it annotates.
    named_image
        Image that the user named; ``None`` = search for it.
    """

    sdata: SpatialData
    table_key: str
    region: str
    named_image: str | None = None

    @cached_property
    def table(self) -> AnnData:
        """The rows of this result: the table itself, or a view if the table holds several sections."""
        table = self.sdata.tables[self.table_key]
        return table if self._rows_of_region.all() else table[self._rows_of_region]

    @cached_property
    def _rows_of_region(self) -> np.ndarray:
        table = self.sdata.tables[self.table_key]
        return np.asarray(table.obs[get_table_keys(table)[1]] == self.region)

    @property
    def record(self) -> Mapping[str, Any]:
        """Record of the run; empty if it is lost, or may belong to another section in the table."""
        record: Mapping[str, Any] = self.sdata.tables[self.table_key].uns.get(PROVENANCE_KEY, {})
        return record if "bin_um" in record and self._rows_of_region.all() else {}

    @property
    def provenance(self) -> Mapping[str, Any]:
        """Record of the run.

        Raises
        ------
        KeyError
            If it is lost, or may belong to another section in the table.
        """
        if self.record:
            return self.record
        if self._rows_of_region.all():
            raise MissingKeyError(
                f"tables/{self.table_key}: has lost the record of its run, `uns[{PROVENANCE_KEY!r}]`. {again(self)}"
            )
        raise MissingKeyError(
            f"tables/{self.table_key}: holds several sections, and `uns[{PROVENANCE_KEY!r}]` does not say which run "
            f"made which. Join sections with `spatialdata.concatenate(sections, concatenate_tables=False)`."
        )

    @cached_property
    def first_key(self) -> str:
        """Name under which the result was written."""
        key = self.sdata.tables[self.table_key].uns.get(PROVENANCE_KEY, {}).get("key_added")
        return str(key) if key else self.region.rpartition("_bins")[0] or self.region

    @cached_property
    def _suffix(self) -> str:
        first = OutputNames(self.first_key).bins
        return self.region.removeprefix(first) if self.region.startswith(first) else ""

    @property
    def key(self) -> str:
        """Present name of the result."""
        return self.image_key or self.expected_keys[0]

    @property
    def expected_keys(self) -> tuple[str, str]:
        """Names of image and table, if all names have changed in the same way."""
        names = OutputNames(self.first_key)
        return f"{names.image}{self._suffix}", f"{names.table}{self._suffix}"

    def now(self, name: str, available: Container[str]) -> str | None:
        """Return the present name of an element or system that was called ``name`` during the run."""
        return next((one for one in (f"{name}{self._suffix}", name) if one in available), None)

    def source(self, parameter: str, available: Container[str]) -> str:
        """Return the present name of an element or system that the run read; the old name if it is missing."""
        name = str(self.provenance[parameter])
        return self.now(name, available) or name

    @property
    def labels(self) -> xr.DataArray:
        """Labels of the bins."""
        if self.region not in self.sdata.labels:
            raise MissingKeyError(
                f"labels/{self.region}: is missing, but tables/{self.table_key} needs it for the positions of its "
                f"bins. If it was renamed, call `sdata.set_table_annotates_spatialelement({self.table_key!r}, "
                f"region=..., region_key=..., instance_key=...)`. Otherwise: {again(self)}"
            )
        return levels(self.sdata.labels[self.region])[0]

    @cached_property
    def image_key(self) -> str | None:
        """Name of the image of the estimate; ``None`` if it is missing."""
        return self.named_image or self._find(self.first_key, self.table.X)

    @cached_property
    def std_key(self) -> str | None:
        """Name of the image of the standard deviation; ``None`` if there is none."""
        return self._find(OutputNames(self.first_key).std, self.table.layers.get("std"))

    def image(self, *, std: bool = False) -> xr.DataArray:
        """Return the estimate or its standard deviation, ``(genes, y, x)`` counts per bin."""
        found = self.std_key if std else self.image_key
        if found is None:
            first = OutputNames(self.first_key)
            raise MissingKeyError(
                f"images/{first.std if std else first.image}{self._suffix}: is missing, or no longer aligned with "
                f"labels/{self.region}. Without this image it cannot be checked that the table still contains counts. "
                f"If the image was renamed, pass its name as `key_added=`. Otherwise: {again(self)}"
            )
        return levels(self.sdata.images[found])[0]

    def maps_at_bins(self, columns: np.ndarray | None = None, *, std: bool = False) -> np.ndarray | da.Array:
        """Return genes at the bins, ``(bins, genes)``, from the image, as the table may have been normalised.

        ``columns`` of the table are read; ``None`` = all.
        """
        image, (_, *place) = self.image(std=std), self.places
        names = self.table.var_names if columns is None else self.table.var_names[columns]
        channels = [str(gene) for gene in image.coords["c"].values]
        if unknown := [gene for gene in names if gene not in channels]:
            raise MissingKeyError(
                f"tables/{self.table_key}: `var_names` needs genes of images/{self.key}, but {unknown[:5]} are not. "
                f"Names that the run wrote: {channels[:5]}. Set `var_names` back to them for this call."
            )
        order = [channels.index(gene) for gene in names]
        values = at_bins(image.data if order == list(range(len(channels))) else image.data[order], *place)
        return da.asarray(values) if isinstance(self.table.X, da.Array) else np.asarray(values)

    @cached_property
    def places(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Rows of the table whose bins are on the labels, and the row and column of each bin there.

        Read from the ids of the labels, because ``array_row`` and ``array_col`` are wrong for cropped labels.
        """
        labels = np.asarray(self.labels.data)
        where = np.flatnonzero(labels)
        ids = pd.Index(labels.ravel()[where])
        if not ids.is_unique:
            raise MissingKeyError(
                f"labels/{self.region}: were resampled, as ids occur more than once; bins have no position there. "
                f"{again(self)}"
            )
        found = ids.get_indexer(np.asarray(self.table.obs[get_table_keys(self.table)[2]]))
        rows = np.flatnonzero(found >= 0)
        return rows, *np.divmod(where[found[rows]], labels.shape[1])

    @cached_property
    def _frame(self) -> tuple[str, np.ndarray]:
        """Coordinate system of the run, and offset (x, y) in bins from the labels to the positions in the table.

        The offset is not zero after a crop that starts in the first half of a bin: spatialdata (0.7) then keeps that
        bin, but its transformation starts at the next one. Other offsets mean that the user moved something.
        """
        element = self.sdata.labels[self.region]
        available, (rows, y, x) = list(systems(element)), self.places
        known = self.now(str(self.record.get("coordinate_system")), available)
        if not available:
            raise MissingKeyError(
                f"labels/{self.region}: have no transformation to any coordinate system. {again(self)}"
            )
        if "spatial" in self.table.obsm and len(rows):
            xy = np.asarray(self.table.obsm["spatial"])[rows]
            for system in [known] if known else available:  # it may have been renamed
                apart = transform(np.linalg.inv(affine(element, system)), xy) - np.c_[x, y] - 0.5
                whole = np.rint(apart[0])
                if np.abs(whole).max() <= 1 and np.allclose(apart, whole, atol=1e-3):
                    return system, whole
        return known or available[0], np.zeros(2)

    @property
    def system(self) -> str:
        """Present name of the coordinate system of the run."""
        return self._frame[0]

    @property
    def offset(self) -> np.ndarray:
        """Offset (x, y) in bins, to be added to positions on the labels before their transformation."""
        return self._frame[1]

    def to_system(self, system: str) -> np.ndarray:
        """Return the ``(3, 3)`` affine on (x, y, 1) from bins of the labels to a coordinate system."""
        shift = np.eye(3)
        shift[:2, 2] = self.offset
        return affine(self.sdata.labels[self.region], system) @ shift

    def set_layer(self, name: str, values: Any) -> None:
        """Write values of the bins on the labels into a layer of the table; NaN for all other rows."""
        table, rows = self.sdata.tables[self.table_key], np.flatnonzero(self._rows_of_region)[self.places[0]]
        if len(rows) < table.n_obs:
            whole = np.full(table.shape, np.nan, np.float32)
            if name in table.layers and not self._rows_of_region.all():  # values of another section
                whole[:] = table.layers[name]
            whole[rows] = values
            values = whole
        table.layers[name] = values

    def untouched(self, gene: str) -> bool:
        """Return True if this gene in the table is unchanged since the run, equal to the image."""
        return self._same(self.image(), gene, self.table.X)

    def _same(self, image: xr.DataArray, gene: str, values: Any) -> bool:
        rows, *place = self.places
        column = values[:, self.table.var_names.get_loc(gene)]
        column = np.asarray(column.compute() if isinstance(column, da.Array) else column).ravel()
        return np.array_equal(np.asarray(at_bins(image.sel(c=[gene]).data, *place)[:, 0]), column[rows])

    def _find(self, first: str, values: Any) -> str | None:
        named = self.now(first, self.sdata.images)
        has_labels = self.region in self.sdata.labels
        if named is not None:
            image = levels(self.sdata.images[named])[0]
            return named if not has_labels or image.shape[1:] == self.labels.shape else None
        if values is None or not has_labels:
            return None
        genes = self.table.var_names
        others = (name for name in self.sdata.images if self.on_bins(name))
        return next((n for n in others if self._same(levels(self.sdata.images[n])[0], genes[0], values)), None)

    def on_bins(self, image_key: str) -> bool:
        """Return True if an image has the bins of the labels and the genes of the table."""
        if self.region not in self.sdata.labels or image_key not in self.sdata.images:
            return False
        element, labels = self.sdata.images[image_key], self.sdata.labels[self.region]
        image = levels(element)[0]
        shared = systems(element).keys() & systems(labels).keys()
        return (
            image.shape[1:] == self.labels.shape
            and {str(gene) for gene in image.coords["c"].values} >= set(self.table.var_names)
            and any(np.allclose(affine(element, name), affine(labels, name)) for name in shared)
        )


def results(sdata: SpatialData) -> list[Result]:
    """Return all results in an object; a table of several sections counts as several."""
    found = []
    for name, table in sdata.tables.items():
        try:
            regions, _, instance_key = get_table_keys(table)
        except (KeyError, ValueError):  # annotates nothing
            continue
        if PROVENANCE_KEY in table.uns or instance_key == INSTANCE_KEY:
            found += [Result(sdata, name, region) for region in ([regions] if isinstance(regions, str) else regions)]
    return found


def find_result(sdata: SpatialData, key_added: str) -> Result:
    """Find a result by its present name, the name of its table, labels or image, or the name it was written under.

    Raises
    ------
    TypeError
        If ``sdata`` is not a SpatialData, or ``key_added`` not a str.
    KeyError
        If there is no such result, or more than one.
    """
    check_sdata(sdata)
    if not isinstance(key_added, str):
        raise TypeError(f"`key_added` needs the name of a result, but is {key_added!r}. Pass `key_added='superres'`.")
    every = results(sdata)
    with_image = [replace(one, named_image=key_added) for one in every if one.on_bins(key_added)]
    ways = (
        [one for one in with_image if one.table_key == OutputNames(key_added).table],
        [one for one in every if one.expected_keys == (key_added, one.table_key)],
        [one for one in every if key_added in (one.expected_keys[0], one.table_key, one.region)],
        with_image,
        [one for one in every if key_added == one.first_key],
    )
    found: list[Result] = next((some for some in ways if some), [])
    if len(found) == 1:
        return found[0]
    names = [one.key for one in found or every]
    if found:
        raise MissingKeyError(
            f"`key_added={key_added!r}` needs to name one result, but {names} match it. Try `key_added={names[0]!r}`."
        )
    remedy = f" Try `key_added={alike(key_added, names) or names[0]!r}`." if names else f" {first(sdata, key_added)}"
    raise MissingKeyError(
        f"`key_added={key_added!r}`: there is no table {OutputNames(key_added).table!r}, and no other result with "
        f"that name. Available: {names}.{remedy}"
    )


def columns_of(var_names: pd.Index, genes: Sequence[str] | None, place: str) -> np.ndarray:
    """Return columns of some genes in a table, in the order of the names; ``None`` = all."""
    if genes is None:
        return np.arange(len(var_names))
    wanted = [genes] if isinstance(genes, str) else list(genes) if isinstance(genes, Iterable) else []
    if not wanted:
        raise MissingKeyError(f"`genes` needs names of genes of {place}, but is {genes!r}. Pass `genes=None` for all.")
    if unknown := [name for name in wanted if name not in var_names]:
        raise MissingKeyError(
            f"`genes` needs genes of {place}, but {unknown[:5]} are not. It has {list(var_names[:5])}, .... "
            f"Pass `genes={spelt(wanted, var_names)}`."
        )
    return np.asarray(var_names.get_indexer(wanted))


VERB = "hadmst_sc.tl.superresolve"
# Values omitted from the call.
NAMED = {"table_key": "table", "layer": None, "obsm_key": None, "spot_um": 55.0, "pitch_um": 100.0}


def again(result: Result, genes: Sequence[str] = (), **changes: Any) -> str:
    """Return a sentence with the call that makes a result again; without code if an input of the run is missing.

    Parameters
    ----------
    result
        The result to replace, with the same section, bins, genes and model. If its elements were renamed, the new
        result gets a new name.
    genes
        Additional genes.
    changes
        Other arguments of the call.
    """
    record, sdata = result.record, result.sdata
    image = result.now(str(record.get("image_key")), sdata.images)
    table = result.now(str(record.get("table_key")), sdata.tables)
    if image is None or table is None:
        return f"Run `{VERB}` again."
    options: dict[str, Any] = {name: record.get(name) for name in NAMED} | {"table_key": table}
    options = {name: value for name, value in options.items() if value not in (None, "none", NAMED[name])}
    if not isinstance(get_table_keys(sdata.tables[table])[0], str):
        options["shapes_key"] = result.source("shapes_key", sdata)
    if len(available := systems(sdata.images[image])) > 1:
        options["coordinate_system"] = result.source("coordinate_system", available)
    options["bin_um"] = float(record["bin_um"])
    if record.get("registration") == "off":
        options["align"] = False
    if isinstance(record.get("strength_of_cells"), Mapping) and (cells := result.now(str(record["cells"]), sdata)):
        options["cells_key"] = cells
    if record.get("model") == "closed form":
        options["model"] = None
    key = _key(result)
    options |= {"key_added": key} if key != "superres" else {}
    options |= {"overwrite": True} if key == result.first_key else {}
    listed = "".join(f", {name}={value!r}" for name, value in (options | changes).items())
    names = ", ".join([f"*sdata[{result.table_key!r}].var_names", *map(repr, genes)])
    return f"Call `{VERB}(sdata, {image!r}, genes=[{names}]{listed})`."


def first(sdata: SpatialData, key_added: str) -> str:
    """Return a sentence with the call that makes the first result of a section."""
    named = "" if key_added == "superres" else f", key_added={key_added!r}"
    image = he_of(sdata)
    return f"Call `{VERB}(sdata, {image!r}{named})` first." if image else f"Call `{VERB}` first."


def _key(result: Result) -> str:
    """Return the name of the result if it can be replaced, else a free name."""
    key = result.first_key
    return key if OutputNames(key).table == result.table_key else free_key(result.sdata, key)


def free_key(sdata: SpatialData, key: str) -> str:
    """Return a name for another result that no element uses."""
    number = 2
    while any(f"{key}_{number}{part}" in sdata for part in ("", "_std", "_bins", "_table")):
        number += 1
    return f"{key}_{number}"
