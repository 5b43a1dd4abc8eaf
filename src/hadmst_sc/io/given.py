"""Check the argument ``sdata``; the error shows code that makes a SpatialData from the object passed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from anndata import AnnData
from spatialdata import SpatialData

from hadmst_sc.section.errors import WrongTypeError
from hadmst_sc.section.observation import PROVENANCE_KEY

NONE_OF_THESE = "It is not a zarr store, .h5ad file or Space Ranger folder. Pass one of these."
COUNTS = "feature_bc_matrix.h5"  # suffix of Space Ranger's count files
STORE = ("zarr.json", ".zattrs", ".zgroup")  # files with the attributes of the root in zarr 3 and 2


def check_sdata(sdata: object) -> None:
    """Raise unless ``sdata`` is a SpatialData.

    Raises
    ------
    TypeError
        If it is not a SpatialData. The message has the code that makes one from an AnnData, a store, a file or a Space
        Ranger folder.
    """
    if isinstance(sdata, SpatialData):
        return
    if isinstance(sdata, AnnData):
        found, remedy = "an AnnData", _of_anndata(sdata)
    elif isinstance(sdata, str | Path):
        found, remedy = f"the path {str(sdata)!r}", _of_path(Path(sdata))
    elif sdata is None:
        found = "None"
        remedy = (
            "Functions that add to a SpatialData return None: pass the object that you passed to them, or generate an "
            "example with `sdata = hadmst_sc.datasets.phantom()`."
        )
    else:
        found = f"of type {type(sdata).__name__}"
        remedy = "Pass one SpatialData, such as `sdata = spatialdata.read_zarr(path)`."
        inner = list(sdata.values() if isinstance(sdata, Mapping) else sdata if isinstance(sdata, list | tuple) else [])
        if inner and all(isinstance(one, SpatialData) for one in inner):
            each = "sdata.values()" if isinstance(sdata, Mapping) else "sdata"
            remedy = f"Call the function for each: `for section in {each}: ...`."
    raise WrongTypeError(f"`sdata` needs a SpatialData, but is {found}. {remedy}")


def _of_anndata(adata: AnnData) -> str:
    if PROVENANCE_KEY in adata.uns:
        return "It is the table of a result: pass the SpatialData that contains it."
    stored = adata.uns.get("spatial")
    libraries = list(stored.values()) if isinstance(stored, Mapping) else []
    if any(isinstance(one, Mapping) and one.get("images") for one in libraries):
        return "Make one: `sdata = hadmst_sc.io.from_anndata(sdata)`."
    return "Make one, with the file of the full-resolution H&E: `sdata = hadmst_sc.io.from_anndata(sdata, 'he.tif')`."


def _of_path(path: Path) -> str:
    if not path.exists():
        return f"There is no such file or folder in {str(Path.cwd())!r}. Correct the path."
    code = _reader(path)
    return f"Read it: `sdata = {code}`{_needs(code)}." if code else NONE_OF_THESE


def check_store_path(path: Path) -> None:
    """Raise unless a folder is a SpatialData zarr store.

    Raises
    ------
    ValueError
        With code that makes a store from an AnnData or a Space Ranger folder.
    """
    if (code := _reader(path)).startswith("spatialdata.read_zarr"):
        return
    remedy = f"Make one: `{code}.write({path.stem + '_section.zarr'!r})`{_needs(code)}." if code else NONE_OF_THESE
    raise ValueError(f"`path` needs a zarr store of SpatialData, but {str(path)!r} is not one. {remedy}")


def _needs(code: str) -> str:
    return " (`pip install 'hadmst-sc[io]'`)" if code.startswith("spatialdata_io") else ""


def _reader(path: Path) -> str:
    """Return code that reads a path as SpatialData; empty if there is none."""
    if path.suffix == ".h5ad":
        return f"hadmst_sc.io.from_anndata(anndata.read_h5ad({str(path)!r}))"
    if marks := [path / mark for mark in STORE if (path / mark).is_file()]:
        root = json.loads(marks[0].read_bytes())
        if root.get("attributes", root).get("encoding-type") == "anndata":
            return f"hadmst_sc.io.from_anndata(anndata.read_zarr({str(path)!r}))"
        return f"spatialdata.read_zarr({str(path)!r})"
    return next((code for folder in (path, path / "outs") if (code := _of_space_ranger(folder))), "")


def check_anndata(value: object, name: str) -> None:
    """Raise unless an argument is an AnnData.

    Raises
    ------
    TypeError
        If it is not an AnnData. The message has the code that gets one from a SpatialData or a file.
    """
    if isinstance(value, AnnData):
        return
    remedy = "Pass `anndata.read_h5ad(path)`, or a table of a SpatialData."
    if isinstance(value, SpatialData) and len(value.tables):
        remedy = f"Pass one of its tables, `{name}.tables[{next(iter(value.tables))!r}]`."
    elif isinstance(value, str | Path) and Path(value).is_file():
        remedy = f"Pass `anndata.read_h5ad({str(value)!r})`."
    raise WrongTypeError(f"`{name}` needs an AnnData, but is of type {type(value).__name__}. {remedy}")


def _of_space_ranger(folder: Path) -> str:
    """Return code that reads a Space Ranger folder; empty for any other folder."""
    section = folder.resolve().parent if folder.name == "outs" else folder.resolve()
    name = f"dataset_id={section.name!r}"
    if (folder / "binned_outputs").is_dir():
        return f"spatialdata_io.visium_hd({str(folder)!r}, {name})"
    files = sorted(file.name for file in folder.glob(f"*{COUNTS}")) if (folder / "spatial").is_dir() else []
    if not files:
        return ""
    # `visium` reads `filtered_feature_bc_matrix.h5` and uses the part of the file name before it as the id.
    counts = next((file for file in files if "filtered_" in file), files[0])
    start = counts.find("filtered_" if "filtered_" in counts else "raw_")
    arguments = [repr(str(folder)), f"dataset_id={counts[: start - 1]!r}" if start > 0 else name]
    if "filtered_" not in counts:
        arguments.append(f"counts_file={counts[max(start, 0) :]!r}")
    return f"spatialdata_io.visium({', '.join(arguments)})"
