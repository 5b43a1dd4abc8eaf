"""Select the genes of a table, and suggest corrections for unknown gene names."""

from __future__ import annotations

import difflib
import reprlib
from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AnySet
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from hadmst_sc.io.values import YES, are_single, column, unclear, words
from hadmst_sc.section.errors import MissingKeyError, Problems, WrongTypeError, logger

DEFAULT_GENES = 200
GENES = "gene expression"  # as Space Ranger and Xenium name them in `feature_types`
FEATURE_TYPES = ("feature_types", "feature_type")
FLAG = "highly_variable"
SHOWN = 12  # largest number of names that a message lists in full


class Chosen(NamedTuple):
    """Columns to read, and how many of them to keep by rank; ``None`` keeps all in this order."""

    columns: np.ndarray
    number: int | None


def gene_columns(var: pd.DataFrame, place: str = "", *, tell: bool = False) -> np.ndarray:
    """Return positions of the features that are genes: not antibodies, guides, probes without a target and the like.

    Features of unknown type count as genes, and all features count as genes if none is marked as one.

    Parameters
    ----------
    place, tell
        Name of the table, and True to warn about excluded features.
    """
    given = next((name for name in FEATURE_TYPES if name in var), None)
    if given is None:
        return np.arange(len(var))
    kinds = column(var, given).astype(object)
    known = kinds.notna().to_numpy()
    others = known & (kinds.astype(str).str.strip().str.lower() != GENES).to_numpy()
    if not others.any():
        return np.arange(len(var))
    counted = ", ".join(f"{n:,} {kind}" for kind, n in kinds[others].value_counts().items())
    if others.all():
        if tell:
            logger.warning("%s: no feature is a gene by `var[%r]` (%s): all are used", place, given, counted)
        return np.arange(len(var))
    if tell:
        logger.warning(
            "%s: %d of %d features are not genes (%s) and are left out; name them in `genes=` to use them",
            place,
            others.sum(),
            len(var),
            counted,
        )
    return np.flatnonzero(~others)


def choose(
    var: pd.DataFrame, flags: pd.DataFrame, place: str, code: str, genes: Any, problems: Problems
) -> Chosen | None:
    """Return the columns that ``genes`` selects; ``None`` after a problem.

    Parameters
    ----------
    var
        Features of the matrix that is read.
    flags
        Features of the table, which may have ``highly_variable`` when ``var`` has not.
    place, code
        The table in words, and an expression for the owner of ``var``, for messages.
    """
    if not len(var):
        problems.add(f"{place}: needs at least one gene, but has no columns. Pass another `table_key=`.")
        return None
    genes = genes.item() if isinstance(genes, np.ndarray) and genes.ndim == 0 else genes
    named = not (genes is None or isinstance(genes, int | np.integer))
    if not are_single(var, "var", FEATURE_TYPES, place, code, problems):
        return None
    usable = gene_columns(var, place, tell=not named)
    if genes is None:
        if not are_single(flags, "var", [FLAG], place, code.removesuffix(".raw"), problems):
            return None
        chosen = _flagged(flags, place)
        flagged = usable[var.index[usable].isin(chosen)]
        if len(flagged):
            return Chosen(flagged, len(flagged))
        return Chosen(usable, min(DEFAULT_GENES, len(usable)))
    if named or isinstance(genes, bool):
        return _by_name(var, usable, place, code, genes, problems)
    if not 1 <= genes <= len(usable):
        problems.add(
            f"`genes` needs 1 to {len(usable)} (all genes of the table), but is {genes}. Pass `genes={len(usable)}`.",
            ValueError,
        )
        return None
    return Chosen(usable, int(genes))


def _flagged(flags: pd.DataFrame, place: str) -> pd.Index:
    """Return names of the features that ``highly_variable`` marks, for truth values of any type."""
    if FLAG not in flags:
        return flags.index[:0]
    if others := unclear(flags[FLAG]):
        logger.warning(
            "%s: var[%r] has the values %s, which are neither true nor false: these genes count as not marked",
            place,
            FLAG,
            others[:5],
        )
    return flags.index[words(flags[FLAG]).isin(YES).to_numpy(bool)]


def _by_name(
    var: pd.DataFrame, usable: np.ndarray, place: str, code: str, genes: Any, problems: Problems
) -> Chosen | None:
    names = _names(var, code, genes, problems)
    if names is None:
        return None
    unknown = [name for name in names if name not in var.index]
    if unknown:
        problems.add(
            f"`genes` has {len(unknown)} of {len(names)} names that are not in `var_names`. "
            f"{_meant(names, unknown, var, code)}",
            MissingKeyError,
        )
        return None
    if not names or len(set(names)) < len(names):
        found = "is empty" if not names else "repeats some"
        once = f"genes={_listed(list(dict.fromkeys(names)))}" if names else "genes=None"
        problems.add(f"`genes` needs at least one name and each once, but {found}. Pass `{once}`.", ValueError)
        return None
    # Of repeated names the first; the caller refuses them with a remedy.
    firsts = np.flatnonzero(~var.index.duplicated())
    columns = firsts[var.index[firsts].get_indexer(names)]
    others = [name for name, column in zip(names, columns, strict=True) if column not in set(usable.tolist())]
    if others:
        logger.warning(
            "%s: %d of the %d features named in `genes` are not genes (%s): they are mapped like genes, although the "
            "model was trained on genes only",
            place,
            len(others),
            len(names),
            _listed(others),
        )
    return Chosen(columns, None)


