"""Loaders for the public sections of the data folder, which is not part of the package, also as arrays."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
from anndata import AnnData
from PIL import Image
from scipy import sparse
from spatialdata import SpatialData

from hadmst_sc.datasets.visium import as_visium
from hadmst_sc.section.grid import Grid
from hadmst_sc.section.observation import Observation

_PIXEL_BUDGET = 400_000_000  # checked in the header, before an image is decoded


@dataclass(frozen=True)
class _Files:
    counts: str
    image: str


_SECTIONS = {
    "visium_mouse_brain": _Files("visium_mouse_brain/visium.h5ad", "visium_mouse_brain/he_colourised.jpg"),
    **{
        f"visium_dlpfc_{n}": _Files(f"visium_dlpfc/{n}.h5ad", f"visium_dlpfc/{n}_tissue_lowres_image.png")
        for n in (151673, 151674, 151675)
    },
    **{f"her2st_C{n}": _Files(f"her2st/C{n}.h5ad", f"her2st/C{n}.jpg") for n in range(2, 7)},
    **{
        f"st_mob_{n}": _Files(f"st_mouse_olfactory_bulb/MOB{n}.h5ad", f"st_mouse_olfactory_bulb/MOB{n}.jpg")
        for n in range(1, 5)
    },
    "xenium_breast_visium": _Files("xenium_breast/crop_visium_spots.h5ad", "xenium_breast/he.png"),
}
_CELLS = {
    "xenium_breast_crop": _Files("xenium_breast/crop_xenium_cells.h5ad", "xenium_breast/he.png"),
    "xenium_breast_rep1": _Files("xenium_breast/rep1_cells_subsample.h5ad", "xenium_breast/he.png"),
    "xenium_mouse_brain": _Files("xenium_mouse_brain/cells.h5ad", ""),
    "xenium_breast_dapi": _Files("xenium_breast_dapi/cells.h5ad", "xenium_breast_dapi/he_pseudo.png"),
    "merfish_mouse_hippocampus": _Files(
        "merfish_mouse_hippocampus/bins_5um.h5ad", "merfish_mouse_hippocampus/he_pseudo_dapi_only.png"
    ),
}
_MOLECULES = {"merfish_mouse_hippocampus": "merfish_mouse_hippocampus/molecules.csv.gz"}
# Columns of the files under the names that Space Ranger's readers use; ST's x counts columns, y rows.
_OBS = {"row": "array_row", "col": "array_col", "y": "array_row", "x": "array_col", "selected": "in_tissue"}
_POSITIONS = ("pxl_row", "pxl_col", "pixel_x", "pixel_y", "new_x", "new_y")  # the same as obsm["spatial"]


def _root(data_dir: str | Path | None) -> Path:
    beside_the_project = Path(__file__).resolve().parents[4] / "shared" / "data"
    root = Path(data_dir or os.environ.get("HADMST_DATA") or beside_the_project)
    if not root.is_dir():
        raise FileNotFoundError(
            f"`data_dir` needs the folder of public sections, but {str(root)!r} is not a folder. The sections are "
            f"not part of the package. Set the environment variable HADMST_DATA, or pass `data_dir='path/to/data'`."
        )
    return root


def _existing(root: Path, name: str, relative: str) -> Path:
    path = root / relative
    if not path.is_file():
        raise FileNotFoundError(
            f"`name={name!r}` needs the file {relative!r}, but the data folder {str(root)!r} lacks it. "
            f"Set HADMST_DATA to a folder that has it, or see `available()`."
        )
    return path


def _unknown(name: str, known: list[str], verb: str) -> KeyError:
    return KeyError(f"`name={name!r}` is not a section. Available: {known}. Try `{verb}({known[0]!r})`.")


def available(data_dir: str | Path | None = None) -> list[str]:
    """Names that :func:`load` can read from the data folder.

    Parameters
    ----------
    data_dir
        As in :func:`load`.

    Examples
    --------
    With one of the sections in the folder ``sections``:

    >>> hd.datasets.available("sections")
    ['her2st_C2']
    """
    root = _root(data_dir)
    return [name for name, f in _SECTIONS.items() if (root / f.counts).is_file() and (root / f.image).is_file()]


def cell_sections() -> list[str]:
    """Names that :func:`load_cells` knows."""
    return list(_CELLS)


def _read_image(path: Path) -> np.ndarray:
    """``(3, y, x)`` uint8."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the budget below is the check
        image = Image.open(path)
    with image:
        if image.width * image.height > _PIXEL_BUDGET:
            raise ValueError(
                f"`{path.name}` needs at most {_PIXEL_BUDGET:,} pixels, but has {image.width:,} × {image.height:,}. "
                f"Decoding it would exhaust memory. Replace the file with its original."
            )
        return np.ascontiguousarray(np.moveaxis(np.asarray(image.convert("RGB")), -1, 0))


def _read_counts(path: Path) -> AnnData:
    table = anndata.read_h5ad(path)
    table.var["gene_ids"] = table.var_names.astype(str)
    table.var_names_make_unique()
    table.obs_names = table.obs_names.astype(str)
    return table


