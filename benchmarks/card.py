"""The model card of the bundled weights, from files alone: ``python benchmarks/card.py``.

Reads ``_weights/default.json`` (what training wrote) and ``results/full/*.jsonl`` (what the benchmark wrote), puts
their tables into ``card_template.md`` and writes ``_weights/default.md``. Run it again whenever one of them changes.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import plan
import records
from outcomes import Results, View
from tables import BETTER, TITLES, by_method

import hadmst_sc

TEMPLATE = Path(__file__).with_name("card_template.md")
WEIGHTS = Path(hadmst_sc.__file__).parent / "models" / "_weights" / "default.json"
KINDS = {"phantom": "Phantoms", "hr_sim": "Simulated spots", "hr_real": "Real spots"}
KINDS |= {"holdout": "Spot hold-out", "blocks": "Block hold-out"}
# By family: of its variants (link, consistency, kriging of the rest, registration) each column shows the best.
BASELINES = ("nearest", "linear", "kriging", "ridge on H&E", "ridge + kriging", "GP on H&E + space")
BASELINES += ("nearest neighbours", "gradient boosting", "extra trees", "Poisson trees", "stack of three")
BASELINES += ("joint bilateral", "U-Net", "iStar's head", "TESLA", "FineST")
OURS = "ours"
SINGLE = ("ours, closed form", OURS, "split-half ceiling")  # without variants
# Weights of the same recipe that saw real tissue of one kind only, and are scored on the other.
SPLITS = {"breast_only.safetensors", "brain_only.safetensors"}
LAST_ROWS = 10  # of the log, averaged: single rows are noisy


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--card", type=Path, default=WEIGHTS, help="JSON card beside the weights")
    parser.add_argument("--results", type=Path, default=records.RESULTS / "full")
    options = parser.parse_args(arguments)
    card = json.loads(options.card.read_text())
    found = Results.read(options.results, list(plan.load()["tasks"]))
    target = options.card.with_suffix(".md")
    target.write_text(render(card, found, name=options.card.stem))
    print(f"wrote {target}")


def render(card: dict[str, Any], found: Results, name: str = "default") -> str:
    """The Markdown page of a card and the results of the benchmark."""
    spec, config, log = card["spec"], card["training"], card["log"]
    bank, tail = config["bank"], log[-LAST_ROWS:]
    mean, denoising = (np.mean([row[key] for row in tail]) for key in ("mean", "denoising"))
    network = {
        "parameters": f"{card['n_parameters']:,}",
        "widths": " / ".join(map(str, spec["widths"])),
        "inputs": "{context} maps of the section, {token} statistics of the gene, its priors and spots".format(**spec),
        "halo": f"{spec['halo']} bins",
        "sha256": f"`{card['sha256']}`",
    }
    training = {
        "seed": str(config["seed"]),
        "steps": f"{int(log[-1]['step']):,} of {config['steps']:,}",
        "step": f"{config['sections']} sections × {config['genes']} genes × {config['crop']}² bins",
        "without H&E": f"{config['drop_he']:.0%} of the crops",
        "time": _hours(log),
        "mean loss": f"{mean:.3f} (Poisson deviance, relative to the closed form's)",
        "denoising loss": f"{denoising:.3f} (Karras et al. 2022, Eq. 8)",
    }
    if config.get("draw"):
        losses = f"score weighs {config['draw']:g}, discriminator {config['adversary']:g}"
        training["draws of one evaluation"] = losses
    total = sum(kind["share"] for kind in bank["kinds"])
    geometries = [
        [f"{kind[key]:g}" for key in ("size_um", "bin_um", "spot_um", "pitch_um")] + [f"{kind['share'] / total:.0%}"]
        for kind in bank["kinds"]
    ]
    return TEMPLATE.read_text().format(
        name=name,
        network=records.table(["", "value"], list(network.items())),
        real=_real(config),
        n_phantoms=bank["n_phantoms"],
        first_seed=bank["first_seed"],
        last_seed=bank["first_seed"] + bank["n_phantoms"] - 1,
        n_genes=bank["n_genes"],
        geometries=records.table(["section, µm", "bin, µm", "spot, µm", "pitch, µm", "share"], geometries),
        training=records.table(["", "value"], list(training.items())),
        first_step=int(tail[0]["step"]),
        last_step=int(log[-1]["step"]),
        figures="\n\n".join(_figures(card["sha256"], found)),
    )


def _real(config: dict[str, Any]) -> str:
    """Which real sections were trained on, and from where training started."""
    real = config["bank"].get("real", [])
    if not real:
        return "**No real section was trained on.**"
    names = ", ".join(f"`{section['name']}`" for section in real)
    return (
        f"Second stage, from `{config['start_from']}` (with its card). **Real sections trained on**, by masked "
        f"spots, {config['real_share']:.0%} of the crops: {names}. Sources and licences are in `docs/how_to/train.md`."
    )


def _hours(log: list[dict[str, float]]) -> str:
    """Seconds start anew when training resumes: the last of each stretch is what it took."""
    seconds = [row.get("seconds") for row in log]
    if None in seconds:
        return "not recorded"
    ends = [now for now, after in zip(seconds, [*seconds[1:], -1.0], strict=True) if after < now]
    return f"{sum(ends) / 60:.0f} min"


def _figures(sha256: str, found: Results) -> Iterable[str]:
    """A table per view, unless other weights made it; what is missing is named with its command."""
    for view in found.views():
        if view.task in KINDS and view.point == plan.CLEAN and OURS in found.methods(view):
            used = _used(found, view)
            if sha256 in used.values() or set(used) & SPLITS:
                yield _table(found, view, set(used) & SPLITS)
            else:
                command = f"hadmst-sc benchmark --tasks {view.task}"
                yield f"{view.task} {view.name} was not made with these weights: run `{command}` again."
    for task in KINDS:
        if not found.done(task=task, method=OURS):
            yield f"Figures of `{task}` are missing: run `hadmst-sc benchmark --tasks {task}`."


def _used(found: Results, view: View) -> dict[str, str]:
    """sha256 of the weights of ours, by the name of their file."""
    cells = found.done(task=view.task, group=view.group, method=OURS)
    return {Path(name).name: digest for cell in cells for name, digest in cell["weights"].items()}


def _table(found: Results, view: View, splits: set[str]) -> str:
    about = found.about(view)
    n_genes = sum(len(section["genes"]) for section in about.values())
    title = f"### {KINDS[view.task]}: {view.name.replace('_', ' ')}\n\n{len(about)} section(s), {n_genes} genes."
    for weights in splits:
        title += f" Weights of the split, `training/{weights}`, which never saw this tissue."
    present = found.methods(view)
    families = {
        name: [m for m in present if m == name or m.startswith((f"{name}, ", f"{name} +"))] for name in BASELINES
    }
    families |= {name: [m for m in present if m == name] for name in SINGLE}

    def best(family: str, metric: str) -> str:
        """Mean over genes of the variant that scores best; infinite scores count as such."""
        means = [mean for method in families[family] if not np.isnan(mean := found.mean(view, method, metric))]
        if not means:
            return "–"
        value = BETTER[metric](means)
        return f"{value:.3f}" if np.isfinite(value) else "∞"

    scored = [name for name, variants in families.items() if variants]
    return f"{title}\n\n{by_method(scored, {TITLES[metric]: metric for metric in BETTER}, best)}"


if __name__ == "__main__":
    main()
