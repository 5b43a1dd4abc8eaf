"""Reliability of genes, from SpatialData, with controls in which the image carries no information."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Unpack

import numpy as np
import pandas as pd
from spatialdata import SpatialData

from hadmst_sc.distillation.genes import distill
from hadmst_sc.inference.prepare import Prepared, prepare
from hadmst_sc.inference.progress import DISTILLATION, REGISTRATION, Progress, seconds_of
from hadmst_sc.inference.settings import SETTINGS, Settings, SettingsArguments
from hadmst_sc.io.abundances import read_spots
from hadmst_sc.io.panel import with_other_genes
from hadmst_sc.io.result import find_result
from hadmst_sc.runtime import usual_errors
from hadmst_sc.section.abundances import SPOTS, SpotsArguments
from hadmst_sc.section.arguments import ELEMENT, FLAG, parted, takes
from hadmst_sc.section.errors import MissingKeyError, Problems, logger
from hadmst_sc.section.observation import PROVENANCE_KEY, RELIABILITY, Source
from hadmst_sc.trust.reliability import reliability as of_genes

BESIDE = {"controls": (FLAG, False), "key_added": (ELEMENT, "superres"), "show_progress_bar": (FLAG, True)}


class _Given(SpotsArguments, SettingsArguments, total=False):
    """Keyword arguments of :func:`reliability` that it shares with others."""


READ = ("layer", "obsm_key")  # arguments that say which values are read
USED = ("model", "align", "features", "device", "random_state")
# The same arguments of a run, for the part of it that this is.
MEANINGS = {
    name: SETTINGS[name]._replace(text=text)
    for name, text in {
        "model": "Weights whose features of the H&E are used: a bundled name, a path, a loaded model, or ``None``.",
        "align": 'Register the H&E to the spots first; with ``"spots"`` the spots to the H&E.',
        "random_state": "Seed of the resampling and of the shuffling.",
    }.items()
}


@takes(SPOTS, {name: SETTINGS[name] for name in USED} | MEANINGS)
@usual_errors
def reliability(
    sdata: SpatialData,
    image_key: str,
    *,
    controls: bool = False,
    key_added: str = "superres",
    show_progress_bar: bool = True,
    **given: Unpack[_Given],
) -> pd.DataFrame:
    """Score the reliability of genes: each spot is predicted from all others and the image, and compared to its counts.

    :func:`superresolve` includes this; this function runs without it, and with controls. If ``sdata`` has a result of
    this section with these genes, the columns are added to its table.

    Parameters
    ----------
    sdata
        The section.
    image_key
        The H&E image.
    {shared}
    controls
        Repeat with the image shuffled in squares, and with the image shifted by half of the tissue: what remains of
        ``image_helps`` is chance. A warning appears if the true image helps no more genes.
    key_added
        Name of the result whose table receives the columns.
    show_progress_bar
        Show a progress bar if it takes longer than a second.

    Returns
    -------
    One row per gene: ``reliability`` (Pearson correlation over spots of log1p counts with their prediction) between
    ``reliability_low`` and ``reliability_high`` (90 %), ``gain_over_interpolation``, ``image_helps``, ``finest_um``
    (see :func:`hadmst_sc.trust.reliability.reliability`); with ``controls`` also ``reliability_shuffled``,
    ``image_helps_shuffled``, ``reliability_shifted`` and ``image_helps_shifted``.

    Raises
    ------
    KeyError, ContractError, ValueError
        As :func:`superresolve`.

    Examples
    --------
    >>> sdata = hd.datasets.phantom(n_genes=4, size_um=600.0)
    >>> found = hd.tl.reliability(sdata, "phantom_full_image", bin_um=20.0, model=None)
    >>> bool((found["reliability_low"] <= found["reliability"]).all())
    True
    """
    problems = Problems("cannot judge this section")
    keys, chosen = parted(given, SPOTS)
    settings = Settings.of(chosen)
    settings.check(problems)
    beside = {"controls": controls, "key_added": key_added, "show_progress_bar": show_progress_bar}
    problems.check(beside, BESIDE)
    with Progress(show=show_progress_bar) as progress:
        progress.at("read")
        asked = read_spots(sdata, image_key, **keys, problems=problems)
        obs = with_other_genes(sdata, asked.in_order(), keys.get("obsm_key"))
        score = seconds_of(DISTILLATION / 2, obs) * (1 + 2 * controls)
        progress.plan({"align": seconds_of(REGISTRATION * bool(settings.align), obs), "score": score})
        progress.at("align")
        settings = settings.loaded()
        section, random_state = prepare(obs, settings), settings.random_state
        progress.at("score")
        n = len(asked.genes)
        found = pd.DataFrame(_score(section, lambda maps: maps, random_state, n), index=list(asked.genes))
        helped = {"image": float(found["image_helps"].mean())}
        if controls:
            for name, move in _controls(section, random_state).items():
                control = _score(section, move, random_state, n)
                found[f"reliability_{name}"], found[f"image_helps_{name}"] = (
                    control["reliability"],
                    control["image_helps"],
                )
                helped[name] = float(control["image_helps"].mean())
            if helped["image"] <= max(helped["shuffled"], helped["shifted"]):
                logger.warning(
                    "the image helps %.0f %% of the genes, and no fewer (%.0f %%, %.0f %%) when it is shuffled or "
                    "shifted: it adds nothing to the spots. See `pp.validate`",
                    *(100 * helped[name] for name in ("image", "shuffled", "shifted")),
                )
    used = {
        "layer": keys.get("layer"),
        "obsm_key": keys.get("obsm_key"),
        "bin_um": obs.grid.bin_um,
        "um_per_px": obs.grid.um_per_px,
        "model": settings.record()["model"],
    }
    _record(sdata, key_added, asked.source, used, found, helped)
    return found


def _score(section: Prepared, move: Callable[[np.ndarray], np.ndarray], seed: int, n: int) -> dict[str, np.ndarray]:
    """Reliability of the first ``n`` genes with moved image maps."""
    features = None if section.features is None else move(section.features)
    found = of_genes(distill(section.obs, he=move(section.he), features=features, second_look=False), seed=seed)
    return {name: values[:n] for name, values in found.items()}


def _controls(section: Prepared, seed: int) -> dict[str, Callable[[np.ndarray], np.ndarray]]:
    """Changes of image maps ``(f, ny, nx)`` that remove their information about the spots."""
    where = np.nonzero(section.obs.inside)
    half = tuple(int(np.ptp(index) + 1) // 2 for index in where)
    edge = max(1, round(section.obs.measurement.diameter))
    y, x = shuffled(section.obs.inside.shape, edge, seed)
    return {"shuffled": lambda maps: maps[:, y, x], "shifted": lambda maps: np.roll(maps, half, (1, 2))}


def shuffled(shape: tuple[int, int], edge: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Source row and column of each bin when squares of some edge change places; incomplete squares stay."""
    ny, nx = (side // edge for side in shape)
    order = np.random.default_rng(seed).permutation(ny * nx).reshape(ny, nx)
    y, x = np.indices(shape)
    whole = (slice(ny * edge), slice(nx * edge))
    source = np.repeat(np.repeat(order, edge, 0), edge, 1)
    y[whole] = source // nx * edge + y[whole] % edge
    x[whole] = source % nx * edge + x[whole] % edge
    return y, x


def _record(
    sdata: SpatialData,
    key_added: str,
    source: Source | None,
    used: Mapping[str, Any],
    found: pd.DataFrame,
    helped: dict[str, float],
) -> None:
    """Add columns to a result, unless it was made from something else."""
    try:
        result = find_result(sdata, key_added)
    except MissingKeyError:  # no result to add to
        return
    table = sdata.tables[result.table_key]
    if not table.var_names.isin(found.index).all():
        return
    for name, available in (("image_key", sdata.images), ("table_key", sdata.tables), ("shapes_key", sdata)):
        made_from = result.now(str(result.record.get(name)), available)
        if made_from is not None and made_from != getattr(source, name):
            logger.info("not added to tables/%s, which is of another section", result.table_key)
            return
    is_lacking = not set(RELIABILITY) <= set(table.var)
    for name, value in used.items():
        before = result.record.get(name)
        if is_lacking and name not in READ:  # nothing whole is replaced
            continue
        if not _alike(None if before == "none" else before, value):
            logger.warning("not added to tables/%s, which was made with %s=%r", result.table_key, name, before)
            return
    for name, column in found.items():
        table.var[name] = column.reindex(table.var_names).to_numpy()
    table.uns.setdefault(PROVENANCE_KEY, {})["image_helps"] = helped


def _alike(before: Any, now: Any) -> bool:
    numbers = isinstance(before, int | float) and isinstance(now, int | float)
    return bool(np.isclose(before, now, rtol=1e-6)) if numbers else before == now
