"""Scores of predicted maps.

Unless stated otherwise, functions take ``predicted`` and ``truth`` (or counts) in **counts per bin**, as
``(genes, ny, nx)`` or, if the shape of the map does not matter, ``(genes, n)``; and ``inside``, a bool mask of the bins
to score, of the shape of one map. They return one number per gene. Masks come from tissue, never from the truth; maps
are not rescaled; no gene is excluded, so empty and constant maps have a score and count.
"""

from __future__ import annotations

import numpy as np
from scipy import special
from skimage.metrics import structural_similarity

__all__ = ["coverage", "crps", "deviance", "gene_coherence", "pearson", "rmse", "spread_over_error", "ssim"]

_TINY = 1e-12


def _scored(values: np.ndarray, inside: np.ndarray, name: str) -> np.ndarray:
    """Check one argument and return its values inside, ``(genes, bins inside)`` float64."""
    values = np.asarray(values)
    if values.ndim < 2 or values.shape[1:] != inside.shape or inside.dtype != bool:
        raise ValueError(
            f"`{name}` needs shape (genes, *{inside.shape}) and `inside` bool, but they have {values.shape} and "
            f"{inside.dtype}. Maps and mask must cover the same bins. To score all bins, pass "
            f"`inside=np.ones({name}.shape[1:], bool)`."
        )
    if not inside.any():
        raise ValueError("`inside` needs at least one bin to score, but is false everywhere. Pass the tissue mask.")
    scored = values[:, inside].astype(float)
    if not np.isfinite(scored).all():
        raise ValueError(
            f"`{name}` needs finite values, but has {(~np.isfinite(scored)).sum()} that are not. Correct the map."
        )
    return scored


