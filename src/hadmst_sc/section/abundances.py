"""The argument for abundances of cell types in place of counts, beside those of :mod:`.arguments`."""

from __future__ import annotations

from hadmst_sc.section.arguments import SECTION, Argument, SectionArguments


class SpotsArguments(SectionArguments, total=False):
    """Arguments that say where a section stands, and whether its spots have counts of genes or cells of types."""

    obsm_key: str | None


SPOTS: dict[str, Argument] = SECTION | {
    "obsm_key": Argument(
        "str | None",
        None,
        "Abundances of cell types in ``obsm`` of the table, to map in place of genes: cells of each type per spot, as "
        "deconvolution gives them. ``genes`` then selects types, ``None`` = all, and the unit is cells.",
    )
}
