"""The command line, ``hadmst-sc``: a thin layer over the Python API.

Heavy modules load inside the commands, so that ``--help`` is instant.
"""

from __future__ import annotations

from hadmst_sc.cli import analysis, project
from hadmst_sc.cli.base import app, options_of

__all__ = ["analysis", "app", "main", "options_of", "project"]


def main() -> None:
    """Entry point of ``hadmst-sc``."""
    app()
