"""Values of matrices and columns: counts, transformed counts, numbers and truth values as text."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from scipy import sparse

from hadmst_sc.section.errors import Problems

WHOLE = 1e-6  # rounding error of whole numbers in float32, for values below 1
NOISE = 1e-5  # the same relative to a value: a logarithm in float32 and its inverse leave less than a tenth of it
MOST_NOISE = 0.05  # limit of the rounding error; otherwise all large values would count as whole
MOST = 1e9  # counts of one gene in one spot: more were never measured, and their squares overflow float32
SAME_TOTAL = 1e-3  # largest coefficient of variation of normalised totals
FEW = 100  # fewest values for which a share of them is meaningful
COUNTING = 0.5  # variance / mean of abundant genes: counting noise gives 1, logarithms of counts about 0.1
HALF = 0.5  # smallest share of a count that a correction leaves
LARGEST_LOG = 50.0  # larger values are not logarithms

Transform = Callable[[np.ndarray], np.ndarray]
# Transformations of counts, with their inverses.
TRANSFORMED: dict[str, Transform] = {
    "log(1 + x)": np.expm1,
    "log2(1 + x)": lambda x: np.expm1(x * np.log(2)),
    "log10(1 + x)": lambda x: np.expm1(x * np.log(10)),
    "square root": np.square,
}
# The inverses as code, for sparse and for other matrices.
UNDO = {
    "log(1 + x)": ("{}.expm1()", "numpy.expm1({})"),
    "log2(1 + x)": ("({} * numpy.log(2)).expm1()", "numpy.expm1({} * numpy.log(2))"),
    "log10(1 + x)": ("({} * numpy.log(10)).expm1()", "numpy.expm1({} * numpy.log(10))"),
    "square root": ("{}.power(2)", "numpy.square({})"),
}


class Kind(NamedTuple):
    """A kind of values that are not whole, in words that follow "look like", and code that restores the counts.

    ``undo`` has code with ``{}`` for a sparse and for another matrix; ``None`` if counts cannot be restored.
    """

    what: str
    undo: tuple[str, str] | None = None


def plain(matrix: Any) -> Any:
    """Convert values to types that scipy supports: no float16, longdouble, foreign byte order or objects.

    Raises
    ------
    ValueError, TypeError
        If objects are not numbers.
    """
    dtype = matrix.dtype
    if dtype.kind == "b":
        return matrix.astype(np.uint8)
    if dtype.kind == "O" or dtype == np.float16 or dtype.itemsize > 8:
        return matrix.astype(np.float64)
    return matrix if dtype.isnative else matrix.astype(dtype.newbyteorder("="))


def numbers(column: Any) -> np.ndarray:
    """Convert a column to ``(n,)`` float64; NaN for values that are neither numbers nor text of numbers."""
    values = np.asarray(column)
    values = values if values.dtype.kind in "biuf" else pd.to_numeric(values.astype(object), errors="coerce")
    return np.asarray(values, np.float64)


def broken(values: np.ndarray) -> np.ndarray:
    """Mark values that cannot be a count or a part of one: not finite, negative, or above a thousand million."""
    with np.errstate(invalid="ignore"):
        return ~np.isfinite(values) | (values < 0) | (values > MOST)


def fractional(values: np.ndarray) -> np.ndarray:
    """Mark values that are not whole, beyond the float32 error of a count that was transformed and restored."""
    with np.errstate(invalid="ignore"):
        return ~(np.abs(values - np.rint(values)) <= np.clip(NOISE * values, WHOLE, MOST_NOISE))


def rounded(values: np.ndarray) -> np.ndarray:
    """Round values that are whole up to the float32 error; keep all others."""
    if values.dtype.kind != "f":
        return values
    return np.where(fractional(values), values, np.rint(values))


def transformed(counts: sparse.csr_matrix) -> Kind | None:
    """Return the kind of fractional values; ``None`` if they may be counts with a part removed.

    Counts keep two properties if ambient molecules or those of neighbouring spots are subtracted, and lose one of them
    in every usual transformation: depth varies between spots, and abundant genes vary at least as much as counting
    noise. The tests, in this order:

    0. Nearly all values are whole: counts. This comes first, as the squares of whole numbers are whole too.
    1. The inverse of a logarithm or a square root gives whole numbers: transformed counts.
    2. All spots have the same total, directly or after such an inverse: normalised.
    3. All values of a spot are whole multiples of its smallest one, directly or after such an inverse: normalised, even
       if only some of the genes are left. A correction that multiplies each spot by a share also does this, so shares
       between a half and one pass, unless they equalise depth.
    4. Genes with a mean above 1 vary less than half as much as counting noise: a logarithm or similar.
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
        kind = f"{name} of normalised counts" if name else "normalised counts"
        totals = np.asarray(values.sum(1)).ravel()
        totals = totals[totals > 0]
        if len(totals) > 2 and totals.std() < SAME_TOTAL * totals.mean():
            return Kind(f"{kind} (each spot has the total {totals.mean():.4g})")
        if (unit := _common_unit(values)) is not None:
            if not name and _is_correction(values, unit):
                return None
            return Kind(f"{kind} (the values of a spot are whole multiples of one number)", _undo_scale(name, values))
    if _scatter(counts) < COUNTING:
        return Kind("logarithms or other transformed counts (abundant genes vary less than counting noise)")
    if counts.data.max(initial=0.0) <= 1:
        return Kind("scaled values (none is above 1)")
    return None


