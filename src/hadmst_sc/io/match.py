"""Match the rows of a table to its spots, and write code that keeps a part of the spots."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse
from spatialdata import SpatialData
from spatialdata.models import TableModel, get_table_keys

from hadmst_sc.io.values import NO, are_single, column, unclear, words
from hadmst_sc.section.errors import Problems

IN_TISSUE = "in_tissue"  # column of `obs`, as Space Ranger's readers name it
# Key in `attrs` of the frame of an element that is not stored as shapes.
KIND = "hadmst_sc_kind"
# Parts of an element to keep, as code for shapes and for lazy points.
FINITE = "[{at}.abs().max(axis=1, skipna=False) < float('inf')]"
PLACES = "[~{at}.duplicated()]"
IDS = "[~{frame}.index.duplicated()]"
RENUMBERED = ".reset_index(drop=True)"
_WHOLE = re.compile(r"(0|[1-9]\d*)(\.0+)?")


def table_regions(
    sdata: SpatialData, table: AnnData, table_key: str, problems: Problems
) -> tuple[list[str], str, str] | None:
    """Return the regions that a table annotates and the names of its region and instance columns."""
    attrs = table.uns.get(TableModel.ATTRS_KEY)
    found = None
    if attrs is not None and not isinstance(attrs, dict):
        wrong = f"`uns[{TableModel.ATTRS_KEY!r}]` is of type {type(attrs).__name__}, not a dictionary"
    else:
        try:
            found = get_table_keys(table)
            absent = [column for column in found[1:] if column not in table.obs]
            wrong = f"its metadata name the columns {absent}, which are not in `obs`" if absent else ""
        except (ValueError, KeyError, TypeError):
            wrong = "names no region"
    if wrong or found is None:
        problems.add(f"tables/{table_key}: needs to annotate the spots, but {wrong}. {_annotation(sdata, table_key)}")
        return None
    if not are_single(
        table.obs, "obs", (*found[1:], IN_TISSUE), f"tables/{table_key}", f"sdata[{table_key!r}]", problems
    ):
        return None
    regions = [found[0]] if isinstance(found[0], str) else [str(one) for one in found[0]]
    return regions, found[1], found[2]


def _annotation(sdata: SpatialData, table_key: str) -> str:
    """Return code that makes a table annotate the shapes whose ids it holds; a sentence if not exactly one fits."""
    table = sdata.tables[table_key]
    columns = {"obs_names": table.obs_names, **{f"obs[{name!r}]": column(table.obs, name) for name in table.obs}}
    fitting: dict[bytes, tuple[str, str]] = {}
    for region, shapes in sdata.shapes.items():
        for source, ids in columns.items():
            places = positions(np.asarray(ids), shapes.index) if shapes.index.is_unique else np.array([-1])
            if len(places) and (places >= 0).all() and len(set(places.tolist())) == len(places):
                fitting.setdefault(region.encode() + places.tobytes(), (region, source))
    if len(fitting) != 1:
        return (
            f"Connect its rows to shapes: `sdata.set_table_annotates_spatialelement({table_key!r}, region=..., "
            f"region_key=..., instance_key=...)` with columns of `obs` that hold the region's name and the ids of its "
            f"index. Available: shapes {list(sdata.shapes)}, columns {list(table.obs)}."
        )
    region, source = next(iter(fitting.values()))
    here, lines = f"sdata[{table_key!r}]", []
    named = [name for name in table.obs if (column(table.obs, name).astype(str) == region).all()]
    region_key, instance_key = named[0] if named else "region", "spot_id" if source == "obs_names" else source[5:-2]
    lines += [] if named else [f"{here}.obs['region'] = {region!r}"]
    lines += [f"{here}.obs['spot_id'] = {here}.obs_names"] if source == "obs_names" else []
    keys = {"region": region, "region_key": region_key, "instance_key": instance_key}
    lines.append(f"{here}.uns[{TableModel.ATTRS_KEY!r}] = {keys}")
    return f"Call `{'; '.join(lines)}`."


def match(
    table: AnnData, table_key: str, shapes: Any, shapes_key: str, keys: tuple[str, str], problems: Problems
) -> tuple[np.ndarray, np.ndarray, list[str]] | None:
    """Match rows of the table and of the shapes, in the order of the shapes; also return notes on excluded rows.

    An inner join of ids, without the rows with ``obs["in_tissue"]`` 0.
    """
    region_key, instance_key = keys
    rows = np.flatnonzero((table.obs[region_key].astype(str) == shapes_key).to_numpy())
    if not len(rows):
        there = table.obs[region_key].astype(str).unique().tolist()
        remedy = f" Call `sdata[{table_key!r}].obs[{region_key!r}] = {shapes_key!r}`." if len(there) == 1 else ""
        problems.add(
            f"tables/{table_key}: at least one row needs {shapes_key!r} in `obs[{region_key!r}]`, but its values are "
            f"{there[:5]}.{remedy}"
        )
        return None
    ids, index = np.asarray(table.obs[instance_key])[rows], shapes.index
    places = None if _repeated(table, table_key, shapes, shapes_key, keys, rows, problems) else positions(ids, index)
    if places is None:
        return None
    found = places >= 0
    if not found.any():
        problems.add(_unmatched(table, table_key, shapes, shapes_key, instance_key, rows))
        return None
    left_out = []
    if not found.all():
        left_out.append(
            f"tables/{table_key}: {(~found).sum():,} of {len(ids):,} rows have no spot in {place(shapes, shapes_key)} "
            f"and are left out"
        )
    rows, places = rows[found], places[found]
    off = off_tissue(table)[rows]
    if off.all():
        problems.add(
            f"tables/{table_key}: spots on tissue are needed, but `obs[{IN_TISSUE!r}]` is 0 for all {len(off):,} of "
            f"{shapes_key!r}. If the column is wrong, read all spots: `del sdata[{table_key!r}].obs[{IN_TISSUE!r}]`."
        )
        return None
    if IN_TISSUE in table.obs and (others := unclear(table.obs[IN_TISSUE].iloc[rows])):
        left_out.append(
            f"tables/{table_key}: obs[{IN_TISSUE!r}] has the values {others[:5]}, which are neither 0 nor 1: these "
            f"spots count as on tissue"
        )
    if off.any():
        left_out.append(
            f"tables/{table_key}: {off.sum():,} of {len(off):,} spots have obs[{IN_TISSUE!r}] = 0 and are left out"
        )
    rows, places = rows[~off], places[~off]
    order = np.argsort(places, kind="stable")
    return rows[order], places[order], left_out


def off_tissue(table: AnnData) -> np.ndarray:
    """Return ``(rows,)`` bool, True for rows marked as off the tissue; missing values count as on tissue."""
    if IN_TISSUE not in table.obs:
        return np.zeros(table.n_obs, bool)
    return words(table.obs[IN_TISSUE]).isin(NO).to_numpy(bool)


def positions(ids: np.ndarray, index: pd.Index) -> np.ndarray:
    """Return the position of each id in a unique index, -1 if it is missing.

    Files do not always keep types: if ids do not match exactly, 5, 5.0, ``"5"`` and ``b"5"`` count as equal, unless
    this makes two ids of either side equal.
    """
    exact = index.get_indexer(pd.Index(ids))
    if (exact >= 0).all():
        return exact
    texts, own = (pd.Series([_text(one) for one in values], dtype=object) for values in (ids, index))
    if texts.dropna().is_unique and own.is_unique:
        alike = pd.Index(own).get_indexer(pd.Index(texts))
        alike[texts.isna()] = -1
        if (alike >= 0).sum() > (exact >= 0).sum():
            return alike
    return exact


def _text(one: Any) -> str | None:
    if isinstance(one, bytes):
        one = one.decode(errors="replace")
    if isinstance(one, str):
        whole = _WHOLE.fullmatch(one.strip())
        return whole[1] if whole else one.strip()
    if pd.isna(one):
        return None
    return str(int(one)) if isinstance(one, float | np.floating) and float(one).is_integer() else str(one)


def _repeated(
    table: AnnData,
    table_key: str,
    shapes: Any,
    shapes_key: str,
    keys: tuple[str, str],
    rows: np.ndarray,
    problems: Problems,
) -> bool:
    """Add problems for ids shared by several spots or rows, with code that keeps the first of copies."""
    before, here = len(problems.found), f"sdata[{table_key!r}]"
    index, ids = shapes.index, pd.Series(np.asarray(table.obs[keys[1]])[rows])
    if not index.is_unique:
        twice = index[index.duplicated()].unique().tolist()
        problems.add(
            f"{place(shapes, shapes_key)}: its index has duplicates ({len(twice):,} ids, such as {twice[:3]}), so "
            f"counts and spots cannot be matched one to one. "
            + (
                f"The table numbers all spots in their order; do the same: `{code(shapes, shapes_key, RENUMBERED)}`."
                if _are_numbers(ids, index)
                else f"If they are copies, keep the first of each: `{code(shapes, shapes_key, IDS)}`."
            )
        )
    if not ids.map(pd.api.types.is_hashable).all():
        problems.add(
            f"tables/{table_key}: `obs[{keys[1]!r}]` needs ids that are numbers or text, as the index of "
            f"{place(shapes, shapes_key)} has them, but some are lists or other objects. Set it to the id of each spot."
        )
        return True
    twice = (ids.duplicated() & ids.notna()).to_numpy()
    if twice.any():
        first = ids.map({one: i for i, one in reversed(list(enumerate(ids)))}).to_numpy()[twice].astype(int)
        copies = _equal_rows(table.X, rows[twice], rows[first])
        problems.add(
            f"tables/{table_key}: `obs[{keys[1]!r}]` has duplicates ({twice.sum():,} rows, such as "
            f"{ids[twice].tolist()[:3]}), so counts and spots cannot be matched one to one. "
            + (
                f"They are copies; keep the first of each: `sdata[{table_key!r}] = "
                f"{here}[~{here}.obs.duplicated({list(keys)})].copy()`."
                if copies
                else f"Their counts differ, so they are different spots, perhaps of several sections: give each "
                f"section its own shapes and its own name in `obs[{keys[0]!r}]`."
            )
        )
    return len(problems.found) > before


def _are_numbers(ids: pd.Series, index: pd.Index) -> bool:
    """Return True if ids number the spots from 0, while the index of the spots restarts in each of several parts."""
    if not (pd.api.types.is_integer_dtype(ids) and pd.api.types.is_integer_dtype(index)):
        return False
    own = np.asarray(index)
    parts = own[0] == 0 and ((own[1:] == own[:-1] + 1) | (own[1:] == 0)).all()
    return bool(parts and ids.is_unique and ids.between(0, len(own) - 1).all() and not ids.isin(own).all())


def _equal_rows(x: Any, some: np.ndarray, others: np.ndarray) -> bool:
    if not (sparse.issparse(x) or isinstance(x, np.ndarray)):
        return False
    differ = x[some] != x[others]
    return not (differ.nnz if sparse.issparse(differ) else np.count_nonzero(differ))


def _unmatched(
    table: AnnData, table_key: str, shapes: Any, shapes_key: str, instance_key: str, rows: np.ndarray
) -> str:
    """Describe ids of which none is in the index of the shapes, and suggest the column or part of the ids that is."""
    index = shapes.index
    here, ids = f"sdata[{table_key!r}]", pd.Series(np.asarray(table.obs[instance_key])[rows])
    options = {f"{here}.obs_names": table.obs_names[rows]}
    others = {name: column(table.obs, name) for name in table.obs if name != instance_key}
    options |= {f"{here}.obs[{name!r}]": values.to_numpy()[rows] for name, values in others.items()}
    if ids.map(lambda one: isinstance(one, str)).all():
        cut = ids.str.replace(r"-\d+$", "", regex=True)
        options[f"{here}.obs[{instance_key!r}].astype(str).str.replace(r'-\\d+$', '', regex=True)"] = cut.to_numpy()
    found: dict[bytes, str] = {}
    for found_in, values in options.items():
        places = positions(np.asarray(values), index)
        if (places >= 0).mean() > 0.5 and len(set(places[places >= 0].tolist())) == (places >= 0).sum():
            found.setdefault(places.tobytes(), found_in)
    remedy = (
        f"Call `{here}.obs[{instance_key!r}] = {next(iter(found.values()))}`."
        if len(found) == 1
        else f"Set `obs[{instance_key!r}]` to the id of each row's spot in `sdata[{shapes_key!r}].index`; no column of "
        f"the table identifies the spots."
    )
    return (
        f"tables/{table_key}: no value of `obs[{instance_key!r}]` is in the index of {place(shapes, shapes_key)} (they "
        f"start with {ids.tolist()[0]!r} and {index.tolist()[0] if len(index) else None!r}). {remedy}"
    )


def place(shapes: Any, key: str) -> str:
    """Return the path of the spots in the user's object: ``"shapes/visium"`` or ``"points/visium"``."""
    return f"{shapes.attrs.get(KIND, 'shapes')}/{key}"


def code(shapes: Any, key: str, part: str) -> str:
    """Return code that replaces an element by a part of itself and keeps its transformations.

    Parameters
    ----------
    part
        One of the constants of this module.
    """
    here = f"sdata[{key!r}]"
    if shapes.attrs.get(KIND) != "points":
        return f"{here} = {here}{part.format(frame=here, at=f'{here}.bounds')}"
    # A dask table has no `bounds`, and does not find duplicates across its partitions.
    kept = "frame" + part.format(frame="frame", at="frame[['x', 'y']]")
    return (
        f"from spatialdata.models import PointsModel; from spatialdata.transformations import get_transformation; "
        f"frame = {here}.compute(); {here} = PointsModel.parse({kept}, transformations=get_transformation({here}, "
        f"get_all=True))"
    )
