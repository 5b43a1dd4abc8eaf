"""The model card of the bundled weights, from files alone: ``python benchmarks/card.py``.

Reads ``_weights/default.json`` (what training wrote) and ``results/full/*.jsonl`` (what the benchmark wrote), writes
``_weights/default.md``. Run it again whenever one of them changes.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import plan
import records
from outcomes import Results, View
from plan import CLEAN
from tables import BETTER, TITLES

import hadmst_sc

WEIGHTS = Path(hadmst_sc.__file__).parent / "models" / "_weights" / "default.json"
KINDS = {"phantom": "Phantoms", "hr_sim": "Simulated spots", "hr_real": "Real spots", "holdout": "Spot hold-out"}
# Baselines by family: of the variants of a family (link, consistency) each column shows the best.
BASELINES = (
    "nearest",
    "linear",
    "cubic",
    "kriging",
    "ridge on H&E",
    "nearest neighbours",
    "gradient boosting",
    "ridge + kriging",
    "GP on H&E + space",
    "U-Net",
    "TESLA",
    "FineST",
)
OURS = ("ours, closed form", "ours")
BOUNDS = ("split-half ceiling",)
# Weights of the same recipe that saw real tissue of one kind only, and are scored on the other.
SPLITS = {"breast_only.safetensors", "brain_only.safetensors"}
LAST_ROWS = 10  # of the log, averaged: single rows are noisy

USE = """\
## Intended use

Estimates of expected counts per bin, to explore a section with H&E and spots (Visium, legacy ST), through
`hadmst_sc.tl.superresolve`. Genes and species are free: the network knows a gene by its maps and statistics on the
section alone. Not for diagnosis, and not for tests that count bins as replicates."""

LIMITS = """\
## Limits

- What it gains over the closed form on phantoms need not carry over to real tissue: go by the held-out spots of real
  sections. On small sections (180 spots of legacy ST) the closed form alone (`model=None`) was as good or better; the
  gate then takes less of the network, but what the student adds to the closed form stays.
- The real sections that these weights saw are no hold-out for them; the figures on real tissue are those of two splits.
- Maps are posterior means, smoother than tissue. The standard deviation is the model's under its training tissues, not
  every way of being wrong.
- Between the spots nothing was measured. What neither image nor spots show is not found.
- Other sizes of bins, spots and pitches than in the table above were never seen in training, nor square spots.
- Scanners, stains and tissues beyond the phantoms' randomisation were never seen either."""


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--card", type=Path, default=WEIGHTS, help="JSON card beside the weights")
    parser.add_argument("--results", type=Path, default=records.RESULTS / "full")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    options = parse(arguments)
    card = json.loads(options.card.read_text())
    found = Results.read(options.results, list(plan.load()["tasks"]))
    target = options.card.with_suffix(".md")
    target.write_text(render(card, found, name=options.card.stem) + "\n")
    print(f"wrote {target}")


def render(card: dict[str, Any], found: Results, name: str = "default") -> str:
    """The Markdown page of a card and the results of the benchmark."""
    return "\n\n".join(
        [
            f"# Model card: `{name}`",
            _what(card),
            _training(card["training"], card["log"]),
            _figures(card, found),
            USE,
            LIMITS,
            "## Licence\n\nBSD-3-Clause, as the package.",
            "## Make it again\n\n```bash\nhadmst-sc train training/default.toml --out training/run "
            f"--weights src/hadmst_sc/models/_weights/{name}.safetensors\npython benchmarks/card.py\n```",
            "Written by `python benchmarks/card.py`; no number was typed.",
        ]
    )


def _what(card: dict[str, Any]) -> str:
    spec = card["spec"]
    rows = [
        ["parameters", f"{card['n_parameters']:,}"],
        ["widths", " / ".join(map(str, spec["widths"]))],
        [
            "inputs",
            f"{spec['context']} maps of the section, {spec['token']} statistics of the gene, its priors and spots",
        ],
        ["halo", f"{spec['halo']} bins"],
        ["sha256", f"`{card['sha256']}`"],
    ]
    text = (
        "A conditional diffusion model of one gene's map given the section: a local U-Net around the closed form of "
        "`hadmst_sc`, gene-agnostic, in float32. At the highest noise level it returns the posterior mean."
    )
    return f"{text}\n\n{records.table(['', 'value'], rows)}"


