"""Runs xFuse on a section through its command line. Written from its documentation; never run here."""

import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import torch
from PIL import Image
from scipy.ndimage import center_of_mass, map_coordinates

# The example of its README, without the analyses that are not read.
CONFIG = """
[xfuse]
network_depth = 6
network_width = 16
min_counts = 0
[expansion_strategy]
type = "DropAndSplit"
[expansion_strategy.DropAndSplit]
max_metagenes = 50
[optimization]
batch_size = 3
epochs = 100000
learning_rate = 0.0003
patch_size = 768
[analyses.gene_maps]
type = "gene_maps"
[analyses.gene_maps.options]
gene_regex = ".*"
mask_tissue = false
writer = "tensor"
[slides.section]
data = "section/data.h5"
[slides.section.covariates]
section = 1
"""

folder = Path(sys.argv[1])
section = np.load(folder / "section.npz")
inside, k = section["inside"], section["he"].shape[1] // section["inside"].shape[0]
genes = [f"gene{i}" for i in range(section["counts"].shape[1])]
at = section["spots_um"] / float(section["bin_um"]) * k
# It takes the radius of a spot from its coordinates on the array: a quarter of the distance of two columns.
array = section["spots_um"] / float(section["spot_um"]) / 2
spots = pd.DataFrame({"x": array[:, 0], "y": array[:, 1], "pixel_x": at[:, 0], "pixel_y": at[:, 1]})
names = spots[["x", "y"]].apply(lambda place: "x".join(map(str, place)), axis=1)

Image.fromarray(section["he"].transpose(1, 2, 0)).save(folder / "he.png")
Image.fromarray(np.kron(inside, np.ones((k, k))).astype(np.uint8)).save(folder / "mask.png")
pd.DataFrame(section["counts"].astype(int), names.tolist(), genes).to_csv(folder / "counts.tsv", sep="\t")
spots.to_csv(folder / "spots.tsv", sep="\t", index=False)
(folder / "config.toml").write_text(CONFIG)

command = [sys.executable, "-m", "xfuse"]
data = ["--counts", "counts.tsv", "--image", "he.png", "--spots", "spots.tsv", "--mask-file", "mask.png"]
for step in (
    ["convert", "st", *data, "--no-rotate", "--save-path", "section"],
    ["run", "config.toml", "--save-path", "out"],
):
    subprocess.run([*command, *step], cwd=folder, check=True)

# Its conversion crops the image: where to, the spots tell, which it sorts by name and numbers from 2 (1 is background).
with h5py.File(folder / "section/data.h5") as file:
    label = file["label"][()]
order = np.argsort(names.to_numpy())
centres = np.array(center_of_mass(np.ones(label.shape), label, np.arange(len(order)) + 2))
shift = np.nanmedian(at[order, ::-1] - 0.5 - centres, axis=0)
rows, columns = np.nonzero(inside)
pixels = (np.stack([rows, columns]) + 0.5) * k - 0.5 - shift[:, None]

maps = np.zeros((len(genes), *inside.shape), np.float32)
for gene, found in zip(genes, maps, strict=True):
    (file,) = (folder / "out").glob(f"analyses/**/{gene}.pt")
    mean = np.asarray(torch.load(file, map_location="cpu"))  # its samples
    found[inside] = map_coordinates(mean.mean(0), pixels, order=1, mode="nearest")
np.save(folder / "maps.npy", maps)
