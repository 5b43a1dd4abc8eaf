"""Summary of a result from its own provenance: inputs, settings and reliability."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from html import escape
from typing import Any

import pandas as pd
from spatialdata import SpatialData

from hadmst_sc.alignment.record import Alignment
from hadmst_sc.io.result import again, find_result
from hadmst_sc.runtime import usual_errors
from hadmst_sc.section.arguments import printable
from hadmst_sc.section.errors import MissingKeyError
from hadmst_sc.trust.intervals import doubt

COLUMNS = ("reliability", "gain_over_interpolation", "image_helps", "finest_um")
SHOWN = 10  # genes printed


@dataclass(frozen=True)
class Summary:
    """A result in a few lines; prints as text, and as a table in notebooks.

    Parameters
    ----------
    facts
        Inputs, settings and quality of the result, by name.
    genes
        Reliability per gene at held-out spots, the most reliable first.

    Examples
    --------
    On the section of the example of :func:`hadmst_sc.tl.superresolve`:

    >>> found = hd.tl.summary(sdata)
    >>> found.facts["genes"], found.genes.columns[0]
    ('4', 'reliability')
    """

    facts: dict[str, str]
    genes: pd.DataFrame

    def __str__(self) -> str:
        width = max(len(name) for name in self.facts)
        lines = [f"{name:<{width}}  {value}" for name, value in self.facts.items()]
        return "\n".join([*lines, "", self._ends().to_string(), self._rest]).rstrip()

    __repr__ = __str__

    def _repr_html_(self) -> str:
        rows = (
            f"<tr><th style='text-align:left'>{escape(name)}</th><td style='text-align:left'>{escape(value)}</td></tr>"
            for name, value in self.facts.items()
        )
        return f"<div><table>{''.join(rows)}</table>{self._ends().to_html()}{escape(self._rest)}</div>"

    def _ends(self) -> pd.DataFrame:
        """The most and the least reliable genes."""
        few = len(self.genes) <= SHOWN
        table = self.genes if few else pd.concat([self.genes.head(SHOWN // 2), self.genes.tail(SHOWN // 2)])
        return table.round(2).rename(index=printable)

    @property
    def _rest(self) -> str:
        hidden = len(self.genes) - SHOWN
        return f"{hidden:,} genes between these are not shown" if hidden > 0 else ""


@usual_errors
def summary(sdata: SpatialData, *, key_added: str = "superres") -> Summary:
    """Summarise a result: inputs, settings, and which genes held-out spots support.

    Parameters
    ----------
    sdata
        Holds the result.
    key_added
        Name of the result.

    Returns
    -------
    Facts, and the genes sorted by reliability.

    Raises
    ------
    KeyError
        If there is no such result, or it has lost its provenance.

    Examples
    --------
    On the section of the example of :func:`hadmst_sc.tl.superresolve`:

    >>> hd.tl.summary(sdata).facts["H&E"]
    'in place: nothing applied'
    """
    result = find_result(sdata, key_added)
    table, provenance = result.table, result.provenance
    if missing := [column for column in COLUMNS if column not in table.var]:
        raise MissingKeyError(f"tables/{result.table_key}: `var` lacks {missing}. {again(result)}")
    genes = table.var[list(COLUMNS)]
    moved = provenance["registration"]
    seconds = (float(value) for name, value in provenance.items() if name.startswith("seconds_"))
    obsm_key = provenance.get("obsm_key")
    values, things = ("counts", "") if obsm_key is None else (f"abundances {obsm_key!r}", " types of cells")
    facts = {
        "image": f"{result.source('image_key', sdata.images)}, {provenance['um_per_px']:.3g} µm per pixel",
        "spots": f"{provenance['n_spots']:,} of {result.source('shapes_key', sdata)}, "
        f"{values} of {result.source('table_key', sdata.tables)}",
        "bins": f"{table.n_obs:,} in tissue, {provenance['bin_um']:g} µm wide",
        "genes": f"{table.n_vars:,}{things}",
        "model": _model(provenance),
        "H&E": Alignment.from_record(moved).description if isinstance(moved, Mapping) else "not registered",
        "reliability": _believed(genes),
        "intervals": _intervals(provenance),
        "made": f"{provenance['date']} by hadmst_sc {provenance['versions']['hadmst_sc']}, in {sum(seconds):.0f} s",
    }
    return Summary(facts, genes.sort_values("reliability", ascending=False))


def _model(provenance: Mapping[str, Any]) -> str:
    if not provenance["model_sha256"]:
        return "closed form, no network"
    gate = provenance["gate"]
    share = f", network share {float(gate['share']):.0%}" if isinstance(gate, Mapping) else ""
    return f"{provenance['model']} ({provenance['model_sha256'][:8]}){share}"


def _believed(genes: pd.DataFrame) -> str:
    finest = genes["finest_um"]
    widths = [f"{(finest <= width).sum():,} at {width:.0f} µm" for width in sorted(finest.dropna().unique())]
    helped = f"the image helps {int(genes['image_helps'].sum()):,} of {len(genes):,} genes"
    return f"supported by held-out spots: {', '.join(widths) or 'none'}; {helped}"


def _intervals(provenance: Mapping[str, Any]) -> str:
    record, doubted = provenance["calibration"], doubt(provenance)
    if doubted or not isinstance(record, Mapping):
        return f"doubtful: {doubted}"
    held = f"90 % intervals hold {float(record['coverage']):.0%} of the counts"
    return f"{held} at {int(record['n_spots']):,} held-out spots"