def _read_layers(path: Path, section: str, spots: pd.Index) -> pd.Categorical:
    """Annotated cortical layer of each spot; missing if not annotated."""
    labels = pd.read_csv(path, sep="\t", header=None, names=["spot", "section", "layer"], dtype=str)
    own = labels[labels["section"] == section].set_index("spot")["layer"]
    return pd.Categorical(own.reindex(spots))


def load(name: str, *, data_dir: str | Path | None = None) -> SpatialData:
    """Load a public section, in the structure of ``spatialdata_io.visium``.

    Parameters
    ----------
    name
        One of :func:`available`.
    data_dir
        The data folder; by default ``$HADMST_DATA``, else ``../shared/data`` relative to the project's root.

    Returns
    -------
    SpatialData with the H&E as ``<name>_full_image`` (and smaller copies ``_hires_image``, ``_lowres_image``), spots as
    circles ``<name>`` of their true diameter, and integer counts as ``table``. Its ``uns["spatial"][name]["metadata"]``
    holds ``spot_um``, ``pitch_um`` and ``um_per_px``; DLPFC sections have the annotated ``layer`` in ``obs``.

    Raises
    ------
    KeyError
        If there is no section with that name.
    FileNotFoundError
        If the data folder, or the section in it, is missing.

    Examples
    --------
    From the folder ``sections``:

    >>> sdata = hd.datasets.load("her2st_C2", data_dir="sections")
    >>> sdata.tables["table"].uns["spatial"]["her2st_C2"]["metadata"]["spot_um"]
    100.0
    """
    if name not in _SECTIONS:
        raise _unknown(name, list(_SECTIONS), "load")
    root, files = _root(data_dir), _SECTIONS[name]
    path = _existing(root, name, files.counts)
    image = _read_image(_existing(root, name, files.image))
    table = _read_counts(path)
    um_per_px, spot_um, pitch_um = (float(table.uns[key]) for key in ("he_mpp", "spot_diameter_um", "pitch_um"))
    table.obs = table.obs.rename(columns=_OBS).drop(columns=list(_POSITIONS), errors="ignore")
    if "in_tissue" not in table.obs:
        table.obs.insert(0, "in_tissue", 1)
    if name.startswith("visium_dlpfc"):
        labels = _existing(root, name, "visium_dlpfc/layer_labels.tsv.gz")
        table.obs["layer"] = _read_layers(labels, name.rpartition("_")[2], table.obs_names)
    metadata = {"spot_um": spot_um, "pitch_um": pitch_um, "um_per_px": um_per_px}
    table.uns = {"spatial": {name: {"metadata": metadata}}}
    table.obsm["spatial"] = np.asarray(table.obsm["spatial"], float)
    return as_visium(name, image, table, spot_um / um_per_px)


def load_cells(name: str, *, data_dir: str | Path | None = None) -> AnnData:
    """Load the cells or molecules of a section that was measured at high resolution: the truth.

    Parameters
    ----------
    name
        ``"xenium_breast_crop"``, ``"xenium_breast_rep1"`` (both on the image of ``load("xenium_breast_visium")``),
        ``"xenium_mouse_brain"`` (no image), ``"xenium_breast_dapi"`` or ``"merfish_mouse_hippocampus"`` (single
        molecules). The images of the last two are rendered from a nuclear stain of the same section, and are not H&E.
    data_dir
        As in :func:`load`.

    Returns
    -------
    AnnData of counts, cells (or molecules) × genes, with ``obsm["spatial"]`` as (x, y) in pixels of ``uns["he_mpp"]``
    µm; without an image a pixel is 1 µm.

    Examples
    --------
    From the folder ``sections``:

    >>> cells = hd.datasets.load_cells("xenium_mouse_brain", data_dir="sections")
    >>> cells.uns["he_mpp"], cells.obsm["spatial"].shape[1]
    (1.0, 2)
    """
    if name not in _CELLS:
        raise _unknown(name, list(_CELLS), "load_cells")
    root = _root(data_dir)
    cells = _read_counts(_existing(root, name, _CELLS[name].counts))
    cells.uns.setdefault("he_mpp", cells.uns.get("um_per_px", 1.0))
    cells.obsm["spatial"] = np.asarray(cells.obsm["spatial"], float)
    if name in _MOLECULES:
        cells = _molecules(_existing(root, name, _MOLECULES[name]), cells.var, float(cells.uns["he_mpp"]))
    return cells


def _molecules(path: Path, var: pd.DataFrame, um_per_px: float) -> AnnData:
    """One row per molecule of the genes in ``var``."""
    found = pd.read_csv(path)
    gene = var.index.get_indexer(found["gene"])
    found, gene = found[gene >= 0], gene[gene >= 0]
    one_each = (np.ones(len(gene), np.float32), gene, np.arange(len(gene) + 1))
    places = found[["x_um", "y_um"]].to_numpy(float) / um_per_px
    names = pd.DataFrame(index=[f"m{i}" for i in range(len(gene))])
    counts = sparse.csr_matrix(one_each, shape=(len(gene), len(var)))
    return AnnData(counts, obs=names, var=var, obsm={"spatial": places}, uns={"he_mpp": um_per_px})


