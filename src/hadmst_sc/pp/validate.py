"""Check a section before a run, and report all problems; nothing here raises."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from importlib.util import find_spec
from typing import Any, Literal, NamedTuple, Unpack

import numpy as np
import pandas as pd
from spatialdata import SpatialData

from hadmst_sc.alignment.cells import displaced
from hadmst_sc.alignment.record import Alignment
from hadmst_sc.alignment.register import doubt, turned
from hadmst_sc.inference.prepare import registration
from hadmst_sc.inference.progress import REGISTRATION, Progress, seconds_of
from hadmst_sc.io.abundances import abundances_of, read_spots
from hadmst_sc.io.cells import cells_of
from hadmst_sc.io.counts import SEEN, matrix_of, rows_as_csr
from hadmst_sc.io.genes import gene_columns
from hadmst_sc.io.panel import with_other_genes
from hadmst_sc.io.sections import SectionsArguments, grouped, is_several, sections_of, settle
from hadmst_sc.io.tissue import find_glass
from hadmst_sc.io.write import check_size
from hadmst_sc.runtime import usual_errors
from hadmst_sc.section.abundances import SPOTS
from hadmst_sc.section.arguments import FLAG, TEXT, one_of, optional, takes
from hadmst_sc.section.cells import Cells
from hadmst_sc.section.errors import ContractError, Problems, WrongTypeError, warnings_heard
from hadmst_sc.section.features import he_features
from hadmst_sc.section.observation import ENOUGH_SPOTS, Observation

RARE = 0.1  # counts per spot, below which the map of a gene rests on the image and similar genes
ARGUMENTS = {
    "align": (one_of(True, False, "spots"), True),
    "cells_key": (optional(TEXT), None),
    "show_progress_bar": (FLAG, True),
}
Severity = Literal["error", "warning", "note"]
COLOURS: dict[Severity, str] = {"error": "#b3261e", "warning": "#9a6700", "note": "#3b5bdb"}


class Finding(NamedTuple):
    """One finding: an error prevents a run, a warning makes its result doubtful, a note explains.

    Examples
    --------
    >>> severity, message = hd.pp.Finding("note", "the H&E is off its spots.")
    >>> severity
    'note'
    """

    severity: Severity
    message: str


@dataclass(frozen=True)
class Report:
    """Findings about a section, or several, before a run; prints as text, and as a table in notebooks.

    Parameters
    ----------
    facts
        Sizes, numbers and costs by name, with the unit in the name; empty for several sections.
    findings
        Errors first; of several sections, with their images in front.
    alignment
        Position of the H&E relative to the spots; ``None`` if it was not estimated.
    sections
        Report of each of several sections, by image.

    Examples
    --------
    >>> report = hd.pp.validate(hd.datasets.phantom(n_genes=4, size_um=600.0), "he")
    >>> report.ok
    False
    >>> print(report)
    not ready: 1 error
    error: ...
    """

    facts: dict[str, Any]
    findings: tuple[Finding, ...]
    alignment: Alignment | None = None
    sections: Mapping[str, Report] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        """True if a run would start."""
        return not any(finding.severity == "error" for finding in self.findings)

    def __str__(self) -> str:
        width = max((len(name) for name in self.facts), default=0)
        lines = [self._verdict, *(f"  {name:<{width}}  {value}" for name, value in self.facts.items())]
        lines += [self._table.to_string()] if self.sections else []
        return "\n".join([*lines, *(f"{severity}: {message}" for severity, message in self.findings)])

    __repr__ = __str__

    def _repr_html_(self) -> str:
        rows = [
            f"<tr><th style='text-align:left'>{name}</th><td>{escape(str(value))}</td></tr>"
            for name, value in self.facts.items()
        ]
        found = [
            f"<li><b style='color:{COLOURS[severity]}'>{severity}</b> {escape(message)}</li>"
            for severity, message in self.findings
        ]
        return (
            f"<div><b>{self._verdict}</b><table>{''.join(rows)}</table>{self._table.to_html() if self.sections else ''}"
            f"<ul style='list-style:none;padding-left:0'>{''.join(found)}</ul></div>"
        )

    @property
    def _table(self) -> pd.DataFrame:
        """Facts of several sections, side by side."""
        return pd.DataFrame({image: one.facts for image, one in self.sections.items()}, dtype=object).fillna("")

    @property
    def _verdict(self) -> str:
        n = {kind: sum(finding.severity == kind for finding in self.findings) for kind in COLOURS}
        found = [f"{count} {kind}{'s' * (count > 1)}" for kind, count in n.items() if count]
        return f"{'ready' if self.ok else 'not ready'}: {', '.join(found) or 'no problems'}"


@takes(SPOTS)
@usual_errors
def validate(
    sdata: SpatialData,
    image_key: str | Sequence[str],
    *,
    cells_key: str | Sequence[str | None] | None = None,
    align: bool | Literal["spots"] = True,
    show_progress_bar: bool = True,
    **section: Unpack[SectionsArguments],
) -> Report:
    """Check if a section can be super-resolved, and what prevents it; ``sdata`` is not changed.

    These are the checks of :func:`hadmst_sc.tl.superresolve`, which raises the errors and logs the warnings. The report
    lists all of them; nothing is raised. The cost is that of a run with default settings; a run prints its own.

    Parameters
    ----------
    sdata
        Holds the H&E, the spots and their table.
    image_key
        The H&E image, or a list with that of each section, as for :func:`hadmst_sc.tl.superresolve`.
    {shared}
    cells_key
        Cells or nuclei for ``cells_key`` of :func:`hadmst_sc.tl.superresolve`: how many, how large, how dense, and if
        they lie where the H&E is dark.
    align
        Estimate the position of the H&E relative to the spots, as :func:`register` does; takes seconds. A run on the
        same section in this session reuses it. ``"spots"``, which :func:`hadmst_sc.tl.superresolve` knows, is the same
        as True here.
    show_progress_bar
        Show a progress bar if it takes longer than a second.

    Returns
    -------
    Facts, findings with their remedies, and ``ok``.

    Examples
    --------
    >>> sdata = hd.datasets.phantom(n_genes=4, size_um=600.0)
    >>> report = hd.pp.validate(sdata, "phantom_full_image", align=False)
    >>> report.ok, report.facts["spot_um"]
    (True, 55.0)
    """
    given = section | {"cells_key": cells_key}
    if not is_several(image_key):
        return _report(sdata, image_key, given, align=bool(align), show_progress_bar=show_progress_bar)
    problems = Problems("cannot super-resolve these sections")
    with warnings_heard() as heard:
        asked = sections_of(image_key, given, problems)
        if isinstance(sdata, SpatialData):
            settle(sdata, asked, problems)
    each = {
        one.image_key: _report(sdata, one.image_key, one.given, align=bool(align), show_progress_bar=show_progress_bar)
        for one in asked
    }
    findings = [Finding("error", message) for _, message in problems.found]
    findings += [Finding("warning", message) for message in dict.fromkeys(heard)]
    for kind in COLOURS:
        messages = [(image, [text for own, text in one.findings if own == kind]) for image, one in each.items()]
        findings += [Finding(kind, text) for text in grouped(messages).values()]
    return Report({}, _sorted(findings), sections=each)


def _sorted(findings: Sequence[Finding]) -> tuple[Finding, ...]:
    order = list(COLOURS)
    return tuple(sorted(findings, key=lambda finding: order.index(finding.severity)))


def _report(
    sdata: SpatialData, image_key: Any, given: Mapping[str, Any], *, align: bool, show_progress_bar: bool
) -> Report:
    """Check one section."""
    section = dict(given)
    cells_key = section.pop("cells_key")
    findings: list[Finding] = []
    facts: dict[str, Any] = {}
    found = None
    with warnings_heard() as heard, Progress(show=show_progress_bar) as progress:
        try:
            progress.at("read")
            problems = Problems("cannot super-resolve this section")
            own = {"align": align, "cells_key": cells_key, "show_progress_bar": show_progress_bar}
            problems.check(own, ARGUMENTS)
            obs = read_spots(sdata, image_key, **section, problems=problems)
            facts |= _facts(obs, sdata, section.get("obsm_key"))
            findings += _doubts(obs)
            he = he_features(obs) if align or cells_key is not None else np.zeros((1, *obs.grid.shape))
            if cells_key is not None:
                cells = cells_of(sdata, cells_key, obs, problems)
                problems.raise_if_any()
                assert cells is not None  # for types
                facts |= _of_cells(cells, obs)
                findings += _doubts_of_cells(cells, obs, he[0])
            whole = with_other_genes(sdata, obs.in_order(), section.get("obsm_key"))  # as in a run
            if align:
                progress.plan({"align": seconds_of(REGISTRATION, obs)})
                progress.at("align")
                known = registration(whole, he)
                found, turns = Alignment.from_record(known["found"]), known["turns"]
                facts |= _of_alignment(found)
                problem = turned(whole, turns, found, he)
                findings.append(Finding("error", problem) if problem else _about(found, turns))
            facts["cost"] = _cost(whole, len(obs.genes), sdata)
            check_size(sdata, len(obs.genes), obs.grid.n_bins, int(obs.inside.sum()), with_std=True)
        except (KeyError, ValueError, WrongTypeError, MemoryError, OSError) as error:  # what superresolve would raise
            messages = error.problems if isinstance(error, ContractError) else [str(error)]
            findings += [Finding("error", message) for message in messages]
        except Exception as error:  # noqa: BLE001 - a report never raises
            findings.append(Finding("error", f"{type(error).__name__} in hadmst_sc, please report it: {error}"))
    findings += [Finding("warning", message) for message in heard]
    return Report(facts, _sorted(findings), found)


def _facts(obs: Observation, sdata: SpatialData, obsm_key: str | None) -> dict[str, Any]:
    assert obs.source is not None  # for types: read_observation names it
    source = obs.source
    table = sdata.tables[source.table_key]
    if obsm_key is None:
        matrix = matrix_of(table, source.table_key, source.layer)
    else:
        matrix = abundances_of(table, source.table_key, obsm_key)
    things, unit = ("genes", "counts") if obsm_key is None else ("cell_types", "cells")
    assert obs.rows is not None  # for types: as above; rows, not names, as sections of a table may share barcodes
    counts = rows_as_csr(matrix.values, obs.rows, gene_columns(matrix.var))
    of_spots, of_genes = np.asarray(counts.sum(1)).ravel(), counts.getnnz(0)
    assert source.pitch_um is not None  # for types: as above
    glass = find_glass(obs.he, obs.grid, obs.measurement, source.pitch_um, of_spots)
    row, column = obs.measurement.centres.astype(int).T
    return {
        "image_um_per_px": float(f"{obs.he_um:.4g}"),
        "grid_bins": f"{obs.grid.shape[0]} x {obs.grid.shape[1]} of {obs.grid.bin_um:g} µm",
        "spots_on_tissue": "unknown" if glass is None else round(1 - float(glass[row, column].mean()), 3),
        "tissue_bins": int(obs.inside.sum()),
        "spots": len(obs.spots),
        "spot_um": source.spot_um,
        "pitch_um": source.pitch_um,
        "coordinate_system": source.coordinate_system,
        things: counts.shape[1],
        f"{things}_usable": int((of_genes >= SEEN * len(obs.spots)).sum()),
        f"{things}_of_the_run": len(obs.genes),
        f"median_{unit}_per_spot": float(np.median(of_spots)),
    }


def _of_cells(cells: Cells, obs: Observation) -> dict[str, Any]:
    um2 = obs.grid.bin_um**2
    inside = obs.inside.ravel()
    here = cells.overlap[:, np.flatnonzero(inside)]
    area = np.asarray(here.sum(1)).ravel()
    n = int((area > 0).sum())
    facts = {"cells_on_tissue": n, "cells_per_mm2": round(n / (inside.sum() * um2) * 1e6)}
    if cells.areal and n:
        covered = float(np.minimum(cells.density[inside], 1).mean())
        facts |= {"median_cell_um2": round(float(np.median(area[area > 0])) * um2, 1), "cells_cover": round(covered, 3)}
    return facts


def _doubts_of_cells(cells: Cells, obs: Observation, haematoxylin: np.ndarray) -> Iterator[Finding]:
    if not np.ptp(haematoxylin[obs.inside]):
        yield Finding("note", "the image has no contrast: it cannot tell if the cells lie on it.")
    elif told := displaced(cells.density.reshape(obs.grid.shape), haematoxylin, obs.inside, obs.grid.bin_um):
        yield Finding("warning", f"{cells.key}: {told}, or pass `cells_key=None`.")


def _doubts(obs: Observation) -> Iterator[Finding]:
    rare = int((obs.counts.mean(0) < RARE).sum())
    if 2 * rare > len(obs.genes):
        yield Finding(
            "warning",
            f"{rare} of the {len(obs.genes)} genes have fewer than {RARE:g} counts per spot: their maps follow the "
            f"image and other genes. Pass more abundant ones as `genes=`.",
        )


def _of_alignment(found: Alignment) -> dict[str, Any]:
    return {
        "shift_um": f"{found.dy_um:.1f} down, {found.dx_um:.1f} right",
        "rotation_deg": round(found.rotation_deg, 2),
        "registration_error_um": round(found.error_um, 1),
        "image_predicts_r2": round(found.score_there, 3),
    }


def _about(found: Alignment, turns: dict[str, float]) -> Finding:
    if not turns:
        return Finding("note", f"registration needs at least {ENOUGH_SPOTS} spots; the image is used as it is.")
    if doubted := doubt(turns, found):
        return Finding("warning", doubted)
    if found.applied:
        return Finding("note", "the H&E is off its spots as listed above; `superresolve` corrects it (`align`).")
    return Finding("note", "no clear evidence that the H&E is off its spots.")


def _cost(obs: Observation, n_genes: int, sdata: SpatialData) -> str:
    """Cost of a run with the first genes and defaults for the other arguments."""
    if find_spec("torch") is None:
        return "unknown: torch is not installed"
    from hadmst_sc.inference.cost import cost_of
    from hadmst_sc.inference.settings import Settings

    return str(cost_of(obs, Settings(n_genes=n_genes).loaded(), backed=sdata.is_backed()))
