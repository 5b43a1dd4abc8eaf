"""Runs FineST on a section: its training on 4 × 4 patches per spot, its inference and imputation for every bin."""

import importlib
import importlib.util
import logging
import os
import sys
import types
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from scipy.ndimage import map_coordinates

# The package imports all its plots and its analysis of ligands at once, with a hundred requirements. These parts are
# imported by themselves; squidpy would only read files.
package = types.ModuleType("FineST")
package.__path__ = list(importlib.util.find_spec("FineST").submodule_search_locations)
sys.modules.update(FineST=package, squidpy=types.ModuleType("squidpy"))

inference, model, process, traintest, utils = (
    importlib.import_module(f"FineST.{part}") for part in ("inference", "model", "processData", "traintest", "utils")
)

os.environ["TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"] = "1"  # its checkpoints are older than that default
CLASS, PER_SPOT = "Visium16", 4  # 4 × 4 patches in the square around a spot
UNITS = 10  # per µm: it rounds coordinates to whole pixels

# Its parameters_NPC_HIPT.json.
params = {"n_encoder_hidden_matrix": 256, "n_encoder_hidden_image": 128, "n_encoder_latent": 128}
params |= {"n_projection_hidden": 256, "n_projection_output": 128, "n_encoder_layers": 2, "dropout_rate": 0}
params |= {"batch_size": 200, "batch_size_pair": 64, "training_epoch": 50, "inital_learning_rate": 0.1}
params |= {"k_nearest_positives": 0, "temperature": 0.03, "w1": 0, "w2": 0, "w3": 1, "w4": 1}

folder = Path(sys.argv[1])
section = np.load(folder / "section.npz")
counts, genes, features = section["counts"], section["genes"].tolist(), section["features"]
inside, bin_um, spots = section["inside"], float(section["bin_um"]), section["spots_um"]
params |= {"n_input_matrix": len(genes), "n_input_image": len(features)}
# Its loaders drop what does not fill a batch, and its test set is a fifth: none may be empty.
params["batch_size"] = min(params["batch_size"], len(spots) - int(0.8 * len(spots)))
params["batch_size_pair"] = min(params["batch_size_pair"], 2 * params["batch_size"])


def embeddings(places: np.ndarray, name: str) -> str:
    """Files as its extraction of features leaves them, of our features at ``(n, 2)`` places in µm."""
    at = places[:, ::-1].T / bin_um - 0.5
    values = np.stack([map_coordinates(feature, at, order=1, mode="nearest") for feature in features], 1)
    torch.save(list(torch.tensor(values, dtype=torch.float32)), folder / f"{name}.pth")
    return str(folder / f"{name}.pth")


def positions(places: np.ndarray, name: str) -> str:
    """Coordinates in pixels, twice, as its position_order.csv has those of the array beside them."""
    whole = np.rint(places * UNITS).astype(int)
    pd.DataFrame(np.hstack([whole, whole])).to_csv(folder / f"{name}.csv", header=False, index=False)
    return str(folder / f"{name}.csv")


# Patches in its order, x fastest.
steps = ((np.arange(PER_SPOT) + 0.5) / PER_SPOT - 0.5) * float(section["spot_um"])
offsets = np.stack(np.meshgrid(steps, steps), -1).reshape(-1, 2)
np.save(folder / "matrix_order.npy", counts.T)
utils.setup_seed(666)
net, train, test, optimizer, loss = model.prepare_training(
    params,
    embeddings((spots[:, None] + offsets).reshape(-1, 2), "spots"),
    hist_model="HIPT",
    dataset_class=CLASS,
    spatial_pos_path=positions(spots, "position_order"),
    reduced_mtx_path=str(folder / "matrix_order.npy"),
)
log = logging.getLogger("finest")
*_, best, _ = traintest.train_model(params, net, train, test, optimizer, loss, str(folder), log, dataset_class=CLASS)
net.load_state_dict(torch.load(folder / f"epoch_{best}.pt")["model_state_dict"])

# Our bins are what single cells are to it: places with an embedding each.
rows, columns = np.nonzero(inside)
bins = np.column_stack([columns + 0.5, rows + 0.5]) * bin_um
files = embeddings(bins, "bins"), positions(bins, "bins")
loader = model.build_loader_allspot(len(bins), files[0], files[1], dataset_class="VisiumSC")
with torch.no_grad():
    found = inference.infer_expr_img2mat(net, loader, dataset_class="VisiumSC")[1]
found, _ = utils.reshape_latent_image(found, dataset_class="VisiumSC")
*_, places, inferred = utils.subspot_coord_expr_adata(found, bins * UNITS, genes, 14, dataset_class="VisiumSC")

data = AnnData(counts.astype(float), var=pd.DataFrame(index=genes))
data.obsm["spatial"], data.uns["spatial"] = spots * UNITS, {}
smooth = process.impute_adata(data, inferred, places, genes, dataset_class="VisiumSC", weight_exponent=2)
imputed, _ = process.weight_adata(inferred, smooth, genes, w=0.5, do_scale=True)
maps = np.zeros((len(genes), *inside.shape), np.float32)
maps[:, inside] = np.asarray(imputed.X).T
np.save(folder / "maps.npy", maps)
