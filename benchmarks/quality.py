"""Accuracy of ours beside every baseline: ``python benchmarks/quality.py {phantoms,holdout,cells}``.

Writes ``results/<task>.json`` (a score per gene, method and section) and ``results/<task>.md``, made from that JSON.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import highres
import numpy as np
import report
import tasks
from baselines import CONTROLS, METHODS, UNALIGNED, Method, methods_with

TITLES = {
    "pcc": "PCC",
    "rmse": "RMSE (s.d.)",
    "deviance": "deviance",
    "pcc_rate": "PCC of rate",
    "rmse_mean": "RMSE (mean)",
}
THIRDS = ("scarce", "middle", "abundant")
SLOW = "GP on H&E + space"  # left out of --quick


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=["phantoms", "holdout", "cells"])
    parser.add_argument(
        "--methods", nargs="+", choices=[*METHODS, UNALIGNED, *CONTROLS], metavar="METHOD", help="default: all"
    )
    parser.add_argument("--sections", nargs="+", help="for holdout (default: visium_mouse_brain) and cells (all)")
    parser.add_argument("--seeds", type=int, default=4, help="phantoms per set; test seeds start at 900,000")
    parser.add_argument("--weights", default="default", help="bundled name or path; see training/ for those of a split")
    parser.add_argument("--bin-um", type=float, default=20.0, help="for holdout")
    parser.add_argument("--quick", action="store_true", help="less of everything, to see that it runs")
    parser.add_argument("--add", action="store_true", help="keep an earlier result's rows of other methods")
    parser.add_argument("--output", type=Path, default=report.RESULTS)
    return parser.parse_args(arguments)


def chosen_methods(options: argparse.Namespace) -> list[str]:
    if options.methods:
        return options.methods
    names = [name for name in (*METHODS, *CONTROLS) if not (options.quick and name.startswith(SLOW))]
    # Discs do not overlap, so a rule that only touches measured bins leaves held-out spots as they were.
    return [name for name in names if not (options.task == "holdout" and name.endswith("soft"))]


def main(arguments: list[str] | None = None) -> None:
    options = parse(arguments)
    names = chosen_methods(options)

    def chosen(align: bool | str = True) -> dict[str, Method]:
        every = methods_with(options.weights, align)
        return {name: every[name] for name in names}

    methods = chosen()
    made = report.provenance(weights=options.weights if any(n.startswith("ours") for n in methods) else None)
    quick = "_quick" if options.quick else ""
    if options.task == "phantoms":
        settings = {
            "n_seeds": 1 if options.quick else options.seeds,
            "size_um": 960.0 if options.quick else 1920.0,
            "n_genes": 16 if options.quick else 64,
        }
        record = collect(made, settings, tasks.phantoms(methods, **settings))
        save(f"phantoms{quick}", record, options)
        return
    if options.task == "cells":
        for name in options.sections or highres.CASES:
            settings = {"n_genes": 20 if options.quick else 200}
            aligned = chosen(highres.ALIGN.get(name, True))
            record = collect(made, settings, highres.highres(aligned, highres.CASES[name](**settings)))
            save(f"cells_{name}{quick}", record, options)
        return
    for section in options.sections or ["visium_mouse_brain"]:
        settings = {"n_genes": 50 if options.quick else 200, "bin_um": options.bin_um}
        obs = tasks.load_section(section, **settings)
        settings["n_folds"] = 1 if options.quick else tasks.N_FOLDS
        record = collect(made, settings, tasks.holdout(methods, section, obs, settings["n_folds"]))
        save(f"holdout_{section}{quick}", record, options)


def save(name: str, record: dict[str, Any], options: argparse.Namespace) -> None:
    """Write the record; with ``--add``, in front of its rows those of the methods that an earlier one had besides."""
    earlier = options.output / f"{name}.json"
    if options.add and earlier.exists():
        old = json.loads(earlier.read_text())
        if old["settings"] != record["settings"]:
            raise SystemExit(f"`--add` needs equal settings, but {earlier} has {old['settings']}.")
        again = {result["method"] for result in record["results"]}
        record["results"] = [r for r in old["results"] if r["method"] not in again] + record["results"]
        record["earlier"] = [*old.get("earlier", []), old["provenance"]]
    report.save(name, record, render(record), options.output)


def collect(made: dict[str, Any], settings: dict[str, Any], rows: Iterable[tasks.Row]) -> dict[str, Any]:
    """All rows as plain lists: genes once per section, scores once per method."""
    sections: dict[str, dict[str, Any]] = {}
    results = []
    for row in rows:
        print(f"  {row.section}: {row.method} ({row.seconds:.1f} s)", flush=True)
        sections[row.section] = {
            "task": row.task,
            "n_spots": row.n_spots,
            "genes": list(row.genes),
            "kinds": list(row.kinds),
            "counts_per_spot": _plain(row.depth),
        }
        scores = {name: _plain(values) for name, values in row.scores.items()}
        overall = {name: round(value, 4) for name, value in row.overall.items()}
        about = {"section": row.section, "method": row.method, "seconds": round(row.seconds, 2)}
        results.append(about | scores | overall)
    return {"provenance": made, "settings": settings, "sections": sections, "results": results}


def _plain(values: np.ndarray) -> list[float | None]:
    """Four decimals; ``None`` where a score is infinite, as JSON has no infinity."""
    return [round(float(value), 4) if np.isfinite(value) else None for value in values]


def render(record: dict[str, Any]) -> str:
    """The Markdown page of a record."""
    names = list(dict.fromkeys(section["task"] for section in record["sections"].values()))
    parts = ["# Quality: " + ", ".join(names)]
    for name in names:
        sections = {key: value for key, value in record["sections"].items() if value["task"] == name}
        results = [result for result in record["results"] if result["section"] in sections]
        n_spots = [section["n_spots"] for section in sections.values()]
        n_genes = sum(len(section["genes"]) for section in sections.values())
        spots = f"{min(n_spots):,}" + (f" to {max(n_spots):,}" if max(n_spots) > min(n_spots) else "")
        parts.append(
            f"## {name}\n\n{len(sections)} section(s) of {spots} spots, {n_genes} genes; mean ± s.d. over genes."
        )
        parts += [_overview(results), "By third of abundance, PCC / RMSE:", _by_group(results, sections, "third")]
        if {kind for section in sections.values() for kind in section["kinds"]} != {"real"}:
            parts += ["By what drives the gene, PCC / RMSE:", _by_group(results, sections, "kind")]
    return "\n\n".join([*parts, report.footer(record)])


def _pooled(results: list[dict], method: str, metric: str) -> np.ndarray:
    values = [value for result in results if result["method"] == method for value in result.get(metric, [])]
    return np.array([np.inf if value is None else value for value in values])


def _cell(values: np.ndarray, *, spread: bool = False) -> str:
    if not len(values):
        return "–"
    infinite = ~np.isfinite(values)
    if infinite.all():
        return "∞"
    mean = f"{values[~infinite].mean():.3f}" + (f" ± {values[~infinite].std():.3f}" if spread else "")
    return mean + (f" ({infinite.sum()} ∞)" if infinite.any() else "")


def _overview(results: list[dict]) -> str:
    metrics = [metric for metric in TITLES if any(metric in result for result in results)]
    rows = []
    for method in dict.fromkeys(result["method"] for result in results):
        seconds = np.mean([result["seconds"] for result in results if result["method"] == method])
        cells = [_cell(_pooled(results, method, metric), spread=metric in ("pcc", "rmse")) for metric in metrics]
        of_all = [result["coherence"] for result in results if result["method"] == method and "coherence" in result]
        rows.append([method, *cells, _cell(np.array(of_all)), f"{seconds:.1f}"])
    return report.table(["method", *(TITLES[metric] for metric in metrics), "coherence", "seconds"], rows)


def _by_group(results: list[dict], sections: dict[str, dict], by: str) -> str:
    methods = list(dict.fromkeys(result["method"] for result in results))
    of_gene = {}
    for key, section in sections.items():
        thirds = [THIRDS[third] for third in tasks.tertiles(section["counts_per_spot"])]
        of_gene[key] = np.array(section["kinds"] if by == "kind" else thirds)
    present = {str(name) for groups in of_gene.values() for name in groups}
    groups = sorted(present) if by == "kind" else [third for third in THIRDS if third in present]
    rows = []
    for method in methods:
        own = [result for result in results if result["method"] == method]
        label = np.concatenate([of_gene[result["section"]] for result in own])
        pcc, rmse = (_pooled(own, method, metric) for metric in ("pcc", "rmse"))
        rmse = rmse if len(rmse) else np.full(len(pcc), np.nan)
        cells = [(pcc[label == g], rmse[label == g]) for g in groups]
        rows.append([method, *(_cell(a) + ("" if np.isnan(b).all() else f" / {_cell(b)}") for a, b in cells)])
    return report.table(["method", *groups], rows)


if __name__ == "__main__":
    main()
