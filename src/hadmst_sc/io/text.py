"""Names of genes and elements as they are printable to people: they may hold anything, also what commands a terminal."""

from __future__ import annotations

LONGEST_NAME = 60  # characters


def printable(name: object, longest: int = LONGEST_NAME) -> str:
    """A name on one line: control characters as their escapes, and cut in the middle where it is long.

    Parameters
    ----------
    name
        Anything with a ``str``.
    longest
        Characters to keep.
    """
    text = "".join(c if c.isprintable() else repr(c)[1:-1] for c in str(name))
    return text if len(text) <= longest else f"{text[: longest // 2]}…{text[-(longest // 2 - 1) :]}"
