"""Sections as methods are given them, beside the truth that scores them.

``CASES`` names the functions that ``benchmark.toml`` may name; each makes a :class:`~cases.case.Case` from that file's
options alone. All seeds are fixed.
"""

from __future__ import annotations

from collections.abc import Callable

from cases.case import Case
from cases.cells import real_spots, simulated_spots
from cases.domains import layers, phantom_domains
from cases.draws import draws_of_cells, draws_of_phantom
from cases.holdout import holdout, panel
from cases.phantom import phantom

CASES: dict[str, Callable[..., Case]] = {
    case.__name__: case
    for case in (
        phantom,
        simulated_spots,
        real_spots,
        holdout,
        panel,
        layers,
        phantom_domains,
        draws_of_cells,
        draws_of_phantom,
    )
}
