"""Columns of ``obs`` and ``var`` that are duplicated or hold truth values as text."""

from __future__ import annotations

from collections.abc import Iterable

import pandas as pd

from hadmst_sc.section.errors import Problems

YES = {"1", "1.0", "true", "t", "yes", "y"}
NO = {"0", "0.0", "false", "f", "no", "n"}
MISSING = {"", "nan", "none", "<na>", "na", "nat"}


def column(frame: pd.DataFrame, name: object) -> pd.Series:
    """Return a column; the first one if several have this name."""
    found = frame[name]
    return found.iloc[:, 0] if isinstance(found, pd.DataFrame) else found


def words(values: pd.Series) -> pd.Series:
    """Convert values of any type to lower-case text, for comparison with ``YES`` and ``NO``."""
    texts = [one.decode(errors="replace") if isinstance(one, bytes) else str(one) for one in values]
    return pd.Series([one.strip().lower() for one in texts], index=values.index, dtype=object)


def unclear(values: pd.Series) -> list[str]:
    """Return the unique values that mean neither yes nor no."""
    return sorted(set(words(values)) - YES - NO - MISSING)


def are_single(
    frame: pd.DataFrame, kind: str, names: Iterable[str], place: str, owner: str, problems: Problems
) -> bool:
    """Return True if no column that is read is duplicated; otherwise add a problem.

    Parameters
    ----------
    kind
        "obs" or "var".
    place, owner
        The table in words, and an expression for the owner of ``kind``.
    """
    twice = [name for name in dict.fromkeys(names) if (frame.columns == name).sum() > 1]
    if not twice:
        return True
    alike = all(frame[name].astype(str).nunique(axis=1).eq(1).all() for name in twice)
    hint = "They are copies; keep the first of each" if alike else "They differ: keep the right one, if it is the first"
    keep = "{0} = {0}.loc[:, ~({0}.columns.duplicated() & {0}.columns.isin(" + f"{twice!r}))]"
    if owner.endswith(".raw"):  # it has no setter for `var`
        call = f"raw = {owner}.to_adata(); {keep.format('raw.var')}; {owner} = raw"
    else:
        call = keep.format(f"{owner}.{kind}")
    problems.add(f"{place}: `{kind}` needs each column once, but {twice} occur more than once. {hint}: `{call}`.")
    return False
