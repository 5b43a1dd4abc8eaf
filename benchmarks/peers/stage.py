"""Runs STAGE on a section: trained by its own function, then its decoder is asked for the centres of our bins."""

import importlib
import sys
import types
from pathlib import Path

import numpy as np
import pandas as pd
import scanpy as sc
import torch
from anndata import AnnData
from scipy.interpolate import LinearNDInterpolator, NearestNDInterpolator

EPOCHS = 2000

# It takes one thing from torchvision, functions called in turn, and torchvision only fits one build of torch.
vision = types.ModuleType("torchvision")
vision.datasets, vision.transforms = types.ModuleType("datasets"), types.ModuleType("transforms")
vision.transforms.Compose = lambda steps: lambda sample: [sample := step(sample) for step in steps][-1]
sys.modules["torchvision"] = vision

stage = importlib.import_module("STAGE")

folder = Path(sys.argv[1])
section = np.load(folder / "section.npz")
inside, bin_um = section["inside"], float(section["bin_um"])
counts, spots = section["counts"].astype(float), section["spots_um"]
some = counts.sum(1) > 0  # a spot without counts has no share of them
data = AnnData(counts[some], var=pd.DataFrame({"highly_variable": True}, index=section["genes"].tolist()))
data.obsm["coord"] = spots[some]
sc.pp.normalize_total(data, target_sum=1e4)
sc.pp.log1p(data)

longest = float(spots.max())  # "scale the maximum value of the coordinates to around 1"
options = {"data_type": "arbitrary", "experiment": "higher_res", "coord_sf": longest, "rad_off": 0.01 * longest}
stage.STAGE(data, save_path=str(folder / "out"), path1=str(folder / "tmp"), train_epoch=EPOCHS, seed=1234, **options)

# It generates at places drawn at random; its saved decoder does the same for any.
decoder = torch.load(folder / "out/decoder.pth", weights_only=False).eval()
rows, columns = np.nonzero(inside)
bins = np.column_stack([columns, rows]) * bin_um + bin_um / 2
with torch.no_grad():
    rates = np.expm1(decoder(torch.tensor(bins / longest, dtype=torch.float32), True).double().numpy())

# What it has learnt are shares of a spot's counts; the counts themselves are interpolated.
total = LinearNDInterpolator(spots, counts.sum(1))(bins)
total = np.where(np.isnan(total), NearestNDInterpolator(spots, counts.sum(1))(bins), total)
maps = np.zeros((data.n_vars, *inside.shape), np.float32)
maps[:, inside] = (rates * total[:, None]).T
np.save(folder / "maps.npy", maps)
