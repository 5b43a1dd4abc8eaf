"""Tables and figures from result files alone: ``hadmst-sc benchmark report``, or ``python benchmarks/report.py``.

Writes ``report.md``, whose sections ``benchmark.toml`` declares, one page per task, and pictures, beside the files of
the profile. No number on them was typed.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any

import figures
import numpy as np
import plan
import records
import scores
from outcomes import Results, View
from tables import BETTER, OURS, TITLES, by_method, cell, interval, made, minus, number, present

SPREAD = ("pcc", "rmse")  # shown with ± s.d. over genes
LEGACY = ("legacy_rmse", "legacy_pcc", "legacy_ssim")
THIRDS = ("scarce", "middle", "abundant")
CONTROLS = (OURS, "ours, no alignment", "ours, no H&E", "ours, H&E upside down", "cubic")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--profile", choices=plan.PROFILES, default="full")
    parser.add_argument("--results", type=Path, help="folder of result files (default: benchmarks/results/<profile>)")
    options = parser.parse_args(arguments)
    folder = options.results or records.RESULTS / options.profile
    declared = plan.load()
    found = Results.read(folder, list(declared["tasks"]))
    if not found.cells:
        raise SystemExit(f"`--results` needs result files, but {folder} has none. Run `hadmst-sc benchmark` first.")
    for task in dict.fromkeys(one["task"] for one in found.cells):
        (folder / f"{task}.md").write_text(task_page(found, task, declared["tasks"][task]) + "\n")
    page = Summary(found, declared, figures.draw(found, folder)).page(options.profile)
    (folder / "report.md").write_text(page + "\n")
    print(page)


# --- a page for each task ---------------------------------------------------------------------------------------------


def task_page(found: Results, task: str, declared: dict[str, Any]) -> str:
    """Every method on every set of one task: scores, thirds of abundance, and differences from ours."""
    parts = [f"# {declared['title']}"]
    for view in found.views(task):
        if view.point != plan.CLEAN and "sweep" not in declared:
            continue  # curves are on the summary
        about = found.about(view)
        n_genes = sum(len(section["genes"]) for section in about.values())
        spots = [section["n_spots"] for section in about.values()]
        size = f"{min(spots):,}" + (f" to {max(spots):,}" if max(spots) > min(spots) else "")
        scope = f"{len(about)} section(s) of {size} spots, {n_genes} (gene, section) pairs; mean ± s.d. over them."
        parts += [f"## {view.name}", scope, _overview(found, view)]
        if present(found, view, ("pcc",)):
            thirds = {name: _thirds(section["counts_per_spot"]) for name, section in about.items()}
            parts += ["By third of abundance, PCC / RMSE:", _by_label(found, view, thirds)]
            kinds = {name: section["kinds"] for name, section in about.items()}
            if {kind for own in kinds.values() for kind in own} != {"real"}:
                parts += ["By what drives the gene, PCC / RMSE:", _by_label(found, view, kinds)]
            parts += ["Ours minus each, gene by gene, with 95 % intervals:", _differences(found, view)]
    return "\n\n".join([*parts, made(found, task)])


def _overview(found: Results, view: View) -> str:
    def content(method: str, metric: str) -> str:
        if metric in TITLES:
            return cell(found.scores(view, method, metric), spread=metric in SPREAD)
        seconds, memory = (found.costs(view, method, name) for name in ("seconds", "memory_mb"))
        if not memory or not any(seconds):
            return "–"
        return f"{np.mean(seconds):.1f}" if metric == "seconds" else f"{max(memory):.0f}"

    columns = {TITLES[metric]: metric for metric in present(found, view, TITLES)}
    return by_method(found.methods(view), columns | {"seconds": "seconds", "MB": "memory_mb"}, content)


def _thirds(counts_per_spot: Sequence[float]) -> list[str]:
    return [THIRDS[third] for third in scores.tertiles(counts_per_spot)]


def _by_label(found: Results, view: View, labels: dict[str, Sequence[str]]) -> str:
    def content(method: str, label: str) -> str:
        of_label = [
            {name: one[np.array(labels[name]) == label] for name, one in found.scores(view, method, metric).items()}
            for metric in ("pcc", "rmse")
        ]
        return " / ".join(map(cell, of_label))

    known = {str(label) for own in labels.values() for label in own}
    names = [third for third in THIRDS if third in known] or sorted(known)
    return by_method(found.methods(view), {label: label for label in names}, content)


def _differences(found: Results, view: View) -> str:
    def content(method: str, metric: str) -> str:
        difference = minus(found, view, method, metric.removesuffix(", genes"))
        if difference is None or not metric.endswith("genes"):
            return interval(difference)
        return f"{difference.greater:.0%} of {difference.n}"

    columns = {"PCC": "pcc", "genes where ours is above": "pcc, genes", "RMSE": "rmse", "deviance": "deviance"}
    return by_method([method for method in found.methods(view) if method != OURS], columns, content)


# --- the summary ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Summary:
    """The page that shows wins, losses and controls; each section's table is the method that it names."""

    found: Results
    declared: dict[str, Any]
    pictures: dict[str, str]

    def page(self, profile: str) -> str:
        """All sections; those that have no results are left out."""
        command = "hadmst-sc benchmark" + (f" --profile {profile}" if profile != "full" else "")
        origin = f"Written by `{command}` from the result files beside this page. {made(self.found)}"
        parts = [f"# Benchmark, {profile} profile", origin]
        for section in self.declared["report"]:
            if table := getattr(self, section["table"])():
                parts += [f"## {section['title']}", section.get("text", "").strip(), table]
        return "\n\n".join(part for part in parts if part)

    @cached_property
    def clean(self) -> list[View]:
        """Undisturbed sections, but for clusters."""
        views = [view for view in self.found.views() if view.point == plan.CLEAN]
        return [view for view in views if view.task not in ("domains", "robustness")]

    @property
    def peers(self) -> list[str]:
        """Published tools."""
        return self.declared["methods"]["peers"]

    @property
    def core(self) -> list[str]:
        """Methods that are in every task."""
        return [*self.declared["methods"]["core"], *self.peers]

    def others(self, view: View) -> tuple[list[str], list[str]]:
        """Classical methods and published tools that have scores here."""
        references = {name for task in self.declared["tasks"].values() for name in task.get("references", [])}
        every = [name for name in self.found.methods(view) if not name.startswith(OURS) and name not in references]
        return [name for name in every if name not in self.peers], [name for name in every if name in self.peers]

    def targets(self) -> str:
        """Figures that the project set itself, beside what was measured."""
        found, tasks = self.found, dict.fromkeys(cell["task"] for cell in self.found.cells)
        everywhere = [m for m in self.core if all(found.done(task=task, method=m) for task in tasks)]
        failed = {cell["method"] for cell in found.cells if cell["status"] != "done"}
        n_peers, whole = sum(m in self.peers for m in everywhere), sum(m not in failed for m in everywhere)
        measured = f"{len(everywhere)}, of them {n_peers} published; {whole} without a failed or skipped cell"
        rows = [["methods on all tasks", "≥ 14, of them ≥ 2 published", measured]]
        for point, least in self.declared.get("targets", {}).get("robustness", {}).items():
            for group, share in self.shares_of_clean(OURS, point).items():
                of_peers = [(m, self.shares_of_clean(m, point).get(group, np.nan)) for m in self.peers]
                measured = ", ".join(f"{m} {s:.3f}" for m, s in of_peers if not np.isnan(s)) or "no published tool"
                rows.append([f"PCC, {point}, {group}", f"≥ {least:.2f} of clean", f"{share:.3f} ({measured})"])
        spots, own = self.domain_scores("spots"), self.domain_scores(OURS)
        if own:
            above = sum(own[name] > spots[name] for name in own if name in spots)
            rows.append(["domain ARI above that of the spots", "≥ 4 of 5 sections", f"{above} of {len(own)}"])
        return records.table(["", "at least", "measured"], rows)

    def best_of_others(self) -> str:
        """Ours, and the best classical and the best published method of every set."""
        found, rows = self.found, []
        for view in self.clean:
            if not found.scores(view, OURS, "pcc"):
                continue
            cells = [view.task, view.name, f"{found.mean(view, OURS, 'pcc'):.3f}"]
            for group in self.others(view):
                means = {name: found.mean(view, name, "pcc") for name in group}
                means = {name: mean for name, mean in means.items() if not np.isnan(mean)}
                if means:
                    name = max(means, key=means.__getitem__)
                    cells += [f"{name} {means[name]:.3f}", interval(minus(found, view, name, "pcc"))]
                else:
                    cells += ["–", "–"]
            bounds = (found.mean(view, name, "pcc") for name in ("split-half ceiling", "true rate"))
            rows.append([*cells, number(max(bounds, key=np.nan_to_num))])
        columns = "task|set|ours|best classical method|difference|best published|difference|ceiling"
        return records.table(columns.split("|"), rows)

    def losses(self) -> str:
        """Every comparison whose interval lies on the wrong side of zero."""
        rows, compared = [], 0
        for view in self.clean:
            for metric, better in BETTER.items():
                for name in chain(*self.others(view)):
                    difference = minus(self.found, view, name, metric)
                    compared += difference is not None
                    if difference is not None and difference.sign * (1 if better is max else -1) < 0:
                        rows.append([view.task, view.name, TITLES[metric], name, interval(difference)])
        intro = (
            f"Of {compared:,} comparisons (set × score × method that is not ours), the interval of ours minus the "
            f"other lies on the wrong side of zero in {len(rows)}:"
        )
        table = "\n\n" + records.table(["task", "set", "score", "method", "ours minus it"], rows) if rows else " none."
        return intro + table

    def headline(self) -> str:
        """Mean PCC of every method; hold-outs of one kind of section in one column."""
        columns: dict[str, list[View]] = {}
        for view in self.clean:
            name = f"{view.task} {view.name}"
            if view.task == "holdout":
                name = "holdout " + view.group.rstrip("0123456789").rstrip("_C")
            columns.setdefault(name, []).append(view)

        def content(method: str, views: list[View]) -> str:
            return number(np.mean([self.found.mean(view, method, "pcc") for view in views]))

        return by_method(self.core, columns, content)

    def controls(self) -> str:
        """Ours with the image withheld, moved or upside down."""
        means = {view: [self.found.mean(view, name, "pcc") for name in CONTROLS] for view in self.clean}
        rows = [[v.task, v.name, *map(number, own)] for v, own in means.items() if not np.isnan(own).any()]
        return records.table(["task", "set", *CONTROLS], rows) if rows else ""

    def shares_of_clean(self, method: str, point: str) -> dict[str, float]:
        """PCC at a point over that of the clean section, by set."""
        shares = {}
        for view in self.found.views("robustness"):
            if view.point == point:
                clean = self.found.mean(view._replace(point=plan.CLEAN), method, "pcc")
                shares[view.group] = self.found.mean(view, method, "pcc") / clean if clean else float("nan")
        return shares

    def robustness(self) -> str:
        """Shares of the undisturbed PCC, by set."""
        views, parts = self.found.views("robustness"), []
        points = [point for point in dict.fromkeys(view.point for view in views) if point != plan.CLEAN]

        for clean in [view for view in views if view.point == plan.CLEAN]:

            def content(method: str, point: str, clean: View = clean) -> str:
                if point == plan.CLEAN:
                    return f"{self.found.mean(clean, method, 'pcc'):.3f}"
                return number(self.shares_of_clean(method, point).get(clean.group, np.nan), 2)

            columns = {point: point for point in (plan.CLEAN, *points)}
            parts += [f"### {clean.group}", by_method(self.found.methods(clean), columns, content)]
        if "robustness" in self.pictures:
            parts.append(f"![PCC under disturbances]({self.pictures['robustness']})")
        return "\n\n".join(parts)

    def scores(self, views: Mapping[str, View], methods: Iterable[str], *metrics: str, **head: str) -> str:
        """One column per view, of one or more scores."""

        def content(method: str, view: View) -> str:
            return " / ".join(cell(self.found.scores(view, method, metric)) for metric in metrics)

        return by_method(methods, views, content, **head)

    def panel(self) -> str:
        """PCC of the same genes among more and more others."""
        views, parts = self.found.views("panel"), []
        for group in dict.fromkeys(view.group for view in views):
            own = {view.point: view for view in views if view.group == group}
            methods = dict.fromkeys(method for view in own.values() for method in self.found.methods(view))
            parts += [f"### {group}", self.scores(own, methods, "pcc")]
        if "panel" in self.pictures:
            parts.append(f"![PCC by size of the panel]({self.pictures['panel']})")
        return "\n\n".join(parts)

    def domain_scores(self, method: str) -> dict[str, float]:
        """ARI by section."""
        done = self.found.done(task="domains", method=method)
        return {cell["section"]: float(next(iter(cell["scores"].values()))["ari"]) for cell in done}

    def domains(self) -> str:
        """ARI of every method in every section."""
        done = self.found.done(task="domains")
        own = {method: self.domain_scores(method) for method in dict.fromkeys(cell["method"] for cell in done)}

        def content(method: str, section: str) -> str:
            values = own[method]
            return number(values.get(section, np.nan) if section else np.mean(list(values.values())))

        columns = {section: section for section in dict.fromkeys(cell["section"] for cell in done)} | {"mean": ""}
        return by_method(own, columns, content) if own else ""

    def downstream(self) -> str:
        """Domains, spatially variable genes, cell types."""
        parts = []
        for one in self.declared["downstream"]:
            if "score" not in one:
                table = self.domains()
            else:
                views = [view for view in self.clean if view.task in ("phantom", "hr_sim", "hr_real")]
                views = {f"{v.task} {v.name}": v for v in views if present(self.found, v, (one["score"],))}
                table = self.scores(views, self.core, one["score"]) if views else ""
            parts += [f"### {one['title']}", one.get("text", ""), table] if table else []
        return "\n\n".join(part for part in parts if part)

    def costs(self) -> str:
        """Seconds and memory of every method in every task."""

        def content(method: str, task: str) -> str:
            costs = [cell["cost"] for cell in self.found.done(task=task, method=method)]
            if not costs:
                return "–"
            memory = max(cost.get("memory_mb", 0) for cost in costs)
            return f"{np.mean([cost['seconds'] for cost in costs]):.1f} s, {memory:.0f} MB"

        return by_method(
            self.core, {task: task for task in dict.fromkeys(c["task"] for c in self.found.done())}, content
        )

    def published(self) -> str:
        """Tables of publications, and ours with their definitions."""
        views = {f"{v.task} {v.name}": v for v in self.found.views() if present(self.found, v, LEGACY[:1])}
        table = self.declared["published"]
        rows = [[one["method"], *(f"{rmse:.3f} / {pcc:.3f}" for rmse, pcc in one["scores"])] for one in table["rows"]]
        parts = [
            table["why"].strip(),
            f"Published: {table['source']}.",
            records.table(["method (RMSE / PCC)", *table["columns"]], rows),
            "Here, with the same definitions:",
            self.scores(views, self.core, *LEGACY, head="method (legacy RMSE / PCC / SSIM)"),
        ]
        return "\n\n".join(parts) if views else ""

    def coverage(self) -> str:
        """Cells that are done, and what became of the others."""

        def content(method: str, task: str) -> str:
            own = [one["status"] for one in self.found.cells if (one["task"], one["method"]) == (task, method)]
            return f"{own.count('done')} of {len(own)}" if own else "–"

        tasks = {cell["task"]: cell["task"] for cell in self.found.cells}
        parts = [by_method(self.found.methods(), tasks, content)]
        problems = [[method, status, str(n), why.replace("|", "/")] for method, status, why, n in self.found.problems()]
        if problems:
            parts += ["Without scores:", records.table(["method", "", "cells", "why"], problems)]
        return "\n\n".join(parts)


if __name__ == "__main__":
    main()
