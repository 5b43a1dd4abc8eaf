"""Registration of the H&E to the spots, from SpatialData."""

from __future__ import annotations

from collections.abc import Sequence

from spatialdata import SpatialData

from hadmst_sc.alignment.register import Alignment, estimate_alignment
from hadmst_sc.io.read import read_observation
from hadmst_sc.runtime import usual_errors
from hadmst_sc.section.arguments import number
from hadmst_sc.section.errors import Problems

REACH = number(1, 500, text="a positive length in µm, from 1 to 500")  # time grows with its square


@usual_errors
def register(
    sdata: SpatialData,
    image_key: str,
    *,
    table_key: str = "table",
    shapes_key: str | None = None,
    coordinate_system: str | None = None,
    layer: str | None = None,
    genes: Sequence[str] | int | None = None,
    bin_um: float = 10.0,
    spot_um: float | None = None,
    pitch_um: float | None = None,
    tissue_key: str | None = None,
    max_um: float = 60.0,
) -> Alignment:
    """Estimate how far the H&E lies from its spots; ``sdata`` is only looked at.

    The counts tell: in the right place the image predicts left-out spots best. Translation, rotation up to 6° and a
    smooth field up to 30 µm are sought; a gain that could be chance gives none. A transformation of SpatialData is
    affine, so it can hold translation and rotation (``affine`` of what is returned, in µm), but not ``field``:
    `tl.superresolve` undoes all of it.

    Parameters
    ----------
    sdata
        Holds the H&E, the spots and their table.
    image_key
        The H&E image.
    table_key
        Table of counts that annotates the spots.
    shapes_key, coordinate_system
        Needed only when the table or the image leaves a choice.
    layer
        Layer with the counts; ``None`` = ``X``, ``"raw"`` = the matrix of ``.raw`` unless a layer has that name.
    genes
        Names, or how many of the most informative; ``None`` = ``var["highly_variable"]`` if present, else 200.
    bin_um
        Edge of the bins that the image is compared on, µm.
    spot_um, pitch_um
        Diameter and distance of the spots, µm; ``None`` = recognised from the platform's proportions.
    tissue_key
        Labels or shapes that mark the tissue; ``None`` = detected.
    max_um
        Longest translation that is found, µm.

    Returns
    -------
    Translation in µm along the image's axes (y, x), rotation in degrees and field: the image shows at ``p + d(p)`` what
    the spots saw at ``p``, where ``d`` is its ``displacement_um``.

    Raises
    ------
    KeyError
        If a key is not there; the message lists what is.
    ContractError
        If image and spots cannot be paired: all problems at once, each with its remedy.
    ValueError
        If an argument has a wrong type or value.

    Examples
    --------
    >>> sdata = hd.datasets.phantom(seed=3, misregistration_um=(30.0, -20.0))
    >>> hd.pp.register(sdata, "phantom_full_image").applied
    True
    """
    problems = Problems("cannot register this section")
    problems.check({"max_um": max_um}, {"max_um": (REACH, 60.0)})
    obs = read_observation(
        sdata,
        image_key,
        table_key=table_key,
        shapes_key=shapes_key,
        coordinate_system=coordinate_system,
        layer=layer,
        genes=genes,
        bin_um=bin_um,
        spot_um=spot_um,
        pitch_um=pitch_um,
        tissue_key=tissue_key,
        problems=problems,
    )
    return estimate_alignment(obs, max_um=max_um)