def _training(config: dict[str, Any], log: list[dict[str, float]]) -> str:
    bank = config["bank"]
    first, last = bank["first_seed"], bank["first_seed"] + bank["n_phantoms"] - 1
    total = sum(kind["share"] for kind in bank["kinds"])
    columns = ["section, µm", "bin, µm", "spot, µm", "pitch, µm", "share"]
    kinds = [
        [f"{kind[key]:g}" for key in ("size_um", "bin_um", "spot_um", "pitch_um")] + [f"{kind['share'] / total:.0%}"]
        for kind in bank["kinds"]
    ]
    done, tail = int(log[-1]["step"]), log[-LAST_ROWS:]
    mean, denoising = (np.mean([row[key] for row in tail]) for key in ("mean", "denoising"))
    facts = [
        ["seed", str(config["seed"])],
        ["steps", f"{done:,} of {config['steps']:,}"],
        ["step", f"{config['sections']} sections × {config['genes']} genes × {config['crop']}² bins"],
        ["without H&E", f"{config['drop_he']:.0%} of the crops"],
        ["time", _hours(log)],
        ["mean loss", f"{mean:.3f} (Poisson deviance, relative to the closed form's)"],
        ["denoising loss", f"{denoising:.3f} (Karras et al. 2022, Eq. 8)"],
    ]
    if config.get("draw"):
        facts.append(
            ["draws of one evaluation", f"score weighs {config['draw']:g}, discriminator {config['adversary']:g}"]
        )
    return "\n\n".join(
        [
            "## Training",
            f"{_real(config)} {bank['n_phantoms']:,} phantoms of `hadmst_sc.datasets`, seeds "
            f"{first:,} to {last:,}, {bank['n_genes']} genes each, in these geometries:",
            records.table(columns, kinds),
            records.table(["", "value"], facts),
            f"Losses are means of the log over steps {int(tail[0]['step']):,} to {done:,}, on training phantoms.",
        ]
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


def _figures(card: dict[str, Any], found: Results) -> str:
    parts = [
        "## Held-out figures",
        "Means over genes; a baseline that comes in variants (link, consistency) shows its best in each column. All "
        "methods, with spread, by abundance and with intervals, are in the benchmark's report.",
    ]
    for view in found.views():
        if view.task in KINDS and view.point == CLEAN and OURS[-1] in found.methods(view):
            parts.append(_stale(found, view, card["sha256"]) or _table(found, view))
    for task in KINDS:
        if not found.done(task=task, method=OURS[-1]):
            parts.append(f"Figures of `{task}` are missing: run `hadmst-sc benchmark --tasks {task}`.")
    return "\n\n".join(parts)


def _used(found: Results, view: View) -> dict[str, str]:
    cells = found.done(task=view.task, group=view.group, method=OURS[-1])
    return {Path(name).name: digest for cell in cells for name, digest in cell["weights"].items()}


def _stale(found: Results, view: View, sha256: str) -> str:
    """Why figures do not belong to these weights; empty if they do, or if they are those of a split."""
    used = _used(found, view)
    if sha256 in used.values() or set(used) & SPLITS:
        return ""
    return (
        f"{view.task} {view.name} was not made with these weights: run `hadmst-sc benchmark --tasks {view.task}` again."
    )


def _table(found: Results, view: View) -> str:
    about = found.about(view)
    n_genes = sum(len(section["genes"]) for section in about.values())
    title = f"### {KINDS[view.task]}: {view.name.replace('_', ' ')}\n\n{len(about)} section(s), {n_genes} genes."
    for weights in set(_used(found, view)) & SPLITS:
        title += f" Weights of the split, `training/{weights}`, which never saw this tissue."
    present = found.methods(view)
    rows = []
    for family in (*BASELINES, *OURS, *BOUNDS):
        variants = [
            method for method in present if method == family or (family in BASELINES and _is_of(method, family))
        ]
        if variants:
            rows.append([family, *(_best(found, view, variants, metric) for metric in BETTER)])
    return f"{title}\n\n{records.table(['method', *(TITLES[metric] for metric in BETTER)], rows)}"


def _is_of(method: str, family: str) -> bool:
    return method.startswith(f"{family}, ")


def _best(found: Results, view: View, variants: list[str], metric: str) -> str:
    """Mean over genes of the variant that scores best; infinite scores count as such."""
    means = [mean for method in variants if not np.isnan(mean := found.mean(view, method, metric))]
    if not means:
        return "–"
    best = BETTER[metric](means)
    return f"{best:.3f}" if np.isfinite(best) else "∞"


if __name__ == "__main__":
    main()
