"""Execute the tutorials and store their outputs: `make tutorials`, or `python tutorials/run.py quickstart cells`.

An output that agrees with the stored one is not replaced, so a change of the file is a change of the result. Clear an
output to have it replaced.
"""

from __future__ import annotations

import base64
import os
import re
import sys
from collections.abc import Iterator
from io import BytesIO
from itertools import zip_longest
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import nbformat
import numpy as np
from nbclient import NotebookClient
from nbformat import NotebookNode
from PIL import Image

HERE = Path(__file__).parent
DPI, N_COLOURS = 64, 96  # of stored pictures
KINDS = ("image/png", "text/html", "text/plain")  # what is stored; others, such as widgets, are for live notebooks
ANY = "changes"  # tag of a cell whose output differs from run to run: only its kind is compared
RELATIVE = 0.02  # tolerance of numbers, or one unit of the last printed digit of numbers with a point
SIDE_PX, SIDE, GREY, GREYEST = 0.05, 32, 4.0, 40.0  # of pictures: see `_picture_differs`

NUMBER = re.compile(r"(?<![\w.])[+-]?\d[\d,]*(?:\.\d+)?(?:e[+-]?\d+)?")
# Seconds and bytes depend on the machine, versions on the installation.
VARIES = re.compile(r"\d[\d.,]*\s?(?:s|ms|min|h|[kKMGT]?B)\b|\bv?\d+\.\d+\.\d+\S*")
MARKUP = re.compile(r"<style.*?</style>|<[^>]*>", re.S)
# What squidpy and spatialdata log, in colours, with its continuation lines.
LOGGED = re.compile(r"^\x1b\[\d+m(?:DEBUG|INFO|WARNING)\b.*\n(?: {9}.*\n)*", re.M)


def execute(path: Path) -> NotebookNode:
    """The notebook, run from top to bottom in an empty folder, with what is stored of its outputs."""
    notebook = nbformat.read(path, as_version=4)
    # Threads change last digits; the backend is the notebook's, whatever the environment says.
    env = os.environ | {"OMP_NUM_THREADS": "1", "MPLBACKEND": "module://matplotlib_inline.backend_inline"}
    print_figure = {"bbox_inches": "tight", "dpi": DPI}
    with TemporaryDirectory() as folder:
        NotebookClient(
            notebook,
            timeout=600,
            kernel_name="python3",
            record_timing=False,
            extra_arguments=[f"--InlineBackend.print_figure_kwargs={print_figure}"],
            resources={"metadata": {"path": folder}},
        ).execute(env=env)
    return tidy(notebook)


def tidy(notebook: NotebookNode) -> NotebookNode:
    """Without what changes from run to run or is of no use on a page: counters, stderr, widgets, metadata."""
    notebook.metadata.language_info = NotebookNode(name="python")
    for cell in code_cells(notebook):
        cell.execution_count = None
        cell.metadata = NotebookNode({key: cell.metadata[key] for key in ("tags", "mystnb") if key in cell.metadata})
        kept: list[NotebookNode] = []
        for output in cell.outputs:
            if output.output_type == "stream":
                if output.name == "stderr":
                    continue
                if kept and kept[-1].output_type == "stream":
                    kept[-1].text += output.text
                    continue
            else:
                output.metadata = NotebookNode()
                output.data = _tidy_data(output.data)
                if output.output_type == "execute_result":
                    output.execution_count = None
                if not output.data:
                    continue
            kept.append(output)
        for output in kept:
            if output.output_type == "stream":
                output.text = LOGGED.sub("", output.text)
        cell.outputs = [output for output in kept if output.get("text") != ""]
    return notebook


def _tidy_data(data: dict[str, Any]) -> NotebookNode:
    if any("widget" in kind for kind in data):
        return NotebookNode()
    found = NotebookNode({kind: data[kind] for kind in KINDS if kind in data})
    if "image/png" in found:
        if _opened(found["image/png"]).mode != "P":  # else it is what was stored
            small = BytesIO()
            colours = _image(found["image/png"]).quantize(
                N_COLOURS, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE
            )
            colours.save(small, "png", optimize=True)
            found["image/png"] = base64.b64encode(small.getvalue()).decode()
        return NotebookNode({"image/png": found["image/png"]})
    return found


