"""Runs iStar on a section by the steps of its run.sh. Written from its documentation; never run here."""

import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

SUPERPIXEL_UM = 16 * 0.5  # 16 pixels of 0.5 µm

folder, checkout = Path(sys.argv[1]), os.environ["HADMST_PEER_ISTAR"]
section = np.load(folder / "section.npz")
inside, bin_um = section["inside"], float(section["bin_um"])
ny, nx = inside.shape
pixel_um = bin_um / (section["he"].shape[1] // ny)
# Numbers in the place of names, which become names of files.
genes = [f"gene{i}" for i in range(section["counts"].shape[1])]
spots = [f"spot{i}" for i in range(len(section["counts"]))]

Image.fromarray(section["he"].transpose(1, 2, 0)).save(folder / "he-raw.png")
pd.DataFrame(section["counts"].astype(int), spots, genes).to_csv(folder / "cnts.tsv", sep="\t")
at = np.rint(section["spots_um"] / pixel_um).astype(int)
pd.DataFrame(at, spots, ["x", "y"]).to_csv(folder / "locs-raw.tsv", sep="\t")
(folder / "pixel-size-raw.txt").write_text(f"{pixel_um}\n")
(folder / "pixel-size.txt").write_text("0.5\n")
(folder / "radius-raw.txt").write_text(f"{float(section['spot_um']) / 2 / pixel_um}\n")
(folder / "gene-names.txt").write_text("\n".join(genes) + "\n")

prefix = f"{folder}/"
for step in (
    ["rescale.py", prefix, "--image"],
    ["preprocess.py", prefix, "--image"],
    ["extract_features.py", prefix, "--device=cpu"],
    ["get_mask.py", f"{prefix}embeddings-hist.pickle", f"{prefix}mask-small.png"],
    ["rescale.py", prefix, "--locs", "--radius"],
    ["impute.py", prefix, "--epochs=400", "--device=cpu"],
):
    subprocess.run([sys.executable, *step], cwd=checkout, check=True)

# Each bin is the superpixel at its centre: bins are larger, but no more is known of how they overlap than that.
maps = np.zeros((len(genes), ny, nx), np.float32)
for gene, found in zip(genes, maps, strict=True):
    with open(folder / "cnts-super" / f"{gene}.pickle", "rb") as file:
        small = np.nan_to_num(pickle.load(file))  # noqa: S301 - what the step before has written
    rows, columns = (
        np.minimum(((np.arange(n) + 0.5) * bin_um / SUPERPIXEL_UM).astype(int), side - 1)
        for n, side in zip((ny, nx), small.shape, strict=True)
    )
    found[:] = small[np.ix_(rows, columns)]
np.save(folder / "maps.npy", maps)
