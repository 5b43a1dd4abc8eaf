"""Counts: check that they are counts, choose the genes, make only those dense."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from anndata import AnnData
from scipy import sparse

from hadmst_sc.io.problems import MissingKeyError, Problems

DEFAULT_GENES = 200
SEEN = 0.05  # share of spots a gene must be seen in to be ranked by its variance
GENE_CHUNK = 256


def layers_of(table: AnnData) -> list[str]:
    """Names of the layers; since anndata 0.13 ``X`` is one of them, called ``None``."""
    return [name for name in table.layers if name is not None]


def select_counts(
    table: AnnData,
    table_key: str,
    rows: np.ndarray,
    layer: str | None,
    genes: Sequence[str] | int | None,
    problems: Problems,
) -> tuple[np.ndarray, tuple[str, ...]] | None:
    """Counts of the chosen genes, ``(spots, genes)`` float32, and their names; ``None`` after a problem."""
    matrix = _matrix(table, table_key, layer, problems)
    if not table.var_names.is_unique:
        twice = table.var_names[table.var_names.duplicated()].unique()[:5].tolist()
        problems.add(
            f"tables/{table_key}: gene names need to be unique, but {twice} are not. "
            f"Call `sdata[{table_key!r}].var_names_make_unique()`."
        )
        return None
    wanted = _named(table, genes, problems)
    if matrix is None or wanted is None or not len(rows):
        return None
    columns, number = wanted
    counts = _rows_as_csr(matrix, rows, columns)
    place = f"tables/{table_key}/" + ("X" if layer is None else f"layers/{layer}")
    names = table.var_names if columns is None else table.var_names[columns]
    if not _are_counts(counts, place, table.obs_names[rows], names, layers_of(table), layer, problems):
        return None
    if columns is None:
        ranked = most_informative(counts)[:number]
        counts, names = counts.tocsc()[:, ranked], names[ranked]
    return np.asarray(counts.toarray(), np.float32), tuple(map(str, names))


def _matrix(table: AnnData, table_key: str, layer: str | None, problems: Problems) -> Any:
    if layer is not None and layer not in table.layers:
        problems.missing("layer", layer, f"sdata[{table_key!r}].layers", layers_of(table))
        return None
    matrix = table.X if layer is None else table.layers[layer]
    if matrix is None or matrix.dtype.kind not in "biuf":
        found = "there is none" if matrix is None else f"its type is {matrix.dtype}"
        problems.add(
            f"tables/{table_key}: needs a matrix of counts, but {found}. Pass `layer=` one of {layers_of(table)}."
        )
        return None
    return matrix


def _named(
    table: AnnData, genes: Sequence[str] | int | None, problems: Problems
) -> tuple[np.ndarray | None, int] | None:
    """Columns asked for by name, or ``None`` and how many are to be ranked."""
    if genes is None:
        if "highly_variable" in table.var and (flags := table.var["highly_variable"].eq(True)).any():
            return np.flatnonzero(flags), int(flags.sum())
        return None, min(DEFAULT_GENES, table.n_vars)
    if isinstance(genes, str | bool) or not isinstance(genes, Iterable | int | np.integer):
        problems.add(f"`genes` needs names, a number or None, but is {genes!r}. Pass `genes=[{genes!r}]`.", TypeError)
        return None
    if isinstance(genes, int | np.integer):
        if not 1 <= genes <= table.n_vars:
            problems.add(f"`genes` needs 1 to {table.n_vars} (all genes of the table), but is {genes}.", ValueError)
            return None
        return None, int(genes)
    names = [str(gene) for gene in genes]
    unknown = [name for name in names if name not in table.var_names]
    if unknown:
        close = {name: difflib.get_close_matches(name, table.var_names, n=3) for name in unknown[:5]}
        hints = "; ".join(f"{name!r}: close to {matches or 'none'}" for name, matches in close.items())
        problems.add(
            f"`genes` has {len(unknown)} of {len(names)} names that are not in `var_names`. {hints}.", MissingKeyError
        )
        return None
    if not names or len(set(names)) < len(names):
        found = "is empty" if not names else "repeats some"
        problems.add(f"`genes` needs at least one name and each once, but {found}. Pass `genes=None`.", ValueError)
        return None
    return table.var_names.get_indexer(names), len(names)


def _rows_as_csr(matrix: Any, rows: np.ndarray, columns: np.ndarray | None) -> sparse.csr_matrix:
    """Rows and columns of any matrix that AnnData holds (sparse, dense, dask), without making it dense."""
    if hasattr(matrix, "dask"):
        stops = np.cumsum(matrix.chunks[0])
        parts = [matrix[stop - size : stop] for stop, size in zip(stops, matrix.chunks[0], strict=True)]
        blocks = [(part if columns is None else part[:, columns]).compute() for part in parts]
        counts = sparse.vstack([sparse.csr_matrix(block) for block in blocks], format="csr")[rows]
    else:
        counts = sparse.csr_matrix((matrix if columns is None else matrix[:, columns])[rows])
    counts.eliminate_zeros()
    counts.sort_indices()
    return counts


def _are_counts(
    counts: sparse.csr_matrix,
    place: str,
    spots: Sequence[str],
    genes: Sequence[str],
    layers: list[str],
    layer: str | None,
    problems: Problems,
) -> bool:
    """Whether all values are finite, non-negative and whole within 1e-6; names the first that is not."""
    values = counts.data
    with np.errstate(invalid="ignore"):
        broken = ~np.isfinite(values) | (values < 0)
        fractional = ~(np.abs(values - np.rint(values)) <= 1e-6)
    wrong = np.flatnonzero(broken | fractional)
    if not len(wrong):
        return True
    row = int(np.searchsorted(counts.indptr, wrong[0], side="right")) - 1
    finite = values[np.isfinite(values)]
    low = min(finite.min(initial=np.inf), 0.0) if counts.nnz < np.prod(counts.shape) else finite.min(initial=np.inf)
    other = "counts" if "counts" in layers else next((name for name in layers if name != layer), "counts")
    problems.add(
        f"{place}: needs counts (finite, non-negative, whole), but spot {spots[row]!r} has {values[wrong[0]]:.6g} of "
        f"gene {genes[counts.indices[wrong[0]]]!r} (min {low:.4g}, max {finite.max(initial=-np.inf):.4g}, "
        f"{100 * fractional.mean():.0f} % of the non-zero values are not whole). The model's noise is that of "
        f"counting. Pass `layer={other!r}`; `layers` has {layers}."
    )
    return False


def most_informative(counts: sparse.csr_matrix) -> np.ndarray:
    """Genes by falling information: the variance over spots of Pearson residuals under Poisson counting.

    Residuals ``(x - μ) / sqrt(μ)`` with ``μ = spot total × gene share``, clipped at ``sqrt(spots)`` (Lause et al.
    2021, in the limit of no overdispersion): 1 for a gene that only counts depth, above it what the tissue adds. Genes
    seen in fewer than 5 % of the spots come after all others, whatever their variance.

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
