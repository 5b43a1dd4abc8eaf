"""Tables and figures from result files alone: ``hadmst-sc benchmark report``, or ``python benchmarks/report.py``.

Writes ``report.md``, one page per task, and pictures, beside the files of the profile. No number on them was typed.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import figures
import numpy as np
import pairs
import plan
import records
import scores
from outcomes import Results, View

OURS = "ours"
BETTER: dict[str, Callable[..., float]] = {"pcc": max, "rmse": min, "deviance": min}
TITLES = {
    "pcc": "PCC",
    "rmse": "RMSE (s.d.)",
    "deviance": "deviance",
    "ssim": "SSIM",
    "pcc_rate": "PCC of rate",
    "rmse_mean": "RMSE (mean)",
    "coherence": "coherence",
    "moran": "Moran rank",
    "colocalisation": "co-localisation",
    "colocalisation_rms": "its RMS error",
    "ari": "ARI",
}
SPREAD = ("pcc", "rmse")  # shown with ± s.d. over genes
THIRDS = ("scarce", "middle", "abundant")


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--profile", choices=plan.PROFILES, default="full")
    parser.add_argument("--results", type=Path, help="folder of result files (default: benchmarks/results/<profile>)")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    options = parse(arguments)
    folder = options.results or records.RESULTS / options.profile
    declared = plan.load()
    found = Results.read(folder, list(declared["tasks"]))
    if not found.cells:
        raise SystemExit(f"`--results` needs result files, but {folder} has none. Run `hadmst-sc benchmark` first.")
    pictures = figures.draw(found, folder)
    for task in dict.fromkeys(cell["task"] for cell in found.cells):
        (folder / f"{task}.md").write_text(task_page(found, task, declared) + "\n")
    page = summary(found, declared, options.profile, pictures)
    (folder / "report.md").write_text(page + "\n")
    print(page)


# --- a page for each task ---------------------------------------------------------------------------------------------


def task_page(found: Results, task: str, declared: dict[str, Any]) -> str:
    """Every method on every set of one task: scores, thirds of abundance, and differences from ours."""
    parts = [f"# {declared['tasks'][task]['title']}"]
    for view in found.views(task):
        if view.point != plan.CLEAN and "sweep" not in declared["tasks"][task]:
            continue  # curves are on the summary
        about = found.about(view)
        n_genes = sum(len(section["genes"]) for section in about.values())
        spots = [section["n_spots"] for section in about.values()]
        size = f"{min(spots):,}" + (f" to {max(spots):,}" if max(spots) > min(spots) else "")
        told = f"{len(about)} section(s) of {size} spots, {n_genes} (gene, section) pairs; mean ± s.d. over them."
        parts += [f"## {view.name}", told, _overview(found, view)]
        if _present(found, view, ("pcc",)):
            parts += ["By third of abundance, PCC / RMSE:", _by_label(found, view, _thirds)]
            if {kind for section in about.values() for kind in section["kinds"]} != {"real"}:
                parts += ["By what drives the gene, PCC / RMSE:", _by_label(found, view, lambda s: s["kinds"])]
            parts += ["Ours minus each, gene by gene, with 95 % intervals:", _differences(found, view)]
    return "\n\n".join([*parts, _made(found, task)])


def _present(found: Results, view: View, metrics: Iterable[str]) -> list[str]:
    methods = found.methods(view)
    return [metric for metric in metrics if any(found.scores(view, method, metric) for method in methods)]


def _overview(found: Results, view: View) -> str:
    metrics = _present(found, view, TITLES)
    rows = []
    for method in found.methods(view):
        cells = [cell(found.scores(view, method, metric), spread=metric in SPREAD) for metric in metrics]
        rows.append([method, *cells, *_cost(found, view, method)])
    return records.table(["method", *(TITLES[metric] for metric in metrics), "seconds", "MB"], rows)


def _cost(found: Results, view: View, method: str) -> list[str]:
    seconds, memory = (found.costs(view, method, name) for name in ("seconds", "memory_mb"))
    if not memory or not any(seconds):
        return ["–", "–"]
    return [f"{np.mean(seconds):.1f}", f"{max(memory):.0f}"]


def cell(values: dict[str, np.ndarray], *, spread: bool = False) -> str:
    """Mean over genes and sections; infinite scores are counted and not averaged."""
    if not values:
        return "–"
    every = np.concatenate(list(values.values()))
    infinite = ~np.isfinite(every)
    if infinite.all():
        return "∞"
    mean = f"{every[~infinite].mean():.3f}" + (f" ± {every[~infinite].std():.3f}" if spread else "")
    return mean + (f" ({infinite.sum()} ∞)" if infinite.any() else "")


def _thirds(section: dict[str, Any]) -> list[str]:
    return [THIRDS[third] for third in scores.tertiles(section["counts_per_spot"])]


def _by_label(found: Results, view: View, labels_of: Callable[[dict[str, Any]], Sequence[str]]) -> str:
    labels = {name: np.array(labels_of(section)) for name, section in found.about(view).items()}
    present = {str(label) for own in labels.values() for label in own}
    columns = [third for third in THIRDS if third in present] or sorted(present)
    rows = []
    for method in found.methods(view):
        cells = []
        for label in columns:
            of_label = [
                {name: values[labels[name] == label] for name, values in found.scores(view, method, metric).items()}
                for metric in ("pcc", "rmse")
            ]
            cells.append(" / ".join(cell(values) for values in of_label))
        rows.append([method, *cells])
    return records.table(["method", *columns], rows)


def _differences(found: Results, view: View) -> str:
    rows = []
    for method in found.methods(view):
        if method == OURS:
            continue
        cells = []
        for metric in BETTER:
            difference = pairs.paired(found.scores(view, OURS, metric), found.scores(view, method, metric))
            cells.append(interval(difference))
            if metric == "pcc":
                cells.append(f"{difference.greater:.0%} of {difference.n}" if difference else "–")
        rows.append([method, *cells])
    return records.table(["method", "PCC", "genes where ours is above", "RMSE", "deviance"], rows)


def interval(difference: pairs.Difference | None) -> str:
    """``+0.012 [+0.008, +0.016]``."""
    if difference is None:
        return "–"
    return f"{difference.mean:+.3f} [{difference.low:+.3f}, {difference.high:+.3f}]"


def _made(found: Results, task: str | None = None) -> str:
    """What made the numbers."""
    cells = [c for c in found.cells if c["status"] == "done" and task in (None, c["task"])]
    made = [c["made"] for c in cells]
    commits = sorted(
        {m["commit"][:12] + (" with uncommitted changes" if m["uncommitted_changes"] else "") for m in made}
    )
    machines = sorted({m["machine"] for m in made})
    versions = sorted({", ".join(f"{k} {v}" for k, v in m["versions"].items()) for m in made})
    weights = sorted({f"{name} {sha[:12]}" for c in cells for name, sha in c.get("weights", {}).items()})
    hours = sum(c["cost"].get("seconds", 0.0) for c in cells) / 3600
    return (
        f"{len(cells):,} cells, {hours:.1f} hours of one core; commit(s) {', '.join(commits)}; "
        f"{'; '.join(machines)}; {'; '.join(versions)}; weights {'; '.join(weights)}."
    )


# --- the summary ------------------------------------------------------------------------------------------------------


def summary(found: Results, declared: dict[str, Any], profile: str, pictures: dict[str, str]) -> str:
    """The page that shows wins, losses and controls."""
    command = "hadmst-sc benchmark" + (f" --profile {profile}" if profile != "full" else "")
    clean = [view for view in found.views() if view.point == plan.CLEAN and view.task not in ("domains", "robustness")]
    parts = [
        f"# Benchmark, {profile} profile",
        f"Written by `{command}` from the result files beside this page. {_made(found)}",
        "## What was asked for",
        targets(found, declared),
        "## Ours beside the best of the others",
        "Mean PCC over genes, and gene by gene the difference with its 95 % interval. *Best classical method* is the "
        "best, on this very set, of all that are neither ours nor published: with hindsight, which no user has.",
        _best_of_others(found, clean, declared),
        "## Where ours does not win",
        _losses(found, clean, declared),
        "## Every method on every task",
        "Mean PCC over genes; – where there is none.",
        _headline(found, clean, declared),
        "## Controls",
        _controls(found, clean),
        *_robustness(found, pictures),
        *_panel(found, pictures),
        *_downstream(found, declared),
        "## Cost",
        "Seconds for one section (all folds of a hold-out) on one core, and peak memory, the section included.",
        _costs(found, declared),
        *_published(found, declared),
        "## What was filled, and what was not",
        _coverage(found, declared),
    ]
    return "\n\n".join(part for part in parts if part)


def _main_methods(declared: dict[str, Any]) -> list[str]:
    """Those that are in every task."""
    return [*declared["methods"]["core"], *declared["methods"]["peers"]]


def _others(found: Results, view: View, declared: dict[str, Any]) -> tuple[list[str], list[str]]:
    """Classical methods and published tools that have scores here."""
    peers = declared["methods"]["peers"]
    references = {name for task in declared["tasks"].values() for name in task.get("references", [])}
    every = [name for name in found.methods(view) if not name.startswith(OURS) and name not in references]
    return [name for name in every if name not in peers], [name for name in every if name in peers]


def best(found: Results, view: View, methods: Sequence[str], metric: str = "pcc") -> str | None:
    """The method with the best mean; ``None`` where there is none."""
    means = {name: found.mean(view, name, metric) for name in methods}
    means = {name: mean for name, mean in means.items() if not np.isnan(mean)}
    return BETTER[metric](means, key=means.__getitem__) if means else None


def _best_of_others(found: Results, views: Sequence[View], declared: dict[str, Any]) -> str:
    rows = []
    for view in views:
        mine = found.scores(view, OURS, "pcc")
        if not mine:
            continue
        cells = [view.task, view.name, f"{found.mean(view, OURS, 'pcc'):.3f}"]
        for group in _others(found, view, declared):
            name = best(found, view, group)
            if name is None:
                cells += ["–", "–"]
                continue
            cells.append(f"{name} {found.mean(view, name, 'pcc'):.3f}")
            cells.append(interval(pairs.paired(mine, found.scores(view, name, "pcc"))))
        ceiling = max(
            (found.mean(view, name, "pcc") for name in ("split-half ceiling", "true rate")), key=np.nan_to_num
        )
        rows.append([*cells, "–" if np.isnan(ceiling) else f"{ceiling:.3f}"])
    columns = ["task", "set", "ours", "best classical method", "difference", "best published", "difference", "ceiling"]
    return records.table(columns, rows)


def _losses(found: Results, views: Sequence[View], declared: dict[str, Any]) -> str:
    rows, compared = [], 0
    for view in views:
        classical, published = _others(found, view, declared)
        for metric, better in BETTER.items():
            for name in [*classical, *published]:
                difference = pairs.paired(found.scores(view, OURS, metric), found.scores(view, name, metric))
                if difference is None:
                    continue
                compared += 1
                if difference.sign * (1 if better is max else -1) < 0:
                    rows.append([view.task, view.name, TITLES[metric], name, interval(difference)])
    told = (
        f"Of {compared:,} comparisons (set × score × method that is not ours), the interval of ours minus the other "
        f"lies on the wrong side of zero in {len(rows)}:"
    )
    return told + (
        "\n\n" + records.table(["task", "set", "score", "method", "ours minus it"], rows) if rows else " none."
    )


def _headline(found: Results, views: Sequence[View], declared: dict[str, Any]) -> str:
    methods = _main_methods(declared)
    columns: list[tuple[str, list[View]]] = []
    for view in views:
        name = f"{view.task} {view.name}"
        if view.task == "holdout":  # sections of one kind in one column
            name = "holdout " + view.group.rstrip("0123456789").rstrip("_C")
        if columns and columns[-1][0] == name:
            columns[-1][1].append(view)
        else:
            columns.append((name, [view]))
    rows = []
    for method in methods:
        cells = []
        for _, own in columns:
            means = [found.mean(view, method, "pcc") for view in own]
            cells.append("–" if np.isnan(means).any() else f"{np.mean(means):.3f}")
        rows.append([method, *cells])
    return records.table(["method", *(name for name, _ in columns)], rows)


def _controls(found: Results, views: Sequence[View]) -> str:
    names = [OURS, "ours, no alignment", "ours, no H&E", "ours, H&E upside down", "cubic"]
    rows = []
    for view in views:
        means = [found.mean(view, name, "pcc") for name in names]
        if not np.isnan(means).any():
            rows.append([view.task, view.name, *(f"{mean:.3f}" for mean in means)])
    if not rows:
        return ""
    table = records.table(["task", "set", *names], rows)
    return (
        "Mean PCC. An image upside down must not beat no image; with no image ours must not be below cubic.\n\n" + table
    )


# --- curves, downstream use, cost -------------------------------------------------------------------------------------


def shares_of_clean(found: Results, method: str, point: str) -> dict[str, float]:
    """PCC at a point over that of the clean section, by set."""
    shares = {}
    for view in found.views("robustness"):
        if view.point == point:
            clean = found.mean(view._replace(point=plan.CLEAN), method, "pcc")
            shares[view.group] = found.mean(view, method, "pcc") / clean if clean else float("nan")
    return shares


def _robustness(found: Results, pictures: dict[str, str]) -> list[str]:
    views = found.views("robustness")
    if not views:
        return []
    parts = [
        "## Robustness",
        "Mean PCC as a share of that on the undisturbed section; in the first column the PCC itself.",
    ]
    points = [point for point in dict.fromkeys(view.point for view in views) if point != plan.CLEAN]
    for group in dict.fromkeys(view.group for view in views):
        clean = next(view for view in views if view.group == group and view.point == plan.CLEAN)
        rows = []
        for method in found.methods(clean):
            base = found.mean(clean, method, "pcc")
            shares = [shares_of_clean(found, method, point).get(group, float("nan")) for point in points]
            cells = ["–" if np.isnan(share) else f"{share:.2f}" for share in shares]
            rows.append([method, f"{base:.3f}", *cells])
        parts += [f"### {group}", records.table(["method", "clean", *points], rows)]
    if "robustness" in pictures:
        parts.append(f"![PCC under disturbances]({pictures['robustness']})")
    return parts


def _panel(found: Results, pictures: dict[str, str]) -> list[str]:
    views = found.views("panel")
    if not views:
        return []
    parts = [
        "## Size of the panel",
        "Mean PCC at held-out spots of the same ten genes, predicted among more and more others.",
    ]
    for group in dict.fromkeys(view.group for view in views):
        own = [view for view in views if view.group == group]
        methods = dict.fromkeys(method for view in own for method in found.methods(view))
        rows = [[m, *(cell(found.scores(view, m, "pcc")) for view in own)] for m in methods]
        parts += [f"### {group}", records.table(["method", *(view.point for view in own)], rows)]
    if "panel" in pictures:
        parts.append(f"![PCC by size of the panel]({pictures['panel']})")
    return parts


def domain_scores(found: Results, method: str) -> dict[str, float]:
    """ARI by section."""
    return {
        cell["section"]: float(next(iter(cell["scores"].values()))["ari"])
        for cell in found.done(task="domains", method=method)
    }


def _downstream(found: Results, declared: dict[str, Any]) -> list[str]:
    parts = ["## What users do next"]
    sections = list(dict.fromkeys(cell["section"] for cell in found.done(task="domains")))
    if sections:
        rows = []
        for method in dict.fromkeys(cell["method"] for cell in found.done(task="domains")):
            own = domain_scores(found, method)
            mean = f"{np.mean(list(own.values())):.3f}"
            rows.append([method, *(f"{own[s]:.3f}" if s in own else "–" for s in sections), mean])
        told = (
            "Adjusted Rand index of clusters against annotated layers or true regions; the same recipe for every "
            "method. *spots* clusters the measured spots themselves. Smoothing alone raises it: see kriging."
        )
        parts += ["### Domains", told, records.table(["method", *sections, "mean"], rows)]
    metrics = {"moran": "Moran's I, rank agreement", "colocalisation": "Co-localisation of cell types"}
    for metric, title in metrics.items():
        views = [v for v in found.views() if v.point == plan.CLEAN and _present(found, v, (metric,))]
        views = [v for v in views if v.task in ("phantom", "hr_sim", "hr_real")]
        if not views:
            continue
        methods = _main_methods(declared)
        rows = [[m, *(cell(found.scores(view, m, metric)) for view in views)] for m in methods]
        parts += [f"### {title}", records.table(["method", *(f"{v.task} {v.name}" for v in views)], rows)]
    return parts if len(parts) > 1 else []


def _costs(found: Results, declared: dict[str, Any]) -> str:
    tasks = list(dict.fromkeys(cell["task"] for cell in found.done()))
    rows = []
    for method in _main_methods(declared):
        cells = []
        for task in tasks:
            costs = [cell["cost"] for cell in found.done(task=task, method=method)]
            memory = max((cost.get("memory_mb", 0) for cost in costs), default=0)
            seconds = [cost["seconds"] for cost in costs]
            cells.append(f"{np.mean(seconds):.1f} s, {memory:.0f} MB" if costs else "–")
        rows.append([method, *cells])
    return records.table(["method", *tasks], rows)


def _published(found: Results, declared: dict[str, Any]) -> list[str]:
    views = [view for view in found.views() if _present(found, view, ("legacy_rmse",))]
    if not views:
        return []
    table = declared["published"]
    parts = ["## Beside published tables", table["why"].strip()]
    rows = [[one["method"], *(f"{rmse:.3f} / {pcc:.3f}" for rmse, pcc in one["scores"])] for one in table["rows"]]
    parts += [f"Published: {table['source']}.", records.table(["method (RMSE / PCC)", *table["columns"]], rows)]
    methods = _main_methods(declared)
    rows = []
    for method in methods:
        of_method = [
            " / ".join(cell(found.scores(view, method, m)) for m in ("legacy_rmse", "legacy_pcc", "legacy_ssim"))
            for view in views
        ]
        rows.append([method, *of_method])
    columns = ["method (legacy RMSE / PCC / SSIM)", *(f"{view.task} {view.name}" for view in views)]
    return [*parts, "Here, with the same definitions:", records.table(columns, rows)]


def _coverage(found: Results, declared: dict[str, Any]) -> str:
    tasks = list(dict.fromkeys(cell["task"] for cell in found.cells))
    rows = []
    for method in found.methods():
        cells = []
        for task in tasks:
            own = [cell for cell in found.cells if cell["task"] == task and cell["method"] == method]
            done = sum(cell["status"] == "done" for cell in own)
            cells.append(f"{done} of {len(own)}" if own else "–")
        rows.append([method, *cells])
    parts = ["Cells with scores, of those planned.", records.table(["method", *tasks], rows)]
    problems = [[method, status, str(n), reason.replace("|", "/")] for method, status, reason, n in found.problems()]
    if problems:
        parts += ["Without scores:", records.table(["method", "", "cells", "why"], problems)]
    return "\n\n".join(parts)


# --- what was asked for -----------------------------------------------------------------------------------------------


def targets(found: Results, declared: dict[str, Any]) -> str:
    """Figures that the project set itself, beside what was measured."""
    rows = []
    core = _main_methods(declared)
    tasks = list(dict.fromkeys(cell["task"] for cell in found.cells))
    everywhere = [m for m in core if all(found.done(task=task, method=m) for task in tasks)]
    peers = [m for m in everywhere if m in declared["methods"]["peers"]]
    whole = [m for m in everywhere if all(cell["status"] == "done" for cell in found.cells if cell["method"] == m)]
    told = f"{len(everywhere)}, of them {len(peers)} published; {len(whole)} without a failed or skipped cell"
    rows.append(["methods on all tasks", "≥ 14, of them ≥ 2 published", told])
    for point, least in declared.get("targets", {}).get("robustness", {}).items():
        for group, share in shares_of_clean(found, OURS, point).items():
            of_peers = [(m, shares_of_clean(found, m, point).get(group)) for m in declared["methods"]["peers"]]
            told = ", ".join(f"{m} {s:.3f}" for m, s in of_peers if s is not None and not np.isnan(s))
            told = told or "no published tool"
            rows.append([f"PCC, {point}, {group}", f"≥ {least:.2f} of clean", f"{share:.3f} ({told})"])
    spots, own = domain_scores(found, "spots"), domain_scores(found, OURS)
    if own:
        above = sum(own[name] > spots[name] for name in own if name in spots)
        rows.append(["domain ARI above that of the spots", "≥ 4 of 5 sections", f"{above} of {len(own)}"])
    return records.table(["", "at least", "measured"], rows)


if __name__ == "__main__":
    main()
