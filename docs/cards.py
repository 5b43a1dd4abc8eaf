"""A grid of cards, one for each tutorial, made from the stored notebooks."""

from __future__ import annotations

import json
from base64 import b64decode
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path

from PIL import Image

WIDTH = 640  # px: twice the width of a card, for fine screens


def grid(notebooks: Sequence[Path], pictures: Path) -> str:
    """Title, question and first picture of each tutorial; the pictures go to a folder two levels below the page."""
    pictures.mkdir(exist_ok=True)
    lines = ["::::{grid} 1 2 3 3", ":gutter: 3", ""]
    for path in notebooks:
        cells = json.loads(path.read_text())["cells"]
        title, question, *_ = "".join(cells[0]["source"]).removeprefix("# ").split("\n\n")
        lines += [f":::{{grid-item-card}} {title}", f":link: tutorials/{path.stem}", ":link-type: doc"]
        outputs = [output.get("data", {}) for cell in cells for output in cell.get("outputs", [])]
        stored = [data["image/png"] for data in outputs if "image/png" in data]
        if stored:
            picture = pictures / f"{path.stem}.png"
            image = Image.open(BytesIO(b64decode(stored[0]))).convert("RGB")
            image.thumbnail((WIDTH, WIDTH))
            image.save(picture)
            lines += [f":img-top: {picture.relative_to(pictures.parents[1])}", f":img-alt: {title}"]
        lines += ["", question.strip("*"), ":::", ""]
    return "\n".join([*lines, "::::", ""])
