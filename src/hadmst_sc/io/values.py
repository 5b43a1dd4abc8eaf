"""Kinds of numbers in a matrix: counts, counts with a part removed, or counts that were transformed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from scipy import sparse

WHOLE = 1e-6  # distance from a whole number that float32 leaves, for values below 1
NOISE = 1e-5  # the same as a share of a value: what a logarithm in float32 and back leaves is below a tenth of it
MOST_NOISE = 0.05  # a larger distance is no noise: all large values would be whole
MOST = 1e9  # counts of one gene in one spot: more were never caught, and squares of them overflow float32
SAME_TOTAL = 1e-3  # coefficient of variation of totals that were made equal
FEW = 100  # values, below which a share of them says nothing
COUNTING = 0.5  # variance / mean of abundant genes: counting alone gives 1, logarithms of counts about 0.1
HALF = 0.5  # a correction leaves at least this share of a count
LARGEST_LOG = 50.0  # above it, values are no logarithms

Transform = Callable[[np.ndarray], np.ndarray]
# What counts may have been turned into, and how to undo it.
TRANSFORMED: dict[str, Transform] = {
    "log(1 + x)": np.expm1,
    "log2(1 + x)": lambda x: np.expm1(x * np.log(2)),
    "log10(1 + x)": lambda x: np.expm1(x * np.log(10)),
    "square root": np.square,
}
# The same as code, for sparse and for other matrices.
UNDO = {
    "log(1 + x)": ("{}.expm1()", "numpy.expm1({})"),
    "log2(1 + x)": ("({} * numpy.log(2)).expm1()", "numpy.expm1({} * numpy.log(2))"),
    "log10(1 + x)": ("({} * numpy.log(10)).expm1()", "numpy.expm1({} * numpy.log(10))"),
    "square root": ("{}.power(2)", "numpy.square({})"),
}


class Kind(NamedTuple):
    """A kind of values that are not whole, in words after "look like", and code that gets the counts back.

    ``undo`` has code with ``{}`` for a sparse and for another matrix; ``None`` where counts cannot be had back.
    """

    what: str
    undo: tuple[str, str] | None = None


def plain(matrix: Any) -> Any:
    """Values that scipy can store: no float16, no longdouble, no foreign byte order, no objects.

    Raises
    ------
    ValueError, TypeError
        If objects are no numbers.
    """
    dtype = matrix.dtype
    if dtype.kind == "b":
        return matrix.astype(np.uint8)
    if dtype.kind == "O" or dtype == np.float16 or dtype.itemsize > 8:
        return matrix.astype(np.float64)
    return matrix if dtype.isnative else matrix.astype(dtype.newbyteorder("="))


def numbers(column: Any) -> np.ndarray:
    """``(n,)`` float64 values of a column; NaN where a value is no number and no text of one."""
    values = np.asarray(column)
    values = values if values.dtype.kind in "biuf" else pd.to_numeric(values.astype(object), errors="coerce")
    return np.asarray(values, np.float64)


def broken(values: np.ndarray) -> np.ndarray:
    """Which values can be no count, nor a part of one: not finite, negative, or above a thousand million."""
    with np.errstate(invalid="ignore"):
        return ~np.isfinite(values) | (values < 0) | (values > MOST)


def fractional(values: np.ndarray) -> np.ndarray:
    """Which values are not whole, by more than float32 leaves of a count that was transformed and back."""
    with np.errstate(invalid="ignore"):
        return ~(np.abs(values - np.rint(values)) <= np.clip(NOISE * values, WHOLE, MOST_NOISE))


def rounded(values: np.ndarray) -> np.ndarray:
    """Values of which those that are whole but for the noise of float32 are exactly whole."""
    if values.dtype.kind != "f":
        return values
    return np.where(fractional(values), values, np.rint(values))


def transformed(counts: sparse.csr_matrix) -> Kind | None:
    """The kind of fractional values; ``None`` if they may be counts of which a part was removed.

    Counts keep two properties when ambient molecules or those of neighbouring spots are subtracted, and lose one of
    them in every usual transformation: depth varies between spots, and abundant genes scatter at least as counting
    does. In this order:

    0. Nearly all are whole as they are: counts. The squares of whole numbers are whole too.
    1. The inverse of a logarithm or a square root gives whole numbers.
    2. All spots have the same total, as they are or after such an inverse: normalised.
    3. All values of a spot are whole multiples of its smallest one, as they are or after such an inverse: normalised,
       even if only some of the genes are left. A correction that multiplies by one share per spot also does this, so
       shares between a half and one pass, unless they make depth equal.
    4. Genes with a mean above 1 vary less than half as much as counting alone would: a logarithm or the like.
    5. No value is above 1: scaled.

    Parameters
    ----------
    counts
        ``(spots, genes)`` of all genes, finite and non-negative.
    """
    counts = sparse.csr_matrix(counts, dtype=np.float64)
    counts.eliminate_zeros()
    if _whole(counts.data) >= 0.999:
        return None
    inverses: dict[str, Transform] = {
        name: undo
        for name, undo in TRANSFORMED.items()
        if name == "square root" or counts.data.max(initial=0.0) < LARGEST_LOG
    }
    for name, undo in inverses.items():
        if _whole(undo(counts.data)) >= 0.999:
            return Kind(f"{name} of counts", UNDO[name])
    for name, undo in {"": lambda x: x, **inverses}.items():
        values = sparse.csr_matrix((undo(counts.data), counts.indices, counts.indptr), counts.shape)
        told = f"{name} of normalised counts" if name else "normalised counts"
        totals = np.asarray(values.sum(1)).ravel()
        totals = totals[totals > 0]
        if len(totals) > 2 and totals.std() < SAME_TOTAL * totals.mean():
            return Kind(f"{told} (each spot has the total {totals.mean():.4g})")
        if (unit := _common_unit(values)) is not None:
            if not name and _is_correction(values, unit):
                return None
            return Kind(f"{told} (the values of a spot are whole multiples of one number)", _undo_scale(name, values))
    if _scatter(counts) < COUNTING:
        return Kind("logarithms or other transformed counts (abundant genes vary less than counting does)")
    if counts.data.max(initial=0.0) <= 1:
        return Kind("scaled values (none is above 1)")
    return None


def _whole(values: np.ndarray) -> float:
    """Share of whole numbers among those that are small enough to be told from others in float32."""
    values = values[values < 1000]
    whole = (np.abs(values - np.rint(values)) <= 1e-3 + 1e-5 * values) & (values > 0.5)
    return float(whole.mean()) if len(values) else 0.0


def _common_unit(values: sparse.csr_matrix) -> np.ndarray | None:
    """``(spots,)`` smallest value of each spot that has one, if all others of the spot are whole multiples of it."""
    filled = np.flatnonzero(np.diff(values.indptr))
    unit = np.minimum.reduceat(values.data, values.indptr[filled])
    ratio = values.data / np.repeat(unit, np.diff(values.indptr)[filled])
    ratio = ratio[(ratio > 1.01) & (ratio < 100)]
    if len(ratio) < FEW or (np.abs(ratio - np.rint(ratio)) <= 1e-4 * ratio).mean() < 0.95:
        return None
    return unit


def _is_correction(values: sparse.csr_matrix, unit: np.ndarray) -> bool:
    """Whether nearly all spots lost a share of at most a half, and not so that their totals became equal."""
    totals = np.asarray(values.sum(1)).ravel()
    totals = totals[totals > 0]
    spread, before = (np.std(x) / np.mean(x) for x in (totals, totals / unit))
    return bool(((unit >= HALF) & (unit <= 1 + WHOLE)).mean() > 0.9 and spread > before / 2)


def _undo_scale(name: str, values: sparse.csr_matrix) -> tuple[str, str] | None:
    """Division by the common unit, if it is one for all spots."""
    unit = float(values.data.min())
    code = f"({{}} / {unit:.9g})"
    return (code, code) if not name and _whole(values.data / unit) >= 0.999 else None


def _scatter(counts: sparse.csr_matrix) -> float:
    """Median of variance / mean over genes with a mean above 1; infinite without such genes, or with few spots."""
    if counts.shape[0] < 10:
        return np.inf
    mean = np.asarray(counts.mean(0)).ravel()
    variance = np.asarray(counts.multiply(counts).mean(0)).ravel() - mean**2
    abundant = mean > 1
    return float(np.median(variance[abundant] / mean[abundant])) if abundant.any() else np.inf
