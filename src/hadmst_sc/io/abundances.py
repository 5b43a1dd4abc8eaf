"""Abundances of cell types in ``obsm``, read as if they were counts of genes.

Everything behind :mod:`.read` needs non-negative numbers per spot, whose noise is that of counting. The number of cells
of a type in a spot is such a number, and its estimate need not be whole.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Unpack

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse
from spatialdata import SpatialData

from hadmst_sc.io.counts import Matrix
from hadmst_sc.io.given import check_sdata
from hadmst_sc.io.read import read_observation
from hadmst_sc.section.arguments import TEXT, SectionArguments, optional
from hadmst_sc.section.errors import MissingKeyError, Problems, logger
from hadmst_sc.section.observation import Observation

PARTS = 2**16  # of a cell: the checks of counts accept whole numbers only
MOST = 10_000  # cells of one type in one spot; more is an intensity, a position or a count of molecules
SHARES = (1, 100)  # totals of proportions
FEW, LARGE_UM = 1.5, 50  # cells in a spot of that diameter, below which they are probably no cells
SAME_TOTAL = 0.02  # largest relative distance from the median of nearly all totals that are proportions
TYPICAL = 8  # cells in a Visium spot, for the remedy
POSITIONS = 3  # most columns that may be positions, if they have no names


class _WithTable(SpatialData):
    """The same section with another table; all else is shared, and nothing is validated again."""

    def __init__(self, sdata: SpatialData, table_key: str, table: AnnData) -> None:
        self.__dict__.update(sdata.__dict__)
        self._replaced = {table_key: table}

    @property
    def tables(self) -> Any:
        """Tables by name."""
        return {**super().tables, **self._replaced}


def with_types(sdata: SpatialData, table_key: str, obsm_key: str | None) -> SpatialData:
    """Return a section whose table has types of cells as its genes, or ``sdata`` itself if ``obsm_key`` is ``None``."""
    if obsm_key is None:
        return sdata
    matrix = abundances_of(sdata.tables[table_key], table_key, obsm_key)
    return _with(sdata, table_key, np.nan_to_num(matrix.values), matrix.var)


def _with(sdata: SpatialData, table_key: str, values: np.ndarray, var: pd.DataFrame) -> SpatialData:
    table = sdata.tables[table_key]
    parts = sparse.csr_matrix(np.rint(values * PARTS))
    return _WithTable(sdata, table_key, AnnData(parts, obs=table.obs, var=var, uns=dict(table.uns)))


def abundances_of(table: AnnData, table_key: str, obsm_key: str) -> Matrix:
    """Return abundances ``(spots, types)`` float64 with the types' names, as a matrix of counts is returned."""
    found, code = table.obsm[obsm_key], f"sdata[{table_key!r}].obsm[{obsm_key!r}]"
    values = found.toarray() if sparse.issparse(found) else found
    return Matrix(np.asarray(values, np.float64), pd.DataFrame(index=_names(found, obsm_key)), code, code)


def _names(found: Any, obsm_key: str) -> list[str]:
    """Return names of the types: of the columns, without the key that some tools repeat in front of each."""
    if not isinstance(found, pd.DataFrame):
        return [f"{obsm_key}_{number}" for number in range(found.shape[1])]
    names = list(map(str, found.columns))
    starts = [names[0][:end] for end in range(len(names[0]))]
    prefix = next((start for start in reversed(starts) if _plain(start) == _plain(obsm_key)), "")
    alike = all(name.startswith(prefix) and name != prefix for name in names)
    return [name.removeprefix(prefix) for name in names] if alike else names


def _plain(name: str) -> str:
    return "".join(c for c in name.casefold() if c.isalnum())


def _problem(table: AnnData, table_key: str, obsm_key: str) -> tuple[str, type[Exception]] | None:
    """Return the reason why something cannot be abundances, with the remedy and its exception; ``None`` if it can."""
    code = f"sdata[{table_key!r}].obsm[{obsm_key!r}]"
    others = [name for name in table.obsm if name != obsm_key and not _fault(table, table_key, name)]
    others.sort(key=lambda name: _common_total(abundances_of(table, table_key, name).values) is not None)
    there = f"Available: {list(table.obsm)}."
    remedy = f"{there} Try `obsm_key={others[0]!r}`." if others else f"{there} For maps of genes: `obsm_key=None`."
    if obsm_key not in table.obsm:
        return f"`obsm_key={obsm_key!r}` is not in `sdata[{table_key!r}].obsm`. {remedy}", MissingKeyError
    needed = f"tables/{table_key}/obsm/{obsm_key}: needs cells of each type per spot"
    if fault := _fault(table, table_key, obsm_key):
        return f"{needed}, numbers from 0 to {MOST:,}, but {fault}. {remedy}", ValueError
    matrix = abundances_of(table, table_key, obsm_key)
    if twice := matrix.var.index[matrix.var.index.duplicated()].unique().tolist():
        kept = f"{code} = {code}.loc[:, ~{code}.columns.duplicated()]"
        return f"{needed}, each type once, but {twice[:5]} occur more than once. Call `{kept}`.", ValueError
    total = _common_total(matrix.values)
    if total is not None and np.isclose(total, SHARES, rtol=SAME_TOTAL).any():
        return (
            f"{needed}, but nearly every spot has the total {total:.3g}: these are proportions, which do not say how "
            f"many cells there are. Multiply them by the number of cells in each spot or, as here, by a typical "
            f"{TYPICAL}: `sdata[{table_key!r}].obsm['cells'] = {TYPICAL / total:.3g} * {code}`, then pass "
            f"`obsm_key='cells'`.",
            ValueError,
        )
    return None