def code_cells(notebook: NotebookNode) -> list[NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def differences(stored: NotebookNode, found: NotebookNode) -> Iterator[tuple[NotebookNode, str]]:
    """Cells of `found` whose outputs differ from the stored ones, and how."""
    by_id = {cell.id: cell for cell in code_cells(stored)}
    for cell in code_cells(found):
        only_kinds = ANY in cell.metadata.get("tags", [])
        if how := _outputs_differ(by_id[cell.id].outputs, cell.outputs, only_kinds=only_kinds):
            yield cell, how


def _outputs_differ(stored: list[NotebookNode], found: list[NotebookNode], *, only_kinds: bool) -> str | None:
    before, now = [_contents(one) for one in stored], [_contents(one) for one in found]
    kinds = [[list(one) for one in side] for side in (before, now)]
    if kinds[0] != kinds[1]:
        return f"stored {_kinds(before)}, found {_kinds(now)}"
    if only_kinds:
        return None
    for one, other in zip(before, now, strict=True):
        for kind in one:
            differs = _picture_differs if kind == "image/png" else _text_differs
            if how := differs(one[kind], other[kind]):
                return how
    return None


def _contents(output: NotebookNode) -> dict[str, str]:
    return {"text": output.text} if output.output_type == "stream" else dict(sorted(output.data.items()))


def _kinds(outputs: list[dict[str, str]]) -> str:
    return ", ".join("+".join(one) for one in outputs) or "no output"


def _text_differs(stored: str, found: str) -> str | None:
    """Numbers to a tolerance, words exactly, white space not at all."""
    before, now = (VARIES.sub("…", MARKUP.sub(" ", text)).split() for text in (stored, found))
    for i, (word, other) in enumerate(zip_longest(before, now, fillvalue="")):
        if not _same(word, other):
            shown = [" ".join(side[max(i - 3, 0) : i + 4]) for side in (before, now)]
            return f"stored `… {shown[0]} …`, found `… {shown[1]} …`"
    return None


def _same(word: str, other: str) -> bool:
    if NUMBER.sub("#", word).replace("-#", "#") != NUMBER.sub("#", other).replace("-#", "#"):
        return False
    for one, two in zip(NUMBER.findall(word), NUMBER.findall(other), strict=True):
        a, b = (float(text.replace(",", "")) for text in (one, two))
        places = [len(text.partition(".")[2]) for text in (one, two)]
        last = 10.0 ** -max(places) if max(places) and "e" not in one + two else 0.0
        if abs(a - b) > max(RELATIVE * max(abs(a), abs(b)), 1.001 * last):
            return False
    return True


def _opened(png: str) -> Image.Image:
    return Image.open(BytesIO(base64.b64decode(png)))


def _image(png: str) -> Image.Image:
    """The picture on white."""
    image = _opened(png).convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")


def _picture_differs(stored: str, found: str) -> str | None:
    """Coarsely, so that fonts and last digits do not matter: sides to 5 %, then the grey of 32 × 32 patches."""
    before, now = _image(stored), _image(found)
    if any(abs(a - b) > SIDE_PX * a for a, b in zip(before.size, now.size, strict=True)):
        return f"stored a picture of {before.size} pixels, found {now.size}"
    grey = [np.asarray(one.convert("L").resize((SIDE, SIDE), Image.Resampling.BOX), float) for one in (before, now)]
    apart = np.abs(grey[0] - grey[1])
    if apart.mean() > GREY or apart.max() > GREYEST:
        mean, most = apart.mean(), apart.max()
        return f"grey of patches differs from the stored picture by {mean:.1f} of 255 on average, by {most:.0f} at most"
    return None


def check(path: Path) -> str:
    """Execute, and say where outputs differ from the stored ones; empty if they agree."""
    found = differences(nbformat.read(path, as_version=4), execute(path))
    lines = [f"{path.parent.name}/{path.name}, cell {cell.id}: {how}" for cell, how in found]
    remedy = "If this is meant, run `make tutorials` and look at every new output."
    return "\n".join([*lines, remedy]) if lines else ""


def store(path: Path) -> list[str]:
    """Execute, and write what differs from the stored outputs; the ids of these cells."""
    stored, found = nbformat.read(path, as_version=4), execute(path)
    changed = [cell.id for cell, _ in differences(stored, found)]
    by_id = {cell.id: cell for cell in code_cells(stored)}
    for cell in code_cells(found):
        if cell.id not in changed:
            cell.outputs = by_id[cell.id].outputs
    nbformat.validate(found)
    nbformat.write(found, path)
    return changed


def main(names: list[str]) -> None:
    for path in [HERE / f"{name}.ipynb" for name in names] or sorted(HERE.glob("*.ipynb")):
        before = os.times()
        changed = store(path)
        after = os.times()
        seconds = after.children_user + after.children_system - before.children_user - before.children_system
        used = f"{seconds:.0f} s of processor time, {path.stat().st_size / 1000:.0f} KB"
        print(f"{path.stem}: {used}, new outputs: {', '.join(changed) or 'none'}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
