"""Every figure of the model on one page: ``hadmst-sc benchmark model``, or ``python benchmarks/model.py``.

Runs ``quality.py`` on all tasks, each real set with the weights of the split that never saw its tissue (see
``training/``), then writes ``results/model.md`` from the JSON files alone. ``--only-page`` skips the runs; ``--ours``
runs ours and the controls and keeps the baselines of an earlier run.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import quality
import report
from baselines import CONTROLS, DRAW, UNALIGNED, UNGATED

BREAST = tuple(f"her2st_C{n}" for n in range(2, 7))
BRAIN = ("visium_mouse_brain", "visium_dlpfc_151673", *(f"st_mob_{n}" for n in range(1, 5)))
RUNS = (  # task, its sections, and the weights that have not seen them
    ("phantoms", (), "default"),
    ("cells", ("breast_simulated", "breast_real"), "training/brain_only.safetensors"),
    ("cells", ("brain_simulated",), "training/breast_only.safetensors"),
    ("holdout", BREAST, "training/brain_only.safetensors"),
    ("holdout", BRAIN, "training/breast_only.safetensors"),
)
BEST_OF = (
    "kriging",
    "ridge + kriging",
    "GP on H&E + space",
    "ridge on H&E, soft spread",
    "ridge on H&E, log, soft spread",
)
BETTER = {"pcc": max, "rmse": min, "deviance": min, "coherence": max}
OURS = "ours"


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only-page", action="store_true", help="write the page from the results that are there")
    parser.add_argument("--ours", action="store_true", help="run ours and the controls alone, keep the baselines")
    parser.add_argument("--output", type=Path, default=report.RESULTS)
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    options = parse(arguments)
    for task, sections, weights in () if options.only_page else RUNS:
        command = [task, "--weights", weights, "--output", str(options.output)]
        command += ["--sections", *sections] if sections else []
        more = [UNALIGNED, *CONTROLS] if task == "cells" else []
        command += ["--add", "--methods", "ours, closed form", OURS, UNGATED, DRAW, *more] if options.ours else []
        quality.main(command)
    page = render(load(options.output))
    (options.output / "model.md").write_text(page + "\n")
    print(page)


def load(folder: Path) -> dict[str, dict[str, Any]]:
    """The records of all runs that are there, by file name."""
    names = ["phantoms"]
    for task, sections, _ in RUNS:
        names += [f"{task}_{section}" for section in sections]
    return {name: json.loads(path.read_text()) for name in names if (path := folder / f"{name}.json").exists()}


class Set(NamedTuple):
    """Scores of all methods on one set: a section, or one kind of phantoms."""

    name: str
    file: str
    scores: dict[str, dict[str, np.ndarray]]  # method, metric; (genes,), coherence one value per section

    def mean(self, method: str, metric: str) -> float:
        """Mean over genes."""
        values = self.scores[method].get(metric, np.array([np.nan]))
        return float(values.mean())

    def closed_form(self, metric: str) -> float:
        """Best of the classical methods, each with its better link and consistency."""
        found = [self.mean(method, metric) for method in self.scores if method.startswith(BEST_OF)]
        return BETTER[metric](found)


def sets(records: dict[str, dict[str, Any]]) -> Iterator[Set]:
    """All sets of all records."""
    for file, record in records.items():
        tasks = dict.fromkeys(section["task"] for section in record["sections"].values())
        for task in tasks:
            scores: dict[str, dict[str, list[Any]]] = {}
            for result in record["results"]:
                if record["sections"][result["section"]]["task"] != task:
                    continue
                own = scores.setdefault(result["method"], {})
                for metric in (*BETTER, "pcc"):
                    if metric in result and metric not in own:
                        own[metric] = []
                for metric in own:
                    own[metric] += np.atleast_1d(result[metric]).tolist()
            arrays = {m: {k: np.array(v, float) for k, v in s.items()} for m, s in scores.items()}
            yield Set(task, file, arrays)


def render(records: dict[str, dict[str, Any]]) -> str:
    """The page."""
    every = list(sets(records))
    rows = []
    for one in every:
        pcc, closed = one.mean(OURS, "pcc"), one.closed_form("pcc")
        cells = [f"{pcc:.3f}", f"{closed:.3f}", f"{pcc - closed:+.3f}", f"{pcc / closed:.3f}"]
        for metric in ("rmse", "deviance"):
            cells.append(f"{one.mean(OURS, metric) / one.closed_form(metric):.3f}")
        for method in (OURS, DRAW):
            known = method in one.scores
            ratio = f"{one.mean(method, 'coherence') / one.closed_form('coherence'):.3f}" if known else "–"
            cells.append(ratio)
        cells.append(f"{one.mean('ours, closed form', 'pcc'):.3f}")
        rows.append([one.name, *cells])
    columns = ["set", "ours", "best closed form", "gain", "ratio", "RMSE ratio", "deviance ratio"]
    columns += ["coherence ratio", "of a draw", "ours without network"]
    parts = [
        "# The model beside the best closed form",
        "Mean PCC over genes. *Best closed form*: the best of kriging, ridge + kriging, GP on H&E + space and ridge on "
        "H&E with spread, each with its better link and consistency, metric by metric. Each real set is scored with "
        "weights that never saw its tissue: breast with those trained on brain, brain with those trained on breast. "
        'On the real spots of the breast ours moves them onto the image (`align="spots"`), where the truth lies; '
        "no other method registers.",
        report.table(columns, rows),
        _never_worse(every),
        _controls(every),
        "Weights: " + "; ".join(sorted({_weights(record) for record in records.values()})) + ".",
    ]
    return "\n\n".join(parts)


def _weights(record: dict[str, Any]) -> str:
    return ", ".join(f"{name} {digest[:12]}" for name, digest in record["provenance"].get("weights_sha256", {}).items())


def _never_worse(every: Iterable[Set]) -> str:
    real = [one for one in every if one.file != "phantoms"]
    worse = np.concatenate([one.scores[OURS]["pcc"] < one.scores["cubic"]["pcc"] - 0.01 for one in real])
    held = [one for one in real if one.file.startswith("holdout")]
    gain = np.mean([one.mean(OURS, "pcc") - one.closed_form("pcc") for one in held])
    return (
        f"Below cubic by more than 0.01 PCC: {worse.mean():.1%} of {len(worse):,} (set, gene) pairs of real tissue. "
        f"Mean gain over the best closed form on the {len(held)} hold-outs: {gain:+.3f}."
    )


def _controls(every: Iterable[Set]) -> str:
    rows = []
    for one in every:
        present = [name for name in (OURS, UNALIGNED, *CONTROLS, "cubic") if name in one.scores]
        if len(present) == 3 + len(CONTROLS):
            rows.append([one.name, *(f"{one.mean(name, 'pcc'):.3f}" for name in present)])
    if not rows:
        return ""
    return "Controls, PCC:\n\n" + report.table(["set", OURS, UNALIGNED, *CONTROLS, "cubic"], rows)


if __name__ == "__main__":
    main()
