"""Columns of ``obs`` and ``var`` as people leave them: there twice, or with truth values as text."""

from __future__ import annotations

from collections.abc import Iterable

import pandas as pd

from hadmst_sc.section.errors import Problems

YES = {"1", "1.0", "true", "t", "yes", "y"}
NO = {"0", "0.0", "false", "f", "no", "n"}
MISSING = {"", "nan", "none", "<na>", "na", "nat"}


def column(frame: pd.DataFrame, name: object) -> pd.Series:
    """A column, of several with this name the first."""
    found = frame[name]
    return found.iloc[:, 0] if isinstance(found, pd.DataFrame) else found


def words(values: pd.Series) -> pd.Series:
    """Values of any type as text in lower case, to be looked up in ``YES`` and ``NO``."""
    texts = [one.decode(errors="replace") if isinstance(one, bytes) else str(one) for one in values]
    return pd.Series([one.strip().lower() for one in texts], index=values.index, dtype=object)


def unclear(values: pd.Series) -> list[str]:
    """Words that say neither yes nor no, each once."""
    return sorted(set(words(values)) - YES - NO - MISSING)


def are_single(
    frame: pd.DataFrame, kind: str, names: Iterable[str], place: str, owner: str, problems: Problems
) -> bool:
    """Whether no column that is read is there twice; else a problem is noted.

    Parameters
    ----------
    kind
        "obs" or "var".
    place, owner
        The table in words, and an expression for what has ``kind``.
    """
    twice = [name for name in dict.fromkeys(names) if (frame.columns == name).sum() > 1]
    if not twice:
        return True
    alike = all(frame[name].astype(str).nunique(axis=1).eq(1).all() for name in twice)
    told = "They are copies; keep the first of each" if alike else "They differ: keep the right one, if it is the first"
    keep = "{0} = {0}.loc[:, ~({0}.columns.duplicated() & {0}.columns.isin(" + f"{twice!r}))]"
    if owner.endswith(".raw"):  # it has no setter for `var`
        call = f"raw = {owner}.to_adata(); {keep.format('raw.var')}; {owner} = raw"
    else:
        call = keep.format(f"{owner}.{kind}")
    problems.add(f"{place}: `{kind}` needs each column once, but {twice} are there more than once. {told}: `{call}`.")
    return False
