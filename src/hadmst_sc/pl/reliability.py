"""Reliability of each gene with its interval, and the gain from the image."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator
from spatialdata import SpatialData

from hadmst_sc.io.result import find_result
from hadmst_sc.pl._draw import check, saved, two_axes
from hadmst_sc.section.arguments import printable
from hadmst_sc.section.errors import MissingKeyError
from hadmst_sc.section.observation import RELIABILITY

HELPS, DOES_NOT, GUESS = "#3b5bdb", "#c9a227", "#9e9e9e"


def reliability(
    sdata: SpatialData,
    *,
    key_added: str = "superres",
    n_genes: int = 30,
    figsize: tuple[float, float] | None = None,
    axes: np.ndarray | None = None,
    save: str | Path | None = None,
) -> np.ndarray:
    """Draw the reliability of each gene of a result.

    The left panel shows all genes from the most to the least reliable: correlation at held-out spots with its 90 %
    interval; the colour shows if the image helps. The right panel shows the gain from the image for the ``n_genes``
    most reliable genes.

    Parameters
    ----------
    sdata
        Holds the result.
    key_added
        Name of the result.
    n_genes
        Number of genes in the right panel.
    figsize
        Inches; by default from ``n_genes``.
    axes
        Two Axes to draw into.
    save
        File to save the figure in; its ending names the format.

    Returns
    -------
    ``(2,)`` array of Axes.

    Raises
    ------
    KeyError
        If there is no such result, or it has no reliability.
    ValueError
        If ``axes`` are not two, or ``n_genes`` is not positive.

    Examples
    --------
    On the section of the example of :func:`hadmst_sc.tl.superresolve`:

    >>> hd.pl.reliability(sdata, save="reliability.png").shape
    (2,)
    """
    check(n_genes=n_genes, figsize=figsize, save=save)
    genes = _columns(sdata, key_added).sort_values("reliability", ascending=False)
    named = genes.iloc[: int(n_genes)]
    axes = two_axes(figsize or (9.0, 2.0 + 0.18 * len(named)), axes)
    _draw_ranks(axes[0], genes)
    _draw_gains(axes[1], named)
    return saved(axes, save)


def _columns(sdata: SpatialData, key_added: str) -> pd.DataFrame:
    result = find_result(sdata, key_added)
    found = result.table.var
    missing = [column for column in RELIABILITY if column not in found]
    if missing:
        raise MissingKeyError(
            f"tables/{result.table_key}: `var` lacks {missing}. Call `hadmst_sc.tl.reliability(sdata, "
            f"{result.source('image_key', sdata.images)!r}, key_added={key_added!r})` first."
        )
    return found[list(RELIABILITY)]


def _kinds(genes: pd.DataFrame) -> dict[str, tuple[str, np.ndarray]]:
    """Colour and rows of each kind of gene."""
    helps, supported = genes["image_helps"].to_numpy(bool), genes["finest_um"].notna().to_numpy()
    return {
        "the image helps": (HELPS, supported & helps),
        "spots alone do as well": (DOES_NOT, supported & ~helps),
        "not supported at any scale": (GUESS, ~supported),
    }


def _draw_ranks(ax: Axes, genes: pd.DataFrame) -> None:
    rank, value = np.arange(1, len(genes) + 1), genes["reliability"].to_numpy()
    for label, (colour, rows) in _kinds(genes).items():
        ax.vlines(rank[rows], genes["reliability_low"][rows], genes["reliability_high"][rows], colour, alpha=0.35)
        ax.plot(rank[rows], value[rows], "o", color=colour, markersize=3, label=f"{label} ({rows.sum()})")
    ax.axhline(0, color="black", linewidth=0.5)
    ax.set(xlabel="genes, most reliable first", ylabel="correlation at held-out spots", ylim=(None, 1))
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.legend(frameon=False, fontsize="small")
    ax.spines[["top", "right"]].set_visible(False)


def _draw_gains(ax: Axes, genes: pd.DataFrame) -> None:
    row, colours = np.arange(len(genes)), np.empty(len(genes), object)
    for colour, rows in _kinds(genes).values():
        colours[rows] = colour
    ax.barh(row, genes["gain_over_interpolation"], color=list(colours))
    ax.axvline(0, color="black", linewidth=0.5)
    ax.set_yticks(row, [printable(gene) for gene in genes.index], fontsize="small", parse_math=False)
    ax.set(ylim=(len(genes) - 0.5, -0.5), xlabel="correlation added by the image")
    ax.xaxis.set_major_locator(MaxNLocator(4))
    ax.spines[["top", "right"]].set_visible(False)