def _fault(table: AnnData, table_key: str, obsm_key: str) -> str:
    """Return what is wrong with the values of something as abundances; empty if nothing is."""
    found = table.obsm[obsm_key]
    if len(found.shape) != 2 or not found.shape[1]:
        return f"has shape {found.shape}"
    if obsm_key == "spatial" or (found.shape[1] <= POSITIONS and not isinstance(found, pd.DataFrame)):
        return f"has {found.shape[1]} columns without names of types, as positions have"
    try:
        values = abundances_of(table, table_key, obsm_key).values
    except (TypeError, ValueError) as error:
        return f"holds values that are not numbers ({error})"
    known = values[~np.isnan(values)]
    if not known.any():
        return "is 0 or NaN everywhere"
    if known.min() < 0 or known.max() > MOST:
        return f"has values from {known.min():.4g} to {known.max():.4g}"
    return ""


def _common_total(values: np.ndarray) -> float | None:
    """Return the total of the spots if it is the same in nearly all of them, so that it says nothing of their cells."""
    totals = values.sum(1)
    totals = totals[totals > 0]  # also without NaN
    middle = float(np.median(totals)) if values.shape[1] > 1 and len(totals) > 2 else 0.0
    alike = np.abs(totals - middle) <= SAME_TOTAL * middle
    return middle if middle and alike.mean() >= 0.95 else None


def read_spots(
    sdata: SpatialData,
    image_key: str,
    *,
    problems: Problems,
    obsm_key: str | None = None,
    **section: Unpack[SectionArguments],
) -> Observation:
    """Read one section, of genes or, with ``obsm_key``, of types of cells; ``counts`` are then cells per spot.

    Parameters
    ----------
    sdata, image_key, problems, section
        As for :func:`~hadmst_sc.io.read.read_observation`.
    obsm_key
        Abundances in ``obsm`` of the table; ``None`` = counts of genes.

    Raises
    ------
    TypeError, KeyError, ContractError
        As :func:`~hadmst_sc.io.read.read_observation`.
    """
    check_sdata(sdata)
    table_key = section.get("table_key", "table")
    wrong = problems.check({"obsm_key": obsm_key}, {"obsm_key": (optional(TEXT), None)})
    if obsm_key is None or wrong or not TEXT.is_met(table_key) or table_key not in sdata.tables:
        return read_observation(sdata, image_key, **section, problems=problems)
    table = sdata.tables[table_key]
    if (layer := section.get("layer")) is not None:
        problems.add(
            f"`layer` needs to be None if `obsm_key` is given, but is {layer!r}. Types of cells come from `obsm`, "
            f"genes from a layer. Pass `layer=None`, or `obsm_key=None`.",
            ValueError,
        )
        section["layer"] = None
    if problem := _problem(table, table_key, obsm_key):
        problems.add(*problem)
        blank = _with(sdata, table_key, np.ones((table.n_obs, 1)), pd.DataFrame(index=["none"]))
        return read_observation(blank, image_key, **section | {"genes": None}, problems=problems)
    matrix = abundances_of(table, table_key, obsm_key)
    if section.get("genes") is None:
        section["genes"] = list(matrix.var.index)
    obs = read_observation(with_types(sdata, table_key, obsm_key), image_key, **section, problems=problems)
    assert obs.rows is not None and obs.source is not None  # for types: read_observation has both
    unknown = obs.rows[np.isnan(matrix.values[obs.rows]).any(1)]
    if len(unknown):
        code = f"sdata[{table_key!r}]"
        problems.add(
            f"tables/{table_key}/obsm/{obsm_key}: needs a number for each type, but {len(unknown)} of {len(obs.spots)} "
            f"spots lack some, such as {table.obs_names[unknown[0]]!r}. Remove these spots: `{code} = "
            f"{code}[numpy.isfinite({matrix.code}).all(axis=1)].copy()`."
        )
    problems.raise_if_any()
    if doubted := _doubt(matrix.values[obs.rows], obs.source.spot_um):
        logger.warning("tables/%s/obsm/%s: %s", table_key, obsm_key, doubted)
    return replace(obs, counts=obs.counts / PARTS)


def _doubt(values: np.ndarray, spot_um: float | None) -> str:
    """Return the reason why abundances are probably not numbers of cells; empty if there is none."""
    total, typical = _common_total(values), float(np.median(values.sum(1)))
    if total is not None:
        return (
            f"nearly every spot has the total {total:.3g}, so the maps know nothing of how many cells there are, and "
            f"`cells_key` has no effect. Multiply proportions by the number of cells in each spot"
        )
    if typical < FEW and (spot_um or 0) >= LARGE_UM:
        return (
            f"a typical spot has {typical:.2g} cells in {spot_um:g} µm, which is few. If these are weights, multiply "
            f"them by the number of cells in each spot"
        )
    return ""
