"""Pictures for the architecture page as SVG, drawn from `concepts/architecture.toml`."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from html import escape
from itertools import pairwise
from typing import Any

Rooms = Mapping[str, Mapping[str, Any]]
Point = tuple[float, float]

WIDTH, MARGIN = 720.0, 60.0  # px; the margin is half of a box and a little more
BOX, ROW = (104.0, 34.0), 76.0  # box (width, height), distance between layers
NEAR = 22.0  # px between neighbours in a layer
SWEEPS = 40


def links(rooms: Rooms) -> list[tuple[str, str]]:
    """Imports that do not follow from other imports: ``(importer, imported)``."""
    direct = {room: [one for one in row["imports"] if one in rooms] for room, row in rooms.items()}
    reach: dict[str, set[str]] = {}
    for room in rooms:  # a room stands after all that it imports
        reach[room] = set(direct[room]).union(*(reach[one] for one in direct[room]))
    return [(a, b) for a in direct for b in direct[a] if not any(b in reach[other] for other in direct[a])]


def levels(rooms: Rooms) -> dict[str, int]:
    """Layer of each room, 0 at the bottom: above all rooms that it imports, close to those that import it."""
    level: dict[str, int] = {}
    for room, row in rooms.items():
        level[room] = 1 + max((level[one] for one in row["imports"] if one in rooms), default=-1)
    drawn = links(rooms)
    for room in reversed(rooms):
        above, below = [a for a, b in drawn if b == room], [b for a, b in drawn if a == room]
        if len(above) > len(below) > 0:  # shorter lines
            level[room] = min(level[one] for one in above) - 1
    return level


def layout(rooms: Rooms) -> tuple[dict[str, Point], list[list[Point]]]:
    """Centre of each box, and the lines as points, one per layer from importer to imported (after Sugiyama 1981)."""
    level = levels(rooms)
    top = max(level.values())
    layers: list[list[str]] = [[room for room in rooms if level[room] == n] for n in range(top + 1)]
    chains = []
    for a, b in links(rooms):  # a line that passes a layer gets a position in it
        between = [f"{a}>{b}@{n}" for n in range(level[a] - 1, level[b], -1)]
        for n, one in zip(range(level[a] - 1, level[b], -1), between, strict=True):
            layers[n].append(one)
        chains.append([a, *between, b])
    touching: dict[str, list[str]] = {one: [] for layer in layers for one in layer}
    for chain in chains:
        for a, b in pairwise(chain):
            touching[a].append(b)
            touching[b].append(a)
    x = _columns(layers, touching, rooms)
    joined = [x[one] for one in touching if touching[one]]
    middle = WIDTH / 2 - (min(joined) + max(joined)) / 2
    x = {one: place + middle for one, place in x.items()}
    y = {one: (top - n) * ROW + BOX[1] for n, layer in enumerate(layers) for one in layer}
    lines = [[(x[one], y[one]) for one in chain] for chain in chains]
    return {room: (x[room], y[room]) for room in rooms}, lines


def _columns(layers: list[list[str]], touching: Mapping[str, list[str]], rooms: Rooms) -> dict[str, float]:
    """Horizontal positions: each layer is sorted by the mean of its neighbours, then placed close to it."""
    half = {one: BOX[0] / 2 if one in rooms else 0.0 for one in touching}
    x = {one: WIDTH * (i + 1) / (len(layer) + 1) for layer in layers for i, one in enumerate(layer)}
    for sweep in range(2 * SWEEPS):
        for layer in layers if sweep % 2 else reversed(layers):
            wanted = {
                one: sum(map(x.get, touching[one])) / len(touching[one]) if touching[one] else x[one] for one in layer
            }
            if sweep < SWEEPS:  # later sweeps change positions, not the order
                layer.sort(key=lambda one: wanted[one])
            x |= _apart(layer, wanted, half)
    return x


def _apart(layer: Sequence[str], wanted: Mapping[str, float], half: Mapping[str, float]) -> dict[str, float]:
    """Positions in the given order, far enough apart and on the page: the mean of pushing right and pushing left."""
    gap = [half[a] + half[b] + NEAR for a, b in pairwise(layer)]
    right, left = [max(MARGIN, wanted[layer[0]])], [min(WIDTH - MARGIN, wanted[layer[-1]])]
    for one, distance in zip(layer[1:], gap, strict=True):
        right.append(max(wanted[one], right[-1] + distance))
    for one, distance in zip(layer[-2::-1], gap[::-1], strict=True):
        left.append(min(wanted[one], left[-1] - distance))
    middle = [(a + b) / 2 for a, b in zip(right, left[::-1], strict=True)]
    shift = max(MARGIN - middle[0], 0) - max(middle[-1] - (WIDTH - MARGIN), 0)
    return {one: place + shift for one, place in zip(layer, middle, strict=True)}


def rooms_svg(rooms: Rooms, public: Collection[str]) -> str:
    """The rooms in layers; public ones have a thick border. Hovering over a box shows its job."""
    boxes, lines = layout(rooms)
    parts = []
    for line in lines:
        path = f"M{line[0][0]:.0f} {line[0][1] + BOX[1] / 2:.0f}"
        for (x0, y0), (x1, y1) in pairwise(line):
            start, end = y0 + BOX[1] / 2, y1 - BOX[1] / 2  # curves lie between the layers, where no box is
            bend = (start + end) / 2
            path += f" V{start:.0f} C{x0:.0f} {bend:.0f} {x1:.0f} {bend:.0f} {x1:.0f} {end:.0f}"
        parts.append(f'<path d="{path}" fill="none"/>')
    for room, (x, y) in boxes.items():
        parts += [
            f"<g><title>{escape(rooms[room]['job'])}</title>",
            _box(x - BOX[0] / 2, y - BOX[1] / 2, *BOX, 2.0 if room in public else 0.8),
            f"{_text(x, y + 5, room, 'middle')}</g>",
        ]
    height = max(y for _, y in boxes.values()) + BOX[1]
    return _svg(parts, height, "The rooms of the package in layers, each above the rooms that it imports")


def way_svg(way: Sequence[Mapping[str, Any]]) -> str:
    """The steps from top to bottom: the output of each in a box, modules and action next to its arrow."""
    left, size, row = 20.0, (210.0, 30.0), 74.0
    parts = []
    for n, step in enumerate(way):
        y, x = 4 + n * row, left + size[0] / 2
        parts += [
            _box(left, y, *size, 2.0 if n in (0, len(way) - 1) else 0.8),
            _text(x, y + 20, step["gives"], "middle"),
        ]
        if n:
            parts.append(f'<path d="M{x:.0f} {y - row + size[1]:.0f} V{y:.0f} m-4 -7 l4 7 l4 -7" fill="none"/>')
            parts.append(
                _text(x + 16, y - 27, ", ".join(step["modules"]), "start", "font-family:monospace;font-size:13px")
            )
            parts.append(_text(x + 16, y - 9, step["does"], "start", "font-size:13px"))
    return _svg(parts, 4 + (len(way) - 1) * row + size[1] + 4, "The way of a gene through the modules")


def _box(x: float, y: float, width: float, height: float, border: float) -> str:
    place = f'x="{x:.0f}" y="{y:.0f}" width="{width:.0f}" height="{height:.0f}" rx="5"'
    return f'<rect {place} fill="none" stroke-width="{border}"/>'


def _text(x: float, y: float, text: str, anchor: str, style: str = "font-size:14px") -> str:
    look = f'text-anchor="{anchor}" style="{style}" fill="currentColor" stroke="none"'
    return f'<text x="{x:.0f}" y="{y:.0f}" {look}>{escape(text)}</text>'


def _svg(parts: Sequence[str], height: float, title: str) -> str:
    """A picture in the colours of the page; narrow windows scroll it instead of shrinking the text."""
    attributes = f'viewBox="0 0 {WIDTH:.0f} {height:.0f}" role="img" aria-label="{escape(title)}" stroke-width="0.8"'
    style = "min-width:600px;width:100%;color:inherit;stroke:currentColor"
    picture = "\n".join([f'<svg xmlns="http://www.w3.org/2000/svg" {attributes} style="{style}">', *parts, "</svg>"])
    return f'<div style="overflow-x:auto">{picture}</div>\n'
