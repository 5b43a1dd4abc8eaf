"""Result files read back: what the report, the figures and the model card are made from."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from plan import CLEAN
from switches import OURS


class View(NamedTuple):
    """Rows that one table is about: sections of one kind, at one point of a curve and one scale."""

    task: str
    group: str
    point: str
    scale: str

    @property
    def name(self) -> str:
        """For a table."""
        parts = [self.group, self.scale if self.scale != "spots" else "", self.point if self.point != CLEAN else ""]
        return ", ".join(part for part in parts if part)


@dataclass(frozen=True, eq=False)
class Results:
    """All cells of a folder, by task, section, point and method."""

    cells: tuple[dict[str, Any], ...]
    sections: dict[tuple[str, str, str], dict[str, Any]]

    @classmethod
    def read(cls, folder: Path, tasks: Sequence[str] | None = None) -> Results:
        """Every ``<task>.jsonl`` of the folder; in the order of ``tasks``."""
        names = [path.stem for path in sorted(folder.glob("*.jsonl"))]
        if tasks is not None:
            names = [name for name in tasks if name in names]
        lines = [json.loads(line) for name in names for line in (folder / f"{name}.jsonl").read_text().splitlines()]
        sections = {(x["task"], x["section"], x["point"]): x["about"] for x in lines if "method" not in x}
        return cls(tuple(x for x in lines if "method" in x), sections)

    @cached_property
    def _of_view(self) -> dict[tuple[str, str, str, str], list[dict[str, Any]]]:
        """Cells with scores by task, group, point and method: a report asks a hundred thousand times."""
        found: dict[tuple[str, str, str, str], list[dict[str, Any]]] = {}
        for cell in self.done():
            found.setdefault((cell["task"], cell["group"], cell["point"], cell["method"]), []).append(cell)
        return found

    def _cells(self, view: View, method: str) -> list[dict[str, Any]]:
        return self._of_view.get((view.task, view.group, view.point, method), [])

    def done(self, **wanted: str) -> list[dict[str, Any]]:
        """Cells with scores, of this task, group, point, section or method."""
        return [
            cell for cell in self.cells if cell["status"] == "done" and all(cell[k] == v for k, v in wanted.items())
        ]

    def views(self, task: str | None = None) -> list[View]:
        """Every set of sections, point and scale, in the order of the files."""
        found = {
            View(cell["task"], cell["group"], cell["point"], scale): None
            for cell in self.cells
            if cell["status"] == "done" and task in (None, cell["task"])
            for scale in cell["scores"]
        }
        return list(found)

    def methods(self, view: View | None = None) -> list[str]:
        """Names, in the order of the files."""
        cells = self.cells if view is None else self.done(task=view.task, group=view.group, point=view.point)
        return list(dict.fromkeys(cell["method"] for cell in cells))

    def scores(self, view: View, method: str, metric: str) -> dict[str, np.ndarray]:
        """``(genes,)`` of each section, ``(1,)`` where the metric is of all genes together; infinite ones as such."""
        found = {}
        for cell in self._cells(view, method):
            values = cell["scores"].get(view.scale, {}).get(metric)
            if values is not None:
                found[cell["section"]] = np.array([np.inf if v is None else v for v in np.atleast_1d(values)], float)
        return found

    def resampled(self, view: View, method: str, metric: str) -> dict[str, np.ndarray]:
        """``(n,)`` means over genes of resampled sections, by section; empty where intervals are over sections."""
        found = {}
        for cell in self._cells(view, method):
            values = cell["scores"].get(view.scale, {}).get("resampled", {}).get(metric)
            if values is not None:
                found[cell["section"]] = np.array(values, float)
        return found

    def mean(self, view: View, method: str, metric: str) -> float:
        """Mean over sections of the mean over genes; nan where there is none.

        Sections that ours lacks are left out: while a run is unfinished, means of two methods are of the same sections.
        """
        ours, found = (self.scores(view, name, metric) for name in (OURS, method))
        values = [of_genes.mean() for section, of_genes in found.items() if section in ours or not ours]
        return float(np.mean(values)) if values else float("nan")

    def about(self, view: View) -> dict[str, dict[str, Any]]:
        """Facts about each section of a view."""
        names = dict.fromkeys(c["section"] for c in self.done(task=view.task, group=view.group, point=view.point))
        return {name: self.sections[view.task, name, view.point] for name in names}

    def costs(self, view: View, method: str, name: str) -> list[float]:
        """Seconds or memory of each section."""
        return [cell["cost"][name] for cell in self._cells(view, method) if name in cell["cost"]]

    def problems(self) -> Iterator[tuple[str, str, str, int]]:
        """``(method, status, reason, cells)`` of what has no scores."""
        counted: dict[tuple[str, str, str], int] = {}
        for cell in self.cells:
            if cell["status"] != "done":
                key = cell["method"], cell["status"], cell["reason"].splitlines()[0]
                counted[key] = counted.get(key, 0) + 1
        yield from ((*key, n) for key, n in counted.items())
