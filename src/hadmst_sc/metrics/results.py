"""Score results against a truth of the same tissue."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from scipy import sparse
from spatialdata import SpatialData

from hadmst_sc.io.given import check_sdata
from hadmst_sc.io.read import computed_here
from hadmst_sc.io.result import Result, find_result
from hadmst_sc.io.truth import Truth, read_truth
from hadmst_sc.metrics.maps import deviance, pearson, rmse, ssim
from hadmst_sc.runtime import side_by_side, usual_errors
from hadmst_sc.section.arguments import FLAG, TEXT, Requirement, optional, whole
from hadmst_sc.section.errors import Problems, logger
from hadmst_sc.trust.crps import crps_of_counts, crps_of_rates
from hadmst_sc.trust.intervals import covered, rate_interval
from hadmst_sc.trust.spread import Spread

GENES_AT_ONCE = 4
LEAST = 1e-3  # of a gene's mean: deviance is infinite where nothing was expected and something found
WINDOW = 11  # bins along a side that `ssim` needs
BLOCKS = Requirement("whole numbers of bins, 1 or more", lambda value: _is_list(value, whole(1, 10_000)))
KEYS = Requirement(
    "the name of a result, or a list of names", lambda value: TEXT.is_met(value) or _is_list(value, TEXT)
)


def _is_list(value: Any, requirement: Requirement) -> bool:
    return isinstance(value, Sequence) and len(value) > 0 and all(map(requirement.is_met, value))


@usual_errors
def score(
    sdata: SpatialData,
    truth: str | xr.DataArray,
    *,
    key_added: str | Sequence[str] = "superres",
    truth_sdata: SpatialData | None = None,
    coordinate_system: str | None = None,
    blocks: Sequence[int] = (1,),
    scale: bool = True,
) -> pd.DataFrame:
    """Score results against a truth of the same tissue, such as Xenium, MERFISH or Visium HD.

    The truth is summed over the bins of the result, in a coordinate system that both share. Bins are scored that are in
    the tissue and that the truth covers: those within the convex hull of its molecules or cells, or without a NaN in
    its maps. Genes are matched by name; a warning names genes that the truth lacks.

    Parameters
    ----------
    sdata
        Holds the result. It is not changed.
    truth
        Name of points (molecules, with the column of genes as ``feature_key`` in their metadata); of a table of counts
        that annotates shapes, labels or points (cells, or the bins of Visium HD); or of an image (maps). Or a DataArray
        ``(c, y, x)`` with names of genes in ``c``, on the grid of the result if it has no transformation. Cells and
        bins of the truth spread their counts evenly over their area: if each went to the bin of its centre, the bins of
        another platform would fill those of the result unevenly.
    key_added
        Name of the result, or of several.
    truth_sdata
        Holds the truth; ``None`` = ``sdata``.
    coordinate_system
        System in which truth and result are aligned; ``None`` = that of the run if the truth is in it, else any that
        both share.
    blocks
        Edges of the blocks to score, in bins: 1 = single bins. In small blocks counting noise dominates the scores, in
        large ones the pattern. A block is scored if all of its bins are.
    scale
        Multiply the estimate of each gene by the ``factor`` that makes its total over the bins scored that of the
        truth. Platforms differ in depth, and for each gene in another way (probes, capture, panels): without it, scores
        would measure that difference. The estimate is multiplied and not the truth, as counting noise is known only for
        counts as measured. The total itself is then not scored. Pass False if both have the same depth, as the halves
        of :func:`hadmst_sc.pp.degrade` with ``split=0.5`` have.

    Returns
    -------
    One row per gene, block size and result, with the gene as index:

    - ``result``, ``width_um`` (edge of a block), ``n_blocks`` (blocks scored), ``counts_per_block`` (mean of the
      truth), ``factor``.
    - ``pcc``, ``rmse``, ``deviance``, ``ssim``: see :func:`pearson`, :func:`rmse`, :func:`deviance` (of estimates of at
      least 0.1 % of the gene's mean) and :func:`ssim` (NaN on maps of less than 11 blocks along a side).
    - ``pcc_ceiling``: correlation of the true mean with the truth, estimated from two random halves of the counts; no
      estimate can be expected to exceed it. NaN if the counts are not whole.
    - ``coverage``: share of the truth in 90 % intervals; ``crps``: continuous ranked probability score in counts per
      block. Both include counting noise, unless the truth is an image or array of fractions: these are taken as
      expected counts. NaN if the result has no standard deviation; in blocks, if its table has lost its provenance or
      ``dispersion``.

    Scores of genes without counts in the bins scored are NaN.

    Raises
    ------
    KeyError
        If there is no such result, truth or coordinate system, or they share no coordinate system or no gene.
    TypeError
        If ``truth`` is neither a name nor an array.
    ValueError
        If an argument has a bad value, the truth holds no counts, or covers no bin of the tissue or no whole block.

    Examples
    --------
    On the section of the example of :func:`hadmst_sc.tl.superresolve`, which has an image of the true counts:

    >>> scores = hd.metrics.score(sdata, "phantom_truth", blocks=(1, 2))
    >>> scores.loc["visible_000", ["width_um", "n_blocks"]].to_numpy().tolist()
    [[20.0, 900.0], [40.0, 225.0]]
    >>> bool(scores["pcc"].mean() > 0.5)
    True
    """
    check_sdata(sdata)
    problems = Problems("results cannot be scored")
    given = {"key_added": key_added, "coordinate_system": coordinate_system, "blocks": blocks, "scale": scale}
    problems.check(
        given,
        {
            "key_added": (KEYS, "superres"),
            "coordinate_system": (optional(TEXT), None),
            "blocks": (BLOCKS, (1, 2, 4)),
            "scale": (FLAG, True),
        },
    )
    problems.raise_if_any()
    holder, owner = (sdata, "sdata") if truth_sdata is None else (truth_sdata, "truth_sdata")
    check_sdata(holder)
    found = []
    for key in [key_added] if isinstance(key_added, str) else key_added:
        result = find_result(sdata, key)
        true = read_truth(result, truth, holder, coordinate_system, owner)
        found.append(_of_result(result, true, sorted(set(blocks)), scale=scale).assign(result=key))
    scores = pd.concat(found)
    return scores[["result", *scores.columns.drop("result")]]


def _of_result(result: Result, truth: Truth, blocks: Sequence[int], *, scale: bool) -> pd.DataFrame:
    names = result.table.var_names
    if absent := [gene for gene in names if gene not in truth.genes]:
        logger.warning(
            "the truth lacks %d of %d genes of %r, which are not scored: %s",
            *(len(absent), len(names), result.key, ", ".join(absent[:10]) + ", ..." * (len(absent) > 10)),
        )
    _, y, x = result.places
    inside = np.zeros(truth.known.shape, bool)
    inside[y, x] = True
    inside &= truth.known
    _check_blocks(result, inside, blocks)
    columns = names.get_indexer(list(truth.genes))

    def of_genes(start: int) -> pd.DataFrame:
        stop = min(start + GENES_AT_ONCE, len(columns))
        return _of_genes(result, truth, range(start, stop), columns[start:stop], inside, blocks, scale=scale)

    with computed_here():
        _ = result.image_key, result.std_key  # found once, not by each thread
        found = pd.concat(side_by_side(of_genes, range(0, len(columns), GENES_AT_ONCE)))
    return found.sort_values("width_um", kind="stable")


def _check_blocks(result: Result, inside: np.ndarray, blocks: Sequence[int]) -> None:
    if not inside.any():
        raise ValueError(
            f"`truth` needs to cover bins of {result.key!r} that are in the tissue, but covers none. Truth and result "
            f"are not aligned in this coordinate system, or are of other tissue. Check both: "
            f"`spatialdata.get_extent(...)`, or pass another `coordinate_system=`."
        )
    fitting = tuple(edge for edge in blocks if whole_blocks(inside, edge).any())
    if len(fitting) < len(blocks):
        raise ValueError(
            f"`blocks` needs sizes of which a block is wholly in tissue that the truth covers, but has {blocks}. "
            f"Pass `blocks={fitting or (1,)}`."
        )


def _of_genes(
    result: Result,
    truth: Truth,
    genes: Sequence[int],
    columns: np.ndarray,
    inside: np.ndarray,
    blocks: Sequence[int],
    *,
    scale: bool,
) -> pd.DataFrame:
    """Scores of some genes of the truth, which are these columns of the table."""
    _, y, x = result.places

    def as_maps(values: Any) -> np.ndarray:
        maps = np.zeros((len(genes), *inside.shape))
        maps[:, y, x] = np.asarray(values).T
        return maps

    true = np.stack([truth.of(gene) for gene in genes])
    halves = [truth.halves(gene) for gene in genes]
    mean = as_maps(result.maps_at_bins(columns))
    total, expected = (maps[:, inside].sum(1) for maps in (true, mean))
    factor = np.where((total > 0) & (expected > 0) & scale, total / np.where(expected > 0, expected, 1), 1.0)
    std = as_maps(result.maps_at_bins(columns, std=True)) if result.std_key else None
    found = []
    for edge in blocks:
        blocked = whole_blocks(inside, edge)
        spread = std if edge == 1 or std is None else _std_of_blocks(result, columns, mean, blocked, edge)
        by = factor[:, None, None]
        scaled, true_sums = in_blocks(mean, edge) * by, in_blocks(true, edge)
        scores = _of_maps(scaled, None if spread is None else spread * by, true_sums, blocked, noisy=truth.noisy)
        ceilings = [_ceiling(half, blocked, edge, noisy=truth.noisy) for half in halves]
        scores = {"pcc": scores.pop("pcc"), "pcc_ceiling": np.array(ceilings), **scores}
        table = pd.DataFrame(scores, index=pd.Index([truth.genes[gene] for gene in genes], name="gene"))
        table[total == 0] = np.nan
        about = {
            "width_um": edge * float(result.provenance["bin_um"]),
            "n_blocks": int(blocked.sum()),
            "counts_per_block": true_sums[:, blocked].mean(1),
            "factor": factor,
        }
        found.append(table.assign(**about)[[*about, *scores]])
    return pd.concat(found)


def _of_maps(
    mean: np.ndarray, std: np.ndarray | None, truth: np.ndarray, inside: np.ndarray, *, noisy: bool
) -> dict[str, np.ndarray]:
    """Scores of maps ``(genes, ny, nx)`` at the depth of the truth, ``(genes,)`` each."""
    absent = np.full(len(truth), np.nan)
    true, expected = truth[:, inside], mean[:, inside]
    found = {
        "pcc": pearson(expected, true, inside[inside]),
        "rmse": rmse(expected, true, inside[inside]),
        "deviance": deviance(np.maximum(expected, LEAST * true.mean(1, keepdims=True)), true, inside[inside]),
        "ssim": ssim(mean, truth, inside) if min(inside.shape) >= WINDOW else absent,
        "coverage": absent,
        "crps": absent,
    }
    if std is not None:
        spread = std[:, inside]
        if noisy:
            hits, misses = covered(true, expected, spread), crps_of_counts(true, expected, spread)
        else:
            low, high = rate_interval(expected, spread)
            hits, misses = (low <= true) & (true <= high), crps_of_rates(true, expected, spread)
        found |= {"coverage": hits.mean(1), "crps": misses.mean(1)}
    return found


def _std_of_blocks(
    result: Result, columns: np.ndarray, mean: np.ndarray, blocked: np.ndarray, edge: int
) -> np.ndarray | None:
    """Standard deviation of sums over blocks, ``(genes, ny, nx)``, as :func:`hadmst_sc.tl.regions` computes it."""
    var, record = result.table.var, result.record
    if "dispersion" not in var or "pitch_um" not in record:
        return None
    number = np.where(blocked, np.cumsum(blocked).reshape(blocked.shape) - 1, -1).repeat(edge, 0).repeat(edge, 1)
    y, x = np.nonzero(number >= 0)
    weights = sparse.csr_array((np.ones(len(y)), (number[y, x], np.arange(len(y)))))
    spread = Spread(var["dispersion"].to_numpy(float)[columns], float(record["pitch_um"]) / float(record["bin_um"]))
    found = np.zeros((len(columns), *blocked.shape))
    found[:, blocked] = spread.of_sums(mean[:, y, x].T, weights, np.c_[y, x]).T
    return found


def _ceiling(halves: np.ndarray | None, inside: np.ndarray, edge: int, *, noisy: bool) -> float:
    """Correlation of the true mean with the counts: Spearman-Brown from two halves, and its root."""
    if halves is None:
        return np.nan if noisy else 1.0
    one, other = in_blocks(halves, edge)[:, None, inside]
    r = max(float(pearson(one, other, np.ones(one.shape[1], bool))[0]), 0.0)
    return float(np.sqrt(2 * r / (1 + r)))


def in_blocks(maps: np.ndarray, edge: int) -> np.ndarray:
    """Sum ``(n, ny, nx)`` maps over blocks of ``edge`` × ``edge`` bins; an incomplete last block is left out."""
    ny, nx = (side // edge for side in maps.shape[1:])
    return maps[:, : ny * edge, : nx * edge].reshape(len(maps), ny, edge, nx, edge).sum((2, 4))


def whole_blocks(inside: np.ndarray, edge: int) -> np.ndarray:
    """Blocks of ``edge`` × ``edge`` bins that lie wholly inside, ``(ny // edge, nx // edge)`` bool."""
    return in_blocks(inside[None].astype(int), edge)[0] == edge**2