def _whole(values: np.ndarray) -> float:
    """Return the share of whole numbers among values below 1000, where float32 resolves fractions."""
    values = values[values < 1000]
    whole = (np.abs(values - np.rint(values)) <= 1e-3 + 1e-5 * values) & (values > 0.5)
    return float(whole.mean()) if len(values) else 0.0


def _common_unit(values: sparse.csr_matrix) -> np.ndarray | None:
    """Return ``(spots,)`` the smallest value of each non-empty spot, if all its other values are multiples of it."""
    filled = np.flatnonzero(np.diff(values.indptr))
    unit = np.minimum.reduceat(values.data, values.indptr[filled])
    ratio = values.data / np.repeat(unit, np.diff(values.indptr)[filled])
    ratio = ratio[(ratio > 1.01) & (ratio < 100)]
    if len(ratio) < FEW or (np.abs(ratio - np.rint(ratio)) <= 1e-4 * ratio).mean() < 0.95:
        return None
    return unit


def _is_correction(values: sparse.csr_matrix, unit: np.ndarray) -> bool:
    """Return True if nearly all spots lost at most half of their counts and their totals did not become equal."""
    totals = np.asarray(values.sum(1)).ravel()
    totals = totals[totals > 0]
    spread, before = (np.std(x) / np.mean(x) for x in (totals, totals / unit))
    return bool(((unit >= HALF) & (unit <= 1 + WHOLE)).mean() > 0.9 and spread > before / 2)


def _undo_scale(name: str, values: sparse.csr_matrix) -> tuple[str, str] | None:
    """Return code that divides by the common unit, if it is the same for all spots."""
    unit = float(values.data.min())
    code = f"({{}} / {unit:.9g})"
    return (code, code) if not name and _whole(values.data / unit) >= 0.999 else None


def _scatter(counts: sparse.csr_matrix) -> float:
    """Return the median of variance / mean over genes with a mean above 1; infinite without such or with few spots."""
    if counts.shape[0] < 10:
        return np.inf
    mean = np.asarray(counts.mean(0)).ravel()
    variance = np.asarray(counts.multiply(counts).mean(0)).ravel() - mean**2
    abundant = mean > 1
    return float(np.median(variance[abundant] / mean[abundant])) if abundant.any() else np.inf


YES = {"1", "1.0", "true", "t", "yes", "y"}
NO = {"0", "0.0", "false", "f", "no", "n"}
MISSING = {"", "nan", "none", "<na>", "na", "nat"}


def column(frame: pd.DataFrame, name: object) -> pd.Series:
    """Return a column; the first one if several have this name."""
    found = frame[name]
    return found.iloc[:, 0] if isinstance(found, pd.DataFrame) else found


def words(values: pd.Series) -> pd.Series:
    """Convert values of any type to lower-case text, for comparison with ``YES`` and ``NO``."""
    texts = [one.decode(errors="replace") if isinstance(one, bytes) else str(one) for one in values]
    return pd.Series([one.strip().lower() for one in texts], index=values.index, dtype=object)


def unclear(values: pd.Series) -> list[str]:
    """Return the unique values that mean neither yes nor no."""
    return sorted(set(words(values)) - YES - NO - MISSING)


def are_single(
    frame: pd.DataFrame, kind: str, names: Iterable[str], place: str, owner: str, problems: Problems
) -> bool:
    """Return True if no column that is read is duplicated; otherwise add a problem.

    Parameters
    ----------
    kind
        "obs" or "var".
    place, owner
        The table in words, and an expression for the owner of ``kind``.
    """
    twice = [name for name in dict.fromkeys(names) if (frame.columns == name).sum() > 1]
    if not twice:
        return True
    alike = all(frame[name].astype(str).nunique(axis=1).eq(1).all() for name in twice)
    hint = "They are copies; keep the first of each" if alike else "They differ: keep the right one, if it is the first"
    keep = "{0} = {0}.loc[:, ~({0}.columns.duplicated() & {0}.columns.isin(" + f"{twice!r}))]"
    if owner.endswith(".raw"):  # it has no setter for `var`
        call = f"raw = {owner}.to_adata(); {keep.format('raw.var')}; {owner} = raw"
    else:
        call = keep.format(f"{owner}.{kind}")
    problems.add(f"{place}: `{kind}` needs each column once, but {twice} occur more than once. {hint}: `{call}`.")
    return False
