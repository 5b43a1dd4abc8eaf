"""Registration of the H&E to the spots, from SpatialData."""

from __future__ import annotations

from typing import Unpack

from spatialdata import SpatialData

from hadmst_sc.alignment.register import Alignment, estimate_alignment
from hadmst_sc.inference.progress import REGISTRATION, Progress, seconds_of
from hadmst_sc.io.abundances import read_spots
from hadmst_sc.io.panel import with_other_genes
from hadmst_sc.runtime import usual_errors
from hadmst_sc.section.abundances import SPOTS, SpotsArguments
from hadmst_sc.section.arguments import FLAG, number, takes
from hadmst_sc.section.errors import Problems

REACH = number(1, 500, text="a positive length in µm, from 1 to 500")  # time grows with its square


@takes(SPOTS)
@usual_errors
def register(
    sdata: SpatialData,
    image_key: str,
    *,
    max_um: float = 60.0,
    show_progress_bar: bool = True,
    **section: Unpack[SpotsArguments],
) -> Alignment:
    """Estimate the displacement of the H&E relative to the spots; ``sdata`` is not changed.

    The counts are the evidence: at the right position the image predicts held-out spots best. Translation, rotation up
    to 6° and a smooth field up to 30 µm are fitted; each stays zero unless the evidence supports it. Transformations of
    SpatialData are affine: they can hold translation and rotation (``affine`` of the result, in µm), but not ``field``.
    `tl.superresolve` corrects all three.

    Parameters
    ----------
    sdata
        Holds the H&E, the spots and their table.
    image_key
        The H&E image.
    {shared}
    max_um
        Longest translation that can be found, µm.
    show_progress_bar
        Show a progress bar if it takes longer than a second.

    Returns
    -------
    Translation in µm along the image's axes (y, x), rotation in degrees and field: the image shows at ``p + d(p)`` the
    tissue that the spots measured at ``p``, where ``d`` is its ``displacement_um``.

    Raises
    ------
    KeyError
        If a key is missing; the message lists the available ones.
    ContractError
        If image and spots cannot be paired; the message lists all problems, each with its remedy.
    ValueError
        If an argument has a wrong type or value.

    Examples
    --------
    >>> sdata = hd.datasets.phantom(seed=3, misregistration_um=(30.0, -20.0))
    >>> hd.pp.register(sdata, "phantom_full_image").applied
    True
    """
    problems = Problems("cannot register this section")
    given = {"max_um": max_um, "show_progress_bar": show_progress_bar}
    problems.check(given, {"max_um": (REACH, 60.0), "show_progress_bar": (FLAG, True)})
    with Progress(show=show_progress_bar) as progress:
        progress.at("read")
        obs = read_spots(sdata, image_key, **section, problems=problems)
        obs = with_other_genes(sdata, obs, section.get("obsm_key"))
        progress.plan({"align": seconds_of(REGISTRATION, obs)})
        progress.at("align")
        return estimate_alignment(obs.in_order(), max_um=max_um)