def _pair(predicted: np.ndarray, truth: np.ndarray, inside: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    a, b = _scored(predicted, inside, "predicted"), _scored(truth, inside, "truth")
    if a.shape != b.shape:
        raise ValueError(
            f"`predicted` needs the {len(b)} genes of `truth`, but has {len(a)}. Use the same genes in the same order."
        )
    return a, b


def _log(values: np.ndarray) -> np.ndarray:
    if (values < 0).any():
        raise ValueError(
            f"counts per bin need to be 0 or more, but reach {values.min():g}. Pass maps that are not log-scaled."
        )
    return np.log1p(values)


def _unit(rows: np.ndarray) -> np.ndarray:
    """Rows with mean zero and norm one; constant rows become exactly zero, without rounding errors."""
    centred = np.where(np.ptp(rows, axis=1, keepdims=True) > 0, rows - rows.mean(1, keepdims=True), 0.0)
    return centred / np.maximum(np.linalg.norm(centred, axis=1, keepdims=True), 1e-300)


def pearson(predicted: np.ndarray, truth: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """Signed Pearson correlation of log1p counts over the bins inside; a constant map scores 0.

    Parameters
    ----------
    predicted, truth
        ``(genes, ny, nx)`` or ``(genes, n)``, counts per bin.
    inside
        Bins that are scored.

    Examples
    --------
    >>> truth, inside = np.array([[0.0, 1.0, 2.0, 3.0]]), np.ones(4, bool)
    >>> hd.metrics.pearson(truth[:, ::-1], truth, inside).round(2)
    array([-0.92])
    """
    predicted, truth = _pair(predicted, truth, inside)
    return (_unit(_log(predicted)) * _unit(_log(truth))).sum(1)


def rmse(predicted: np.ndarray, truth: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """Root mean squared error of log1p counts in standard deviations of the truth: 1 is as good as its mean.

    If the truth is constant, an exact prediction scores 0 and any other infinity.

    Parameters
    ----------
    predicted, truth
        ``(genes, ny, nx)`` or ``(genes, n)``, counts per bin.
    inside
        Bins that are scored.

    Examples
    --------
    >>> truth, inside = np.array([[0.0, 1.0, 2.0, 3.0]]), np.ones(4, bool)
    >>> hd.metrics.rmse(truth + 0.5, truth, inside).round(2)
    array([0.48])
    """
    predicted, truth = (_log(x) for x in _pair(predicted, truth, inside))
    error, spread = np.sqrt(((predicted - truth) ** 2).mean(1)), truth.std(1)
    constant = np.ptp(truth, axis=1) == 0
    return np.where(constant, np.where(error > _TINY, np.inf, 0.0), error / np.where(constant, 1.0, spread))


def _around(inside: np.ndarray, margin: int) -> tuple[slice, slice]:
    """Box of the bins inside, with a margin: beyond it both maps are 0 and no window reaches."""
    ends = [(at[0], at[-1] + 1) for at in (np.flatnonzero(inside.any(axis)) for axis in (1, 0))]
    rows, columns = (slice(max(first - margin, 0), last + margin) for first, last in ends)
    return rows, columns


def ssim(predicted: np.ndarray, truth: np.ndarray, inside: np.ndarray, *, sigma: float = 1.5) -> np.ndarray:
    """Structural similarity of log1p maps with a Gaussian window, averaged over the bins inside (Wang et al. 2004).

    ``data_range`` is that of the truth; outside, both maps are set to 0, so that the background has no effect. A
    constant truth gives 1 for an exact prediction, else 0.

    Parameters
    ----------
    predicted, truth
        ``(genes, ny, nx)``, counts per bin.
    inside
        Bins that are scored, ``(ny, nx)``.
    sigma
        Width of the window in bins; the window reaches 3.5 sigma, and the map must be at least that wide.

    Examples
    --------
    >>> truth = np.random.default_rng(0).poisson(2.0, (1, 16, 16))
    >>> inside = np.ones((16, 16), bool)
    >>> hd.metrics.ssim(truth, truth, inside)
    array([1.])
    >>> hd.metrics.ssim(np.roll(truth, 1), truth, inside).round(2)  # shifted noise
    array([-0.02])
    """
    inside = np.asarray(inside)
    width = 2 * int(3.5 * sigma + 0.5) + 1
    if inside.ndim != 2 or min(inside.shape) < width:
        raise ValueError(
            f"`inside` needs a map of at least {width} × {width} bins, but has shape {inside.shape}. "
            f"The window of `sigma={sigma:g}` must fit into the map. Pass `sigma={sigma / 2:g}`."
        )
    predicted, truth = (_log(x) for x in _pair(predicted, truth, inside))
    inside = inside[_around(inside, width)]
    scores = np.empty(len(truth))
    for g, (p, t) in enumerate(zip(predicted, truth, strict=True)):
        spread = np.ptp(t)
        if spread == 0:
            scores[g] = float(np.allclose(p, t))
            continue
        maps = np.zeros((2, *inside.shape))
        maps[:, inside] = p, t
        _, local = structural_similarity(
            *maps, data_range=spread, gaussian_weights=True, sigma=sigma, use_sample_covariance=False, full=True
        )
        scores[g] = local[inside].mean()
    return scores


def gene_coherence(predicted: np.ndarray, truth: np.ndarray, inside: np.ndarray) -> float:
    """Correlation between the predicted and true gene × gene correlation matrices (upper triangle), a single number.

    Measures if co-expression of genes is preserved. Needs at least three genes; a constant gene correlates 0 with all.

    Parameters
    ----------
    predicted, truth
        ``(genes, ny, nx)`` or ``(genes, n)``, counts per bin.
    inside
        Bins that are scored.

    Examples
    --------
    >>> shared = np.random.default_rng(0).poisson(4.0, (2, 100))
    >>> truth = np.stack([shared[0], shared.sum(0), shared[1]])
    >>> inside = np.ones(100, bool)
    >>> round(hd.metrics.gene_coherence(truth + 1, truth, inside), 2)
    1.0
    >>> confused = truth[[1, 0, 2]]  # two genes swapped
    >>> round(hd.metrics.gene_coherence(confused, truth, inside), 2)
    -0.38
    """
    predicted, truth = _pair(predicted, truth, inside)
    if len(truth) < 3:
        raise ValueError(f"`truth` needs at least 3 genes, but has {len(truth)}. Coherence compares pairs of genes.")
    upper = np.triu_indices(len(truth), 1)

    def pairs(values: np.ndarray) -> np.ndarray:
        unit = _unit(_log(values))
        return (unit @ unit.T)[upper]

    ours, true = _unit(np.stack([pairs(predicted), pairs(truth)]))
    return float(ours @ true)


def _poisson_deviance(counts: np.ndarray, expected: np.ndarray) -> np.ndarray:
    # Counts in a bin with expectation 0 have infinite deviance; an expectation of 10⁻⁶ limits the penalty.
    expected = np.maximum(expected, 1e-6)
    return 2 * (special.xlogy(counts, counts / expected) - counts + expected).sum(1)


def deviance(
    predicted: np.ndarray, counts: np.ndarray, inside: np.ndarray, *, baseline: np.ndarray | None = None
) -> np.ndarray:
    """Poisson deviance of raw counts against expected counts, relative to that of one constant per gene.

    1 is as good as the constant, 0 is exact; counting noise keeps it above 0. If the constant is exact for a gene, an
    exact prediction scores 0 and any other infinity.

    Parameters
    ----------
    predicted
        ``(genes, ny, nx)`` or ``(genes, n)``, expected counts per bin.
    counts
        Counts of molecules that were not used for the prediction, of the shape of ``predicted``.
    inside
        Bins that are scored.
    baseline
        The constant, ``(genes,)`` expected counts per bin; for spots, their mean over their area. ``None``: the mean of
        ``counts``, the best possible constant.

    Examples
    --------
    >>> counts, inside = np.array([[0, 1, 2, 3]]), np.ones(4, bool)
    >>> hd.metrics.deviance(counts, counts, inside).round(2)
    array([0.])
    >>> hd.metrics.deviance(0 * counts + counts.mean(), counts, inside).round(2)
    array([1.])
    """
    predicted, counts = _pair(predicted, counts, inside)
    _log(predicted), _log(counts)  # checks that both are non-negative
    constant = counts.mean(1) if baseline is None else np.asarray(baseline, float)
    ours = _poisson_deviance(counts, predicted)
    theirs = _poisson_deviance(counts, np.broadcast_to(constant[:, None], counts.shape))
    # The floor of 1e-6 for expectations adds 2e-6 per bin.
    nothing_left = theirs <= 1e-5 * counts.shape[1]
    exact = np.where(ours <= 1e-5 * counts.shape[1], 0.0, np.inf)
    return np.where(nothing_left, exact, ours / np.where(nothing_left, 1.0, theirs))


def coverage(low: np.ndarray, high: np.ndarray, truth: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """Share of the bins inside whose truth lies in ``[low, high]``, per gene; a calibrated 80 % interval scores 0.8.

    Parameters
    ----------
    low, high, truth
        ``(genes, ny, nx)`` or ``(genes, n)``: ends of the interval, and true values, in the same unit.
    inside
        Bins that are scored.

    Examples
    --------
    >>> truth, inside = np.array([[0.0, 1.0, 2.0, 3.0]]), np.ones(4, bool)
    >>> hd.metrics.coverage(0 * truth, 0 * truth + 2, truth, inside)
    array([0.75])
    """
    low, truth_in = _pair(low, truth, inside)
    high, _ = _pair(high, truth, inside)
    return ((low <= truth_in) & (truth_in <= high)).mean(1)


def crps(draws: np.ndarray, truth: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """Continuous ranked probability score of an ensemble, in counts per bin, averaged over the bins inside.

    Lower is better. Uses the fair estimator ``E|X - y| - E|X - X'| / 2`` over distinct members (Ferro 2014), which does
    not reward small ensembles for being narrow; for one member it is the mean absolute error.

    Parameters
    ----------
    draws
        ``(members, genes, ny, nx)`` or ``(members, genes, n)``.
    truth
        True counts per bin, of the shape of one member.
    inside
        Bins that are scored.

    Examples
    --------
    >>> truth, inside = np.array([[0.0, 1.0, 2.0, 3.0]]), np.ones(4, bool)
    >>> draws = np.stack([truth, truth + 1, truth + 2])
    >>> hd.metrics.crps(draws, truth, inside).round(2)
    array([0.33])
    """
    members = [_pair(draw, truth, inside)[0] for draw in draws]
    truth = _scored(truth, inside, "truth")
    m = len(members)
    error = np.mean([np.abs(member - truth) for member in members], axis=0)
    if m > 1:
        # For sorted members, the sum of all |xi - xj|, i < j, is a weighted sum.
        weights = (2 * np.arange(1, m + 1) - m - 1).reshape(-1, 1, 1)
        error = error - (weights * np.sort(members, axis=0)).sum(0) / (m * (m - 1))
    return error.mean(1)


def spread_over_error(std: np.ndarray, predicted: np.ndarray, truth: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """Root mean variance over root mean squared error of the mean; 1 is calibrated, below 1 is overconfident.

    An exact prediction scores 1 if the spread is zero, else infinity.

    Parameters
    ----------
    std, predicted, truth
        ``(genes, ny, nx)`` or ``(genes, n)``: standard deviation and mean of the samples, and truth, in the same unit.
    inside
        Bins that are scored.

    Examples
    --------
    >>> truth, inside = np.array([[0.0, 1.0, 2.0, 3.0]]), np.ones(4, bool)
    >>> hd.metrics.spread_over_error(0 * truth + 0.5, truth + 1, truth, inside)
    array([0.5])
    """
    predicted, truth_in = _pair(predicted, truth, inside)
    std, _ = _pair(std, truth, inside)
    spread, error = (np.sqrt((x**2).mean(1)) for x in (std, predicted - truth_in))
    exact = np.where(spread > 0, np.inf, 1.0)
    return np.where(error > 0, spread / np.where(error > 0, error, 1.0), exact)