def _names(var: pd.DataFrame, code: str, genes: Any, problems: Problems) -> list[str] | None:
    """Return the names as text, in the given order (a set: in the table's order); ``None`` after a problem."""
    remedy = f"genes={[genes]!r}" if isinstance(genes, str) and genes else "genes=None"
    if isinstance(genes, Mapping):
        listed = [name for one in genes.values() for name in ([one] if isinstance(one, str) else np.ravel(one))]
        listed = list(dict.fromkeys(str(name) for name in listed if isinstance(name, str)))
        remedy = f"genes={listed!r}" if listed else "genes=None"
    elif isinstance(genes, Iterable) and not isinstance(genes, str | bytes):
        items = list(genes)
        if not (items and all(isinstance(item, bool | np.bool_) for item in items)):
            if isinstance(genes, AnySet):  # its own order differs between processes: the table's, unknown names last
                known = set(map(str, items))
                items = [*(name for name in var.index if name in known), *sorted(known - set(var.index))]
            return [str(item) for item in items]
        remedy = f"genes=list({code}.var_names[mask])"
        genes = f"a mask of {len(items)} truth values"
    problems.add(
        f"`genes` needs names, a number or None, but is {reprlib.repr(genes)}. Pass `{remedy}`.", WrongTypeError
    )
    return None


def _listed(names: Sequence[str]) -> str:
    return repr(list(names)) if len(names) <= SHOWN else f"{list(names[:SHOWN])!r} and {len(names) - SHOWN} more"


def _meant(names: list[str], unknown: list[str], var: pd.DataFrame, code: str) -> str:
    """Return a hint for unknown names: the column or spelling that has them, and code if all are found."""
    single = var.loc[:, ~var.columns.duplicated(keep=False)]
    texts = [name for name in single if single[name].dtype.kind not in "biufcmM"]
    few = len(names) <= SHOWN
    for text in texts:
        if all(name in set(var[text].astype(str)) for name in unknown):
            found = _lookup(var[text], var.index)
            if few and all(name in found for name in unknown):
                return f"`var[{text!r}]` has them. Pass `genes={_replaced(names, found)!r}`."
            return f"`var[{text!r}]` has them. Pass `genes={code}.var_names[{code}.var[{text!r}].isin(genes)]`."
    spelt = _alike(unknown, var)
    if few and len(spelt) == len(unknown):
        return f"`var_names` has other spellings. Pass `genes={_replaced(names, spelt)!r}`."
    for change in ("upper", "capitalize", "lower"):
        if all(getattr(name, change)() in var.index for name in names):
            return f"They differ in case. Pass `genes=[name.{change}() for name in genes]`."
    for text in texts if few else []:
        found = _lookup(var[text], var.index, fold=True)
        if all(_plain(name) in found for name in unknown):
            one = {name: found[_plain(name)] for name in unknown}
            return f"`var[{text!r}]` has other spellings. Pass `genes={_replaced(names, one)!r}`."
    close = {
        name: [spelt[name]] if name in spelt else difflib.get_close_matches(name, var.index.astype(str), n=3)
        for name in unknown[:5]
    }
    similar = "; ".join(f"{name!r}: close to {matches or 'none'}" for name, matches in close.items())
    return f"{similar}." if all(close.values()) else f"{similar}. The table's names are like {var.index[:3].tolist()}."


def _lookup(spellings: Any, names: pd.Index, *, fold: bool = False) -> dict[str, str]:
    """Return names by spelling, without spellings that several genes share."""
    texts = pd.Series(spellings).astype(str)
    texts = texts.map(_plain) if fold else texts
    once = ~texts.duplicated(keep=False).to_numpy()
    return dict(zip(texts[once], names[once].astype(str), strict=True))


def _plain(name: str) -> str:
    return name.strip().casefold()


def _alike(unknown: list[str], var: pd.DataFrame) -> dict[str, str]:
    """Return names that differ only in case or, for the first few, by a genome prefix or a version suffix."""
    folded = _lookup(var.index, var.index, fold=True)
    found = {name: folded[_plain(name)] for name in unknown if _plain(name) in folded}
    few = [name for name in unknown if name not in found][:SHOWN]
    return found | {name: close for name in few if (close := _without_affix(name, var.index))}


def _without_affix(name: str, names: pd.Index) -> str:
    """Return the only name that equals this one up to a genome prefix or version suffix; otherwise ""."""
    ensembl = name.partition(".")[0] if name.startswith("ENS") else name
    alike = [one for one in map(str, names) if one.endswith(f"_{name}") or one.partition(".")[0] == ensembl != one]
    alike += [ensembl] if ensembl != name and ensembl in names else []
    return alike[0] if len(alike) == 1 else ""


def _replaced(names: list[str], by: dict[str, str]) -> list[str]:
    return list(dict.fromkeys(by.get(name, name) for name in names))