def image_of_cells(name: str, *, data_dir: str | Path | None = None) -> np.ndarray | None:
    """Image of a section of :func:`load_cells`, ``(3, y, x)`` uint8; ``None`` where there is none."""
    image = _CELLS[name].image
    return _read_image(_existing(_root(data_dir), name, image)) if image else None


def bin_cells(cells: AnnData, grid: Grid) -> np.ndarray:
    """Sum the counts of all cells whose centre is in a bin, ``(genes, ny, nx)`` float32.

    Parameters
    ----------
    cells
        As :func:`load_cells` returns them.
    grid
        Grid of the image in whose pixels ``cells.obsm["spatial"]`` is; cells outside the grid are ignored.

    Examples
    --------
    >>> from anndata import AnnData
    >>> from hadmst_sc.section.grid import Grid
    >>> places = np.array([[1.0, 1.0], [2.0, 3.0], [12.0, 1.0]])
    >>> cells = AnnData(np.array([[1], [2], [4]]), obsm={"spatial": places})
    >>> hd.datasets.bin_cells(cells, Grid(shape=(1, 2), bin_um=10.0, px_per_bin=10.0))
    array([[[3., 4.]]], dtype=float32)
    """
    iy, ix = np.floor(grid.px_to_bins(cells.obsm["spatial"])).astype(int)[:, ::-1].T
    on = np.flatnonzero((iy >= 0) & (iy < grid.shape[0]) & (ix >= 0) & (ix < grid.shape[1]))
    place = sparse.csr_matrix(
        (np.ones(len(on), np.float32), (iy[on] * grid.shape[1] + ix[on], on)), shape=(grid.n_bins, cells.n_obs)
    )
    binned = place @ sparse.csr_matrix(cells.X).astype(np.float32)
    return np.ascontiguousarray(binned.toarray().T).reshape(cells.n_vars, *grid.shape)


BLANK_UM = 10.0  # µm per pixel of the grey image that replaces a missing one


def observe(name: str, *, genes: Sequence[str] | None = None, bin_um: float = 20.0) -> Observation:
    """Read a section of :func:`~hadmst_sc.datasets.load`; all genes if ``genes`` is ``None``."""
    from hadmst_sc.io.read import read_observation

    sdata = load(name)
    genes = sdata.tables["table"].var_names.tolist() if genes is None else list(genes)
    return read_observation(sdata, f"{name}_full_image", genes=genes, bin_um=bin_um)


def observe_cells(
    name: str,
    *,
    choose: Callable[[AnnData], list[str]] | None = None,
    bin_um: float = 20.0,
    spot_um: float = 55.0,
    pitch_um: float = 100.0,
    random_state: int = 0,
) -> tuple[Observation, np.ndarray, AnnData]:
    """Pseudo-spots from one half of the molecules of a section, and the other half in bins.

    Parameters
    ----------
    name
        As in :func:`~hadmst_sc.datasets.load_cells`. Of ``xenium_breast_rep1`` only the cells for training are used.
    choose
        Function that selects names of genes, given the pseudo-spots; ``None`` = all.
    bin_um
        Edge of a bin.
    spot_um, pitch_um
        Diameter of the spots, and distance between their centres, µm.
    random_state
        Seed of the split of the molecules.

    Returns
    -------
    The section; ``(genes, ny, nx)`` counts per bin that are not in its spots; the cells with these counts, in pixels of
    the section's image.
    """
    from hadmst_sc.io.read import read_observation
    from hadmst_sc.pp.degrade import degrade

    cells = load_cells(name)
    if "split" in cells.obs:
        cells = cells[cells.obs["split"] == "train"].copy()
    um = float(cells.uns["he_mpp"])
    pixels = image_of_cells(name)
    if pixels is None:
        pixels, um = _blank(cells, um)
    spots, rest = degrade(
        cells, spot_um=spot_um, pitch_um=pitch_um, um_per_unit=um, split=0.5, random_state=random_state
    )
    genes = choose(spots) if choose else spots.var_names.tolist()
    sdata = as_visium("simulated", pixels, spots, spots.uns["spot_diameter_um"] / um)
    obs = read_observation(
        sdata, "simulated_full_image", genes=genes, bin_um=bin_um, spot_um=spot_um, pitch_um=pitch_um
    )
    return obs, bin_cells(rest[:, genes], obs.grid), rest


def _blank(cells: AnnData, um: float) -> tuple[np.ndarray, float]:
    """Grey image for cells that have none; their positions are converted to its pixels, in place."""
    at = cells.obsm["spatial"] * um
    cells.obsm["spatial"] = (at - at.min(0)) / BLANK_UM
    width, height = np.ceil(np.ptp(at, axis=0) / BLANK_UM).astype(int) + 1
    return np.full((3, height, width), 200, np.uint8), BLANK_UM
