"""Runs TESLA on a section: superpixels are our bins, everything else is as in its tutorial."""

import sys
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import TESLA
from anndata import AnnData
from scipy.ndimage import distance_transform_edt

folder = Path(sys.argv[1])
section = np.load(folder / "section.npz")
inside, bin_um = section["inside"], float(section["bin_um"])
(ny, nx), k = inside.shape, section["he"].shape[1] // inside.shape[0]
image = np.ascontiguousarray(section["he"].transpose(1, 2, 0)[:, :, ::-1])  # cv2 has blue first
if k == 1:  # colour is averaged over whole pixels around the centre, so a bin needs some
    image, k = np.repeat(np.repeat(image, 2, 0), 2, 1), 2

# Its superpixels are centred on multiples of `res`, from the first one: shifted by half a bin, those are our bins.
shift = (k + 1) // 2
image = cv2.copyMakeBorder(image, shift, shift, shift, shift, cv2.BORDER_REPLICATE)

# Its `x` runs down. Names of spots are integers as those of its superpixels, which later anndata turns into text.
pixels = section["spots_um"][:, ::-1] / bin_um * k + shift
spots = pd.DataFrame(pixels, columns=["pixel_x", "pixel_y"], index=[str(i) for i in range(len(pixels))])
counts = np.log1p(section["counts"].astype(float))  # "impute on log scale"
data = AnnData(counts, obs=spots, var=pd.DataFrame(index=section["genes"].tolist()))

# The contour that its scan finds around the bins in tissue.
rows, columns = np.nonzero(inside)
tissue = pd.DataFrame({"array_x": rows, "array_y": columns})
tissue["pixel_x"], tissue["pixel_y"] = ((at + 0.5) * k + shift for at in (rows, columns))
contour = TESLA.scan_contour(tissue, scan_x=True, shape="square")

found = TESLA.imputation(image, data, contour, list(data.var_names), shape="None", res=k, s=1, k=2, num_nbs=10)

bins = found.obs[["x", "y"]].to_numpy().astype(int) // k - 1
maps, known = np.zeros((ny * nx, data.n_vars)), np.zeros((ny, nx), bool)
maps[bins[:, 0] * nx + bins[:, 1]], known[bins[:, 0], bins[:, 1]] = found.X, True
# Bins in tissue that its contour leaves out are those of its nearest superpixel.
at = distance_transform_edt(~known, return_distances=False, return_indices=True)
maps = np.expm1(maps).T.reshape(-1, ny, nx)[:, at[0], at[1]]
np.save(folder / "maps.npy", maps.astype(np.float32))
