"""Counts: find and check them, select the genes, and make only the selected genes dense."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse

from hadmst_sc.io.genes import choose, gene_columns
from hadmst_sc.io.values import MOST, Kind, broken, fractional, plain, rounded, transformed
from hadmst_sc.section.errors import MissingKeyError, Problems, logger

RAW = "raw"  # as a layer: the matrix in `.raw`
SEEN = 0.05  # share of spots in which a gene must be detected to be ranked by its variance
GENE_CHUNK = 256


class Matrix(NamedTuple):
    """Values ``(spots, features)`` and their features, with expressions for messages.

    Parameters
    ----------
    values
        ``None`` if there are none.
    owner, code
        Expressions for the owner of ``var`` and for the values.
    """

    values: Any
    var: pd.DataFrame
    owner: str
    code: str


def layers_of(table: AnnData) -> list[str]:
    """Return the names of the layers without ``None``, under which anndata 0.13 and later list ``X``."""
    return [name for name in table.layers if name is not None]


def places_of(table: AnnData) -> list[str]:
    """Return the valid values of ``layer``: the layers, and ``"raw"`` if the table has a ``.raw``."""
    layers = layers_of(table)
    return layers + [RAW] * (table.raw is not None and RAW not in layers)


def matrix_of(table: AnnData, table_key: str, layer: str | None) -> Matrix:
    """Return ``X``, a layer, or for ``layer="raw"`` matrix and features of ``.raw``, unless a layer has that name."""
    owner = f"sdata[{table_key!r}]"
    if layer == RAW and RAW not in layers_of(table):
        return Matrix(table.raw.X, table.raw.var, f"{owner}.raw", f"{owner}.raw.X")
    if layer is None:
        return Matrix(table.X, table.var, owner, f"{owner}.X")
    return Matrix(table.layers[layer], table.var, owner, f"{owner}.layers[{layer!r}]")


def select_counts(
    table: AnnData, table_key: str, rows: np.ndarray, layer: str | None, genes: Any, problems: Problems
) -> tuple[np.ndarray, tuple[str, ...]] | None:
    """Return counts of the selected genes, ``(spots, genes)`` float32, and their names; ``None`` after a problem."""
    if layer is not None and layer not in places_of(table):
        problems.add(
            f"`layer={layer!r}` is not in `sdata[{table_key!r}].layers`. Available: {places_of(table)}. "
            f"{_elsewhere(table, table_key, rows, layer)}",
            MissingKeyError,
        )
        return None
    matrix, place = matrix_of(table, table_key, layer), f"tables/{table_key}"
    chosen = choose(matrix.var, table.var, place, matrix.owner, genes, problems)
    readable = _has_numbers(table, table_key, rows, layer, problems) and _has_unique_names(matrix, place, problems)
    if not readable or chosen is None or not len(rows):
        return None
    counts, names = rows_as_csr(matrix.values, rows, chosen.columns), matrix.var.index[chosen.columns]
    if not _are_counts(table, table_key, rows, layer, counts, names, problems):
        return None
    counts.data = rounded(counts.data)
    counts.eliminate_zeros()
    if chosen.number is not None:
        ranked = most_informative(counts)[: chosen.number]
        counts, names = counts.tocsc()[:, ranked], names[ranked]
    if unnamed := [name for name in names if not isinstance(name, str)]:
        problems.add(
            f"{place}: needs genes with names, but the names {unnamed[:5]} are not text. Call `{_renaming(matrix)}`."
        )
        return None
    return counts.astype(np.float32).toarray(), tuple(map(str, names))  # first: the dense array needs most memory


def _name_index(matrix: Matrix) -> str:
    """Return the expression to assign new names to; ``.raw.var_names`` has no setter."""
    return f"{matrix.owner}.var.index" if matrix.owner.endswith(".raw") else f"{matrix.owner}.var_names"


def _renaming(matrix: Matrix) -> str:
    names = f"[name if isinstance(name, str) else f'unnamed_{{i}}' for i, name in enumerate({matrix.owner}.var_names)]"
    return f"{_name_index(matrix)} = {names}"


def _has_unique_names(matrix: Matrix, place: str, problems: Problems) -> bool:
    names = matrix.var.index
    if names.is_unique:
        return True
    twice = names[names.duplicated()].unique()
    if not all(isinstance(name, str) for name in twice):
        call = _renaming(matrix)
    elif matrix.owner.endswith(".raw"):
        call = f"{_name_index(matrix)} = anndata.utils.make_index_unique({matrix.owner}.var_names)"
    else:
        call = f"{matrix.owner}.var_names_make_unique()"
    problems.add(f"{place}: gene names need to be unique, but {twice[:5].tolist()} are not. Call `{call}`.")
    return False


def _has_numbers(table: AnnData, table_key: str, rows: np.ndarray, layer: str | None, problems: Problems) -> bool:
    values = matrix_of(table, table_key, layer).values
    found = "there is none" if values is None else f"its type is {values.dtype}"
    if values is not None and values.dtype.kind in "biuf":
        return True
    if values is not None and values.dtype.kind == "O":
        try:
            plain(values[rows])
        except (TypeError, ValueError) as error:
            found = f"its objects are not numbers ({error})"
        else:
            return True
    remedy = _elsewhere(table, table_key, rows, layer)
    problems.add(f"tables/{table_key}: needs a matrix of counts, but {found}. {remedy}".rstrip())
    return False


def _elsewhere(table: AnnData, table_key: str, rows: np.ndarray, layer: str | None) -> str:
    """Suggest another ``layer``: the first that holds counts, with "counts" preferred over all others."""
    others: list[str | None] = [*sorted(places_of(table), key=lambda name: name != "counts"), None]
    for other in others:
        if other == layer or not _holds_counts(matrix_of(table, table_key, other), rows):
            continue
        if other is None:
            return "Leave `layer=` out: `X` holds counts."
        return f"Pass `layer={other!r}`" + (": `.raw` holds counts." if other == RAW else ".")
    return ""


def _holds_counts(matrix: Matrix, rows: np.ndarray) -> bool:
    if matrix.values is None or matrix.values.dtype.kind not in "biuf":
        return False
    values = rows_as_csr(matrix.values, rows, gene_columns(matrix.var)).data
    return len(values) > 0 and not broken(values).any() and not fractional(values).any()


def total_counts(table: AnnData, table_key: str, rows: np.ndarray, layer: str | None) -> np.ndarray:
    """Return ``(spots,)`` total counts over all genes, selected or not; values that are not counts are ignored."""
    return np.asarray(_all_genes(matrix_of(table, table_key, layer), rows).sum(1), float).ravel()


def _all_genes(matrix: Matrix, rows: np.ndarray) -> sparse.csr_matrix:
    """Return the values of all genes, zero where they cannot be counts."""
    every = rows_as_csr(matrix.values, rows, gene_columns(matrix.var))
    every.data[broken(every.data)] = 0
    return every


def rows_as_csr(matrix: Any, rows: np.ndarray, columns: np.ndarray) -> sparse.csr_matrix:
    """Select rows and columns of any AnnData matrix (sparse, dense, dask), without making it dense."""
    if hasattr(matrix, "dask"):
        stops = np.cumsum(matrix.chunks[0])
        parts = [matrix[stop - size : stop] for stop, size in zip(stops, matrix.chunks[0], strict=True)]
        blocks = [part[:, columns].compute() for part in parts]
        counts = sparse.vstack([sparse.csr_matrix(plain(block)) for block in blocks], format="csr")[rows]
    else:
        # HDF5 reads rows and columns in ascending order only.
        (down, place), (right, order) = (np.unique(one, return_inverse=True) for one in (rows, columns))
        part = matrix if len(right) == matrix.shape[1] else matrix[:, right]
        counts = sparse.csr_matrix(plain(part[down]))[place]
        counts = counts if np.array_equal(order, np.arange(len(right))) else counts[:, order]
    counts.sum_duplicates()  # before any single entry is checked; this also sorts the indices
    counts.eliminate_zeros()
    return counts


def _are_counts(
    table: AnnData,
    table_key: str,
    rows: np.ndarray,
    layer: str | None,
    counts: sparse.csr_matrix,
    genes: Sequence[str],
    problems: Problems,
) -> bool:
    """Return True if values are, or may be corrected, counts; otherwise add a problem that names the first bad one."""
    values = counts.data
    bad, parts = broken(values), fractional(values)
    wrong = np.flatnonzero(bad if bad.any() else parts)
    if not len(wrong):
        return True
    matrix = matrix_of(table, table_key, layer)
    place = matrix.code.replace(f"sdata[{table_key!r}].", f"tables/{table_key}/", 1)
    share = f"{100 * parts.mean():.0f} % of the non-zero values are not whole"
    kind = None if bad.any() else transformed(_all_genes(matrix, rows))  # few may have been selected
    if not bad.any() and kind is None:
        logger.warning(
            "%s: %s. They are used as counts corrected for ambient RNA or spot swapping; standard deviations and "
            "intervals assume counting noise",
            place,
            share,
        )
        return True
    row = int(np.searchsorted(counts.indptr, wrong[0], side="right")) - 1
    finite = values[np.isfinite(values)].astype(np.float64)
    finite = np.append(finite, 0.0) if counts.nnz < np.prod(counts.shape) else finite
    span = f"min {finite.min():.4g}, max {finite.max():.4g}, " if len(finite) else ""
    looks = f" They look like {kind.what}." if kind else ""
    problems.add(
        f"{place}: needs counts (finite, non-negative, whole, at most {MOST:,.0f}), but spot "
        f"{table.obs_names[rows[row]]!r} has {values[wrong[0]]:.6g} of gene {genes[counts.indices[wrong[0]]]!r} "
        f"({span}{share}).{looks} The model assumes counting noise. "
        f"{_remedy(table, table_key, rows, layer, kind, counts)}"
    )
    return False


def _remedy(
    table: AnnData, table_key: str, rows: np.ndarray, layer: str | None, kind: Kind | None, counts: sparse.csr_matrix
) -> str:
    if other := _elsewhere(table, table_key, rows, layer):
        return other
    matrix = matrix_of(table, table_key, layer)
    if kind is None:
        spots = np.unique(np.repeat(np.arange(counts.shape[0]), np.diff(counts.indptr))[broken(counts.data)])
        if len(spots) > 5:
            return f"{len(spots)} spots have such values: read the section again from its files."
        names = table.obs_names[rows[spots]].tolist()
        code = f"sdata[{table_key!r}]"
        return f"Remove these spots: `{code} = {code}[~{code}.obs_names.isin({names!r})].copy()`."
    if kind.undo is None or matrix.owner.endswith(".raw"):
        return "The counts cannot be restored from these values: read the section again, and keep them in a layer."
    name = next(name for name in ("counts", "restored_counts", "whole_counts") if name not in table.layers)
    restored = kind.undo[0 if sparse.issparse(matrix.values) else 1].format(matrix.code)
    return f"Restore them: `{matrix.owner}.layers[{name!r}] = numpy.rint({restored})`, then pass `layer={name!r}`."


def most_informative(counts: sparse.csr_matrix) -> np.ndarray:
    """Rank genes by decreasing variance over spots of their Pearson residuals under a Poisson model.

    Residuals ``(x - μ) / sqrt(μ)`` with ``μ = spot total × gene share``, clipped at ``sqrt(spots)`` (Lause et al.
    2021, in the limit of no overdispersion). The variance is 1 for a gene that only reflects depth, and larger for
    genes that vary between spots. Genes detected in fewer than 5 % of the spots rank below all others.

    Returns
    -------
    ``(genes,)`` column indices; equal scores keep the table's order.
    """
    n_spots, n_genes = counts.shape
    columns = counts.tocsc().astype(np.float64)
    totals = np.asarray(columns.sum(1)).ravel()
    share = np.asarray(columns.sum(0)).ravel() / max(totals.sum(), 1.0)
    seen = np.diff(columns.indptr) >= SEEN * n_spots
    score = np.zeros(n_genes)
    for start in range(0, n_genes, GENE_CHUNK):
        chunk = slice(start, min(start + GENE_CHUNK, n_genes))
        mu = totals[:, None] * share[None, chunk]
        residual = (columns[:, chunk].toarray() - mu) / np.sqrt(np.maximum(mu, 1e-12))
        score[chunk] = np.clip(residual, -np.sqrt(n_spots), np.sqrt(n_spots)).var(0)
    return np.lexsort((-score, ~seen))
