"""Folders as the platforms' own software writes them, from a generated section: what readers of spatialdata-io open."""

from __future__ import annotations

import json
from pathlib import Path

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import tifffile
import zarr
from PIL import Image
from scipy import sparse

from hadmst_sc.phantom.simulate import Phantom

UM_PER_PX = 2.5  # of the H&E
GLASS_PX = 160  # of glass around the tissue of Visium


def pixels(phantom: Phantom) -> np.ndarray:
    """H&E as ``(y, x, 3)`` uint8."""
    return np.moveaxis(phantom.observation.he, 0, -1)


def genes(phantom: Phantom) -> list[str]:
    return list(phantom.observation.genes)


def binned(phantom: Phantom, bins: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Molecules in blocks of bins on the tissue: ``(blocks, genes)`` counts, ``(blocks, 2)`` row and column."""
    rate, inside = phantom.rate, phantom.observation.inside
    ny, nx = (side // bins for side in inside.shape)
    cut = rate[:, : ny * bins, : nx * bins].reshape(len(rate), ny, bins, nx, bins).sum((2, 4))
    whole = inside[: ny * bins, : nx * bins].reshape(ny, bins, nx, bins).any((1, 3))
    counts = np.random.default_rng(seed).poisson(cut[:, whole]).T
    return counts.astype(np.int32), np.argwhere(whole)


def write_10x_h5(path: Path, counts: np.ndarray, barcodes: list[str], names: list[str]) -> None:
    """Counts (barcodes × genes) as Cell Ranger's `feature_bc_matrix.h5`."""
    matrix = sparse.csc_matrix(np.asarray(counts).T.astype(np.int32))  # genes × barcodes, by barcode
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        file.attrs["library_ids"] = np.array([b"S1"])
        file.attrs["chemistry_description"] = "made by a test"
        group = file.create_group("matrix")
        for name, values in (("data", matrix.data), ("indices", matrix.indices), ("indptr", matrix.indptr)):
            group[name] = values
        group["shape"] = np.array(matrix.shape, np.int32)
        group["barcodes"] = np.array(barcodes, "S")
        features = group.create_group("features")
        features["id"] = np.array([f"ENSG{i:011d}" for i in range(len(names))], "S")
        features["name"] = np.array(names, "S")
        features["feature_type"] = np.array(["Gene Expression"] * len(names), "S")
        features["genome"] = np.array(["GRCh38"] * len(names), "S")


def _images(spatial: Path, he: np.ndarray, factors: dict[str, int]) -> None:
    spatial.mkdir(parents=True, exist_ok=True)
    for name, factor in factors.items():
        Image.fromarray(he).resize((he.shape[1] // factor, he.shape[0] // factor)).save(
            spatial / f"tissue_{name}_image.png"
        )


def visium(
    folder: Path, phantom: Phantom, version: int, *, drawn_um: float = 65.0, cytassist: bool = False, seed: int = 0
) -> None:
    """Space Ranger's output: positions without a header in version 1, with one since, and a CytAssist image.

    The files list the whole capture area: spots off the tissue have ``in_tissue`` 0 and lie in the raw matrix only,
    with a few stray molecules. Circles are drawn ``drawn_um`` wide: 60 of the 11 mm CytAssist slide, 65 of many, 70 of
    the 6.5 mm CytAssist slide and of DLPFC.
    """
    obs = phantom.observation
    he = np.pad(pixels(phantom), [(GLASS_PX, GLASS_PX)] * 2 + [(0, 0)], constant_values=240)
    spatial = folder / "spatial"
    rows_columns = obs.grid.bins_to_px(obs.measurement.centres) + GLASS_PX
    barcodes = [f"{'ACGT'[i % 4]}{i:015d}-1" for i in range(len(obs.spots))]
    write_10x_h5(folder / "filtered_feature_bc_matrix.h5", obs.counts, barcodes, genes(phantom))
    index, rows_columns, n_on = *_whole_array(phantom.array_index, rows_columns, he.shape), len(barcodes)
    barcodes += [f"{'TGCA'[i % 4]}{i:015d}-1" for i in range(len(index) - n_on)]
    stray = np.random.default_rng(seed).poisson(0.05, (len(index) - n_on, obs.counts.shape[1]))
    raw = np.concatenate([obs.counts, stray])
    write_10x_h5(folder / "raw_feature_bc_matrix.h5", raw, barcodes, genes(phantom))
    _images(spatial, he, {"hires": 2, "lowres": 4})
    Image.fromarray(he).save(folder / "he.tif")
    scales = {"tissue_hires_scalef": 0.5, "tissue_lowres_scalef": 0.25, "spot_diameter_fullres": drawn_um / UM_PER_PX}
    scales["fiducial_diameter_fullres"] = 1.6154 * drawn_um / UM_PER_PX
    if cytassist:
        scales["regist_target_img_scalef"] = 0.4
    (spatial / "scalefactors_json.json").write_text(json.dumps(scales))
    positions = pd.DataFrame(
        {
            "barcode": barcodes,
            "in_tissue": (np.arange(len(index)) < n_on).astype(int),
            "array_row": index[:, 0],
            "array_col": index[:, 1],
            "pxl_row_in_fullres": np.round(rows_columns[:, 0]).astype(int),
            "pxl_col_in_fullres": np.round(rows_columns[:, 1]).astype(int),
        }
    )
    name = "tissue_positions_list.csv" if version == 1 else "tissue_positions.csv"
    positions.sample(frac=1, random_state=0).to_csv(spatial / name, header=version > 1, index=False)
    if cytassist:
        Image.fromarray(he[::4, ::4]).save(spatial / "cytassist_image.tiff")


def _whole_array(index: np.ndarray, at: np.ndarray, shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """The spots given, then all others of the lattice that lie on the image: row and column, and place in pixels."""
    design = np.c_[index, np.ones(len(index))].astype(float)
    affine = np.linalg.lstsq(design, at, rcond=None)[0]
    row, column = (axis.ravel() for axis in np.mgrid[-20:60, -20:80])
    others = np.c_[row, column][(row + column) % 2 == index[0].sum() % 2]
    taken = {tuple(one) for one in index}
    others = np.array([one for one in others if tuple(one) not in taken])
    places = np.c_[others, np.ones(len(others))] @ affine
    on = ((places > 12) & (places < np.array(shape[:2]) - 12)).all(1)
    return np.concatenate([index, others[on]]), np.concatenate([at, places[on]])


def visium_hd(folder: Path, phantom: Phantom, bin_um: int) -> None:
    """Space Ranger's output for HD: one bin size, positions as parquet, the slice file with its layout."""
    counts, places = binned(phantom, round(bin_um / phantom.observation.grid.bin_um))
    he, edge = pixels(phantom), bin_um / UM_PER_PX
    inner = folder / "binned_outputs" / f"square_{bin_um:03d}um"
    barcodes = [f"s_{bin_um:03d}um_{row:05d}_{column:05d}-1" for row, column in places]
    write_10x_h5(inner / "filtered_feature_bc_matrix.h5", counts, barcodes, genes(phantom))
    for spatial in (inner / "spatial", folder / "spatial"):
        _images(spatial, he, {"hires": 2, "lowres": 4})
        scales = {"tissue_hires_scalef": 0.5, "tissue_lowres_scalef": 0.25, "spot_diameter_fullres": edge}
        scales |= {"bin_size_um": float(bin_um), "microns_per_pixel": UM_PER_PX}
        (spatial / "scalefactors_json.json").write_text(json.dumps(scales))
    pd.DataFrame(
        {
            "barcode": barcodes,
            "in_tissue": 1,
            "array_row": places[:, 0],
            "array_col": places[:, 1],
            "pxl_row_in_fullres": (places[:, 0] + 0.5) * edge,
            "pxl_col_in_fullres": (places[:, 1] + 0.5) * edge,
        }
    ).to_parquet(inner / "spatial" / "tissue_positions.parquet")
    (folder / "microscope_image").mkdir()
    Image.fromarray(he).save(folder / "microscope_image" / "he.tif")
    with h5py.File(folder / "S1_feature_slice.h5", "w") as file:
        layout = {"file_format": "1.0", "transform": np.eye(3).ravel().tolist()}
        file.attrs["metadata_json"] = json.dumps({"hd_layout_json": json.dumps(layout), "transform_matrices": {}})


def xenium(folder: Path, phantom: Phantom, turn: np.ndarray) -> None:
    """One cell per bin of 10 µm, and the H&E as an aligned image that lies turned against the morphology.

    ``turn`` is the ``(3, 3)`` affine on (x, y, 1) from where the H&E is upright to pixels of the morphology.
    """
    pixel_um = 0.2125
    counts, places = binned(phantom, 1)
    rng = np.random.default_rng(1)
    kept = np.flatnonzero(counts.sum(1) > 0)
    xy_um = (places[kept, ::-1] + rng.uniform(0, 1, (len(kept), 2))) * phantom.observation.grid.bin_um
    xy_um = (xy_um / pixel_um @ turn[:2, :2].T + turn[:2, 2]) * pixel_um
    ids = np.arange(1, len(kept) + 1)
    write_10x_h5(folder / "cell_feature_matrix.h5", counts[kept], [str(i) for i in ids], genes(phantom))
    specs = {"analysis_sw_version": "xenium-1.0.2", "pixel_size": pixel_um}
    (folder / "experiment.xenium").write_text(json.dumps(specs))
    cells = {"cell_id": ids, "x_centroid": xy_um[:, 0], "y_centroid": xy_um[:, 1], "cell_area": 80.0}
    pd.DataFrame(cells | {"nucleus_area": 30.0}).to_parquet(folder / "cells.parquet")
    with zarr.storage.ZipStore(folder / "cells.zarr.zip", mode="w") as store:
        zarr.create_group(store)["cell_id"] = ids.astype(np.uint32)
    tifffile.imwrite(folder / "S1_he_image.ome.tif", pixels(phantom), photometric="rgb")
    scale = np.diag([UM_PER_PX / pixel_um, UM_PER_PX / pixel_um, 1])
    np.savetxt(folder / "S1_he_imagealignment.csv", turn @ scale, delimiter=",")


def stereoseq(folder: Path, phantom: Phantom, bin_size: int) -> None:
    """Output of SAW: square bins of DNBs 0.5 µm apart, the stained image registered to them, and cells."""
    names = genes(phantom)
    counts, places = binned(phantom, round(bin_size * 0.5 / phantom.observation.grid.bin_um))
    xy = (places[:, ::-1] + 0.5) * bin_size
    for name in ("02.count", "03.register", "04.tissuecut", "041.cellcut", "051.cellcluster"):
        (folder / name).mkdir(parents=True)
    (folder / "02.count" / "S1.gef").touch()
    to_dnb = round(UM_PER_PX / 0.5)
    he = pixels(phantom).repeat(to_dnb, 0).repeat(to_dnb, 1)
    tifffile.imwrite(folder / "03.register" / "S1_regist.tif", np.moveaxis(he, -1, 0), photometric="minisblack")
    of, at = np.nonzero(counts.T)
    expression = np.zeros(len(of), [("x", "i4"), ("y", "i4"), ("count", "i4")])
    expression["x"], expression["y"], expression["count"] = *xy[at].T.astype(int), counts[at, of]
    n = np.bincount(of, minlength=len(names))
    gene = np.zeros(len(names), [("gene", "S32"), ("offset", "u4"), ("count", "u4")])
    gene["gene"], gene["offset"], gene["count"] = names, np.insert(np.cumsum(n), 0, 0)[:-1], n
    with h5py.File(folder / "04.tissuecut" / "S1.tissuecut.gef", "w") as file:
        group = file.create_group(f"geneExp/bin{bin_size}")
        group["gene"], group["expression"] = gene, expression
        group["expression"].attrs["resolution"] = np.array([500 * bin_size], np.uint32)
    _cells_of_stereoseq(folder, counts, xy, names)


def _cells_of_stereoseq(folder: Path, counts: np.ndarray, xy: np.ndarray, names: list[str]) -> None:
    """A few cells, because the reader wants them."""
    n, g = 3, len(names)
    ad.AnnData(sparse.csr_matrix(counts[:n].astype(np.float32)), var=pd.DataFrame(index=names)).write_h5ad(
        folder / "051.cellcluster" / "S1.cell.cluster.h5ad"
    )
    fields = ["id", "x", "y", "offset", "geneCount", "expCount", "dnbCount", "area", "cellTypeID", "clusterID"]
    cell = np.zeros(n, [(name, "i4") for name in fields])
    cell["x"], cell["y"], cell["area"] = *xy[:n].T.astype(int), 100
    gene = np.zeros(g, [("geneName", "S32"), *((f, "u4") for f in ("offset", "cellCount", "expCount", "maxMIDcount"))])
    gene["geneName"] = names
    pairs = {"cellExp": ("geneID", "count"), "geneExp": ("cellID", "count")}
    with h5py.File(folder / "041.cellcut" / "S1.cellbin.gef", "w") as file:
        group = file.create_group("cellBin")
        group["cell"], group["gene"] = cell, gene
        group["cellExon"], group["geneExon"] = np.zeros(n, "u2"), np.zeros(g, "u4")
        for name, columns in pairs.items():
            group[name] = np.zeros(n, [(column, "u4") for column in columns])
            group[f"{name}Exon"] = np.zeros(n, "u2")
        group["blockIndex"], group["blockSize"] = np.zeros(1, "u4"), np.zeros(4, "u4")
        group["cellTypeList"] = np.array([b"default"])
        border = np.full((n, 32, 2), 32767, "i2")
        border[:, :4] = [[-5, -5], [5, -5], [5, 5], [-5, 5]]
        group["cellBorder"] = border


def dbit(folder: Path, phantom: Phantom, n_channels: int) -> None:
    """Two crossed sets of channels: barcodes A along x, B along y, counts as h5ad, the image cropped to the grid."""
    counts, places = binned(phantom, phantom.observation.grid.shape[0] // n_channels)
    rng = np.random.default_rng(0)
    barcodes = {letter: ["".join(rng.choice(list("ACGT"), 8)) for _ in range(n_channels)] for letter in "AB"}
    folder.mkdir(parents=True, exist_ok=True)
    lines = [f"{letter}{i + 1}\t{code}" for letter in "AB" for i, code in enumerate(barcodes[letter])]
    (folder / "barcode_list.txt").write_text("\n".join(lines))
    spots = [barcodes["B"][row] + barcodes["A"][column] for row, column in places]
    table = ad.AnnData(sparse.csr_matrix(counts.astype(np.float32)), pd.DataFrame(index=spots))
    table.var_names = genes(phantom)
    table.write_h5ad(folder / "S1.h5ad")
    Image.fromarray(pixels(phantom)).save(folder / "tissue_lowres_image.png")
