"""The frame of every measurement beside the cells: arguments, provenance, result rows, and a page of tables.

``benchmark.toml`` declares each measurement with its options; every option is an argument of its script. A script adds
a function that measures and one that renders the page from the record alone.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import plan
import records

Row = dict[str, Any]
Record = dict[str, Any]


@dataclass(frozen=True)
class Measurement:
    """A measurement with its own result files.

    ``measure`` makes the record from the options, ``render`` the page from the record, ``draw`` the picture.
    """

    name: str
    about: str | None
    measure: Callable[[argparse.Namespace], Record]
    render: Callable[[Record], str]
    draw: Callable[[Record, Path], None] | None = None
    weights: str | None = "default"  # without an option of that name

    def main(self, arguments: Sequence[str] | None = None) -> Record:
        """Measure, then write the record, the page and the picture."""
        options = parser(self.name, self.about).parse_args(arguments)
        made = records.provenance(weights=getattr(options, "weights", self.weights))  # before files change the checkout
        record = {"provenance": made} | self.measure(options)
        records.save(record.pop("name", self.name), record, self.render(record), options.output)
        if self.draw:
            self.draw(record, options.output / f"{self.name}.png")
        return record


def parser(name: str, about: str | None) -> argparse.ArgumentParser:
    """One argument for each option that ``benchmark.toml`` declares, and the folder of the results."""
    made = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    for option, default in plan.load()["measurements"][name].get("options", {}).items():
        if isinstance(default, bool):
            made.add_argument(f"--{option}", action="store_true")
            continue
        many = {"nargs": "+", "type": type(default[0]) if default else str} if isinstance(default, list) else {}
        kind = {"type": type(default)} | many
        made.add_argument(f"--{option}", default=default, help=f"default: {default}", **kind)
    made.add_argument("--output", type=Path, default=records.RESULTS)
    return made


def introduction(name: str, settings: Record) -> str:
    """The text that ``benchmark.toml`` puts above the tables, with the settings of a record."""
    return plan.load()["measurements"][name]["text"].format(**settings)


def shown(rows: Iterable[Row]) -> list[Row]:
    """Print every row when it is measured."""
    found = []
    for row in rows:
        found.append(row)
        print(row, flush=True)
    return found


def grouped(rows: Iterable[Row], *keys: str) -> dict[tuple[Any, ...], list[Row]]:
    """Rows by the values of some keys, in the order of the first of each."""
    found: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        found.setdefault(tuple(row[key] for key in keys), []).append(row)
    return found


def rounded(values: Row, digits: int) -> Row:
    """Numbers with that many decimals, as JSON holds them."""
    return {name: round(float(value), digits) for name, value in values.items()}


def axes(
    panels: int, rows: int = 1, *, size: tuple[float, float], beside: float = 0.0, **options: Any
) -> tuple[Any, Any]:
    """Figure and axes ``(rows, panels)``, drawn to a file; ``size`` of a panel and width ``beside`` them in inches."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot as plt

    shape = {"figsize": (size[0] * panels + beside, size[1] * rows), "squeeze": False, "layout": "constrained"}
    figure, found = plt.subplots(rows, panels, **shape, **options)
    for axis in found.flat:
        axis.spines[["top", "right"]].set_visible(False)
    return figure, found


def with_weights(kind: type, model: Any) -> Any:
    """A model of another class with the weights of a loaded one."""
    from hadmst_sc.models.diffusion import channels_last

    made = kind(model.spec)
    made.load_state_dict(model.state_dict())
    made.name, made.sha256 = model.name, model.sha256
    return channels_last(made).eval()
