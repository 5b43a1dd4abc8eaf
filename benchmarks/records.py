"""Provenance of a figure, and its two files: numbers as JSON, and a table written from that JSON alone."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import resource
import shlex
import subprocess
import sys
from collections.abc import Sequence
from functools import cache
from importlib import metadata, util
from pathlib import Path
from typing import Any

import sources

ROOT = Path(__file__).resolve().parents[1]
RESULTS = Path(__file__).resolve().parent / "results"
PACKAGES = ("numpy", "scipy", "scikit-image", "spatialdata", "anndata", "zarr", "torch")


def provenance(*, weights: str | None) -> dict[str, Any]:
    """Command, commit, machine, versions and, where used, the hash of the weights (bundled name or path)."""
    record = {
        "command": shlex.join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *_without_output(sys.argv[1:])]),
        "code": _code_of_script(),
        "commit": _git("rev-parse", "--verify", "-q", "HEAD") or "unknown",
        # But for results: they are what is made, and a run that goes on has some of its own.
        "uncommitted_changes": bool(_git("status", "--porcelain", "--", ".", ":(exclude)benchmarks/results")),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {platform.system()}",
        "threads": os.environ.get("OMP_NUM_THREADS", "all"),
        "versions": {
            "python": platform.python_version(),
            "hadmst_sc": metadata.version("hadmst_sc"),
            **{name: metadata.version(name) for name in PACKAGES},
        },
    }
    if weights:
        path = bundled(weights) or Path(weights)
        record["weights_sha256"] = {path.name: sha256(path)}
    return record


def _code_of_script() -> str:
    script = Path(sys.argv[0]).resolve()
    script = script / "__main__.py" if script.is_dir() else script
    return sources.digest([script]) if Path(__file__).parent in script.parents else ""


def bundled(name: str) -> Path | None:
    """File of the bundled weights of that name, found without torch; ``None`` if there are none."""
    package = util.find_spec("hadmst_sc")  # without an import: a measurement depends on what it imports
    assert package is not None and package.origin is not None
    path = Path(package.origin).parent / "models" / "_weights" / f"{name}.safetensors"
    return path if path.exists() else None


@cache
def sha256(path: Path) -> str:
    """Digest of a file, read once."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _without_output(arguments: Sequence[str]) -> list[str]:
    """Arguments but ``--output``, which says nothing of a result and is a path of one machine."""
    kept = list(arguments)
    if "--output" in kept:
        at = kept.index("--output")
        del kept[at : at + 2]
    return kept


def _git(*arguments: str) -> str:
    try:
        found = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return ""
    return found.stdout.strip() if found.returncode == 0 else ""


def peak_gb() -> float:
    """Peak resident memory of this process so far, in GB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak * (1 if sys.platform == "darwin" else 1024) / 1e9


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table, padded so that it reads as text too."""
    widths = [max(len(str(row[i])) for row in (columns, *rows)) for i in range(len(columns))]
    lines = [columns, ["-" * width for width in widths], *rows]
    return "\n".join(
        "| " + " | ".join(str(cell).ljust(width) for cell, width in zip(line, widths, strict=True)) + " |"
        for line in lines
    )


def footer(record: dict[str, Any]) -> str:
    """Command, commit, machine and versions that made the numbers, as a paragraph of Markdown."""
    made = record["provenance"]
    parts = [
        f"`{made['command']}`",
        f"commit {made['commit'][:12]}" + (" with uncommitted changes" if made["uncommitted_changes"] else ""),
        f"{made['machine']}, {made['threads']} threads",
        ", ".join(f"{name} {version}" for name, version in made["versions"].items()),
    ]
    parts += [f"{name} sha256 {digest}" for name, digest in made.get("weights_sha256", {}).items()]
    return "Made by " + "; ".join(parts) + "."


def page(record: dict[str, Any], *parts: str) -> str:
    """Paragraphs and tables of Markdown, and below them what made the numbers."""
    return "\n\n".join([*parts, footer(record)])


def read(path: Path) -> dict[str, Any]:
    """A record of an earlier run; empty where there is none."""
    return json.loads(path.read_text()) if path.exists() else {}


def save(name: str, record: dict[str, Any], text: str, folder: Path = RESULTS) -> None:
    """Write ``<name>.json`` and ``<name>.md``, and show the latter."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.json").write_text(json.dumps(record, indent=1, allow_nan=False) + "\n")
    (folder / f"{name}.md").write_text(text + "\n")
    print(text)
