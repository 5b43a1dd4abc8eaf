"""Several sections in one object: the arguments of each, its spots, and the genes that all of them get."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from difflib import SequenceMatcher
from typing import Any, NamedTuple, TypeGuard

import numpy as np
import pandas as pd
from spatialdata import SpatialData

from hadmst_sc.io.abundances import with_types
from hadmst_sc.io.counts import matrix_of, most_informative, rows_as_csr
from hadmst_sc.io.genes import choose
from hadmst_sc.io.match import table_regions
from hadmst_sc.io.read import computed_here
from hadmst_sc.io.resolve import pair, systems
from hadmst_sc.io.values import broken, rounded
from hadmst_sc.section.abundances import SPOTS, SpotsArguments
from hadmst_sc.section.arguments import TEXT, shown
from hadmst_sc.section.errors import ContractError, Problems

SAME = ("genes", "bin_um")  # arguments of spots that all sections share; of the others, a list has one per section


class SectionsArguments(SpotsArguments, total=False):
    """Arguments that say where a section stands, each once for all sections or as a list."""

    table_key: str | Sequence[str]  # type: ignore[misc]
    shapes_key: str | Sequence[str | None] | None  # type: ignore[misc]
    coordinate_system: str | Sequence[str | None] | None  # type: ignore[misc]
    layer: str | Sequence[str | None] | None  # type: ignore[misc]
    spot_um: float | Sequence[float | None] | None  # type: ignore[misc]
    pitch_um: float | Sequence[float | None] | None  # type: ignore[misc]
    tissue_key: str | Sequence[str | None] | None  # type: ignore[misc]
    obsm_key: str | Sequence[str | None] | None  # type: ignore[misc]


class Asked(NamedTuple):
    """One section of a call: its image, and its own value of every argument."""

    image_key: str
    given: dict[str, Any]


def is_several(image_key: object) -> TypeGuard[Sequence[Any]]:
    """Return True for a list of images, False for one image, and for what is neither."""
    return isinstance(image_key, list | tuple | pd.Index) or (isinstance(image_key, np.ndarray) and image_key.ndim == 1)


def sections_of(image_key: Any, given: Mapping[str, Any], problems: Problems) -> list[Asked]:
    """Return the sections of a call.

    Parameters
    ----------
    image_key
        The name of an image, or a list of names.
    given
        Arguments by name. With a list of images, those that may differ have a value for all or a list.
    problems
        Receives problems with the lists; nothing is returned then.
    """
    if not is_several(image_key):
        return [Asked(image_key, dict(given))]
    images, genes = list(image_key), given.get("genes")
    if isinstance(genes, Iterator):  # all sections read them
        given = {**given, "genes": list(genes)}
    once = list(dict.fromkeys(image for image in images if TEXT.is_met(image)))
    if not images or once != images:
        remedy = f" Pass `image_key={once!r}`." if once else " Pass `image_key='he'`, or a list of such names."
        problems.add(f"`image_key` needs one or several different names, but is {shown(images)}.{remedy}", ValueError)
        return []
    lists = {name: list(value) for name, value in given.items() if name not in SAME and isinstance(value, list | tuple)}
    for name, values in lists.items():
        if len(values) != len(images):
            default = SPOTS[name].default if name in SPOTS else None
            problems.add(
                f"`{name}` needs one value, or a list with one for each of the {len(images)} images, but has "
                f"{len(values)}. Pass `{name}={default!r}`, or a list of {len(images)}.",
                ValueError,
            )
    if any(len(values) != len(images) for values in lists.values()):
        return []
    return [
        Asked(str(image), {**given, **{name: values[i] for name, values in lists.items()}})
        for i, image in enumerate(images)
    ]


@contextmanager
def held(own: Problems) -> Iterator[None]:
    """Catch the exception that a list of problems raises, so that those of other sections are found too."""
    try:
        yield
    except ContractError as error:
        if not own:
            own.found += [(ContractError, message) for message in error.problems]
    except (KeyError, ValueError, TypeError, OSError) as error:
        if str(error) not in [message for _, message in own.found]:
            raise


def grouped(found: Sequence[tuple[str, Sequence[str]]]) -> dict[str, str]:
    """Return the messages about sections, each with its images in front, unless it is about all sections.

    Parameters
    ----------
    found
        Each image with its messages.
    """
    images_of: dict[str, list[str]] = {}
    for image, messages in found:
        for message in dict.fromkeys(messages):
            images_of.setdefault(message, []).append(image)
    return {
        message: message if len(images) == len(found) else f"{', '.join(images)}: {message}"
        for message, images in images_of.items()
    }


def tell_together(images: Sequence[str], own: Sequence[Problems], problems: Problems) -> None:
    """Add the problems of sections to those of the call, each with its images in front."""
    pairs = zip(images, own, strict=True)
    texts = grouped([(image, [message for _, message in one.found]) for image, one in pairs])
    kinds = {message: kind for one in own for kind, message in reversed(one.found)}
    for message, text in texts.items():
        problems.add(text, kinds[message])


@computed_here()
def settle(sdata: SpatialData, asked: list[Asked], problems: Problems) -> None:
    """Set the spots of each image, and the same genes for all sections.

    What cannot be set because a section cannot be read stays as it is: reading the section tells the reason.

    Parameters
    ----------
    sdata
        Holds all sections.
    asked
        The sections; their arguments are changed in place.
    problems
        Receives a problem if it is not certain which spots belong to which image, if two images have the same spots,
        or if too few genes are in all tables.
    """
    _tell_apart(sdata, asked, problems)
    genes = asked[0].given.get("genes") if asked else None
    named = genes is not None and (isinstance(genes, bool) or not isinstance(genes, int | np.integer))
    if len(asked) < 2 or named:
        return
    ranked = [_ranked(sdata, one) for one in asked]
    choices = [one for one in ranked if one is not None]
    if len(choices) < len(ranked):
        return
    names, numbers = zip(*choices, strict=True)
    ranks = pd.concat([pd.Series(np.arange(len(one)), one, float) for one in names], axis=1, join="inner")
    if not len(ranks):
        problems.add(
            f"`image_key` needs sections whose tables have genes in common, but they have names like "
            f"{[one[0] for one in names]!r}. Give `var_names` of all tables the same kind of names.",
            ValueError,
        )
    elif genes is not None and len(ranks) < genes:
        problems.add(
            f"`genes` needs at most {len(ranks):,}, the genes that all sections have, but is {genes}. Pass "
            f"`genes={len(ranks)}`.",
            ValueError,
        )
    else:
        chosen = ranks.mean(axis=1).sort_values(kind="stable").index[: min(numbers)].tolist()
        for one in asked:
            one.given["genes"] = chosen


def _tell_apart(sdata: SpatialData, asked: list[Asked], problems: Problems) -> None:
    """Set the spots of each image. If several fit, tell it, and go on with a guess, to find other problems too."""
    fitting = [_fitting(sdata, one) for one in asked]
    for one, regions in zip(asked, fitting, strict=True):
        one.given["shapes_key"] = regions[0] if len(regions) == 1 else one.given.get("shapes_key")
    unclear = [(one, regions) for one, regions in zip(asked, fitting, strict=True) if len(regions) > 1]
    for one, regions in unclear:
        guessed = [other.given["shapes_key"] for other in asked]
        free = [region for region in regions if region not in guessed] or regions
        alike = {region: SequenceMatcher(None, one.image_key, region).ratio() for region in free}
        one.given["shapes_key"] = max(free, key=lambda region: alike[region])
    if unclear:
        guessed = [one.given["shapes_key"] for one in asked]
        problems.add(
            f"`shapes_key` is needed: each of {[one.image_key for one, _ in unclear]} shares a coordinate system with "
            f"{unclear[0][1]}. Pass `shapes_key={guessed!r}` if these are their spots, in the order of the images."
        )
        return
    images: dict[str, list[str]] = {}
    for one in asked:
        if TEXT.is_met(one.given["shapes_key"]):
            images.setdefault(one.given["shapes_key"], []).append(one.image_key)
    for region, names in images.items():
        if len(names) > 1:
            remedy = [one.image_key for one in asked if one.image_key not in names[1:]]
            problems.add(
                f"`image_key` needs one image for each section, but {names} show the same spots, {region!r}. Pass "
                f"`image_key={remedy!r}`.",
                ValueError,
            )


def _fitting(sdata: SpatialData, one: Asked) -> list[str]:
    """Return the spots that a section may have: what was passed, or all that share a system with the image."""
    if (shapes_key := one.given.get("shapes_key")) is not None:
        return [shapes_key]
    table_key = one.given.get("table_key", "table")
    if one.image_key not in sdata.images or not TEXT.is_met(table_key) or table_key not in sdata.tables:
        return []
    found = table_regions(sdata, sdata.tables[table_key], table_key, Problems(""))
    present = [region for region in (found[0] if found else []) if region in sdata]
    shared = systems(sdata.images[one.image_key]).keys()
    return [region for region in present if systems(sdata[region]).keys() & shared]


def _ranked(sdata: SpatialData, one: Asked) -> tuple[list[str], int] | None:
    """Return genes that a section may have, the most informative first, and how many it would have on its own."""
    given, aside = one.given, Problems("")
    table_key, obsm_key = given.get("table_key", "table"), given.get("obsm_key")
    try:
        spots = pair(sdata, one.image_key, table_key, given.get("shapes_key"), given.get("coordinate_system"), aside)
        table = with_types(sdata, table_key, obsm_key).tables[table_key]
        matrix = matrix_of(table, table_key, given.get("layer"))
        if obsm_key is not None and given.get("genes") is None:
            return list(matrix.var.index), len(matrix.var)
        chosen = choose(matrix.var, table.var, f"tables/{table_key}", matrix.owner, given.get("genes"), aside)
        if spots is None or chosen is None or chosen.number is None or not matrix.var.index.is_unique:
            return None
        counts = rows_as_csr(matrix.values, spots.rows, chosen.columns)
        counts.data = rounded(np.where(broken(counts.data), 0, counts.data))
        counts.eliminate_zeros()
        return matrix.var.index[chosen.columns[most_informative(counts)]].tolist(), chosen.number
    except Exception:  # noqa: BLE001 - whatever is wrong with a section, reading it finds and tells it
        return None
