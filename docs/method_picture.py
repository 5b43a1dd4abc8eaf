"""The picture of the method page: ``python docs/method_picture.py`` (half a minute).

Super-resolves a phantom whose H&E shows glands, once in closed form and once with the network, and
draws what each step gives beside the truth. Writes ``docs/_static/method.jpg``.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import matplotlib

matplotlib.use("agg")

import matplotlib.pyplot as plt
import numpy as np
from spatialdata import SpatialData

import hadmst_sc as hd

IMAGE, FONT = "phantom_full_image", 15  # pt
STYLE, SEED, KIND = "glands", 3, "region"  # the gene is the most abundant of those that differ between regions


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "_static" / "method.jpg")
    options = parser.parse_args()
    sdata = hd.datasets.phantom(style=STYLE, seed=SEED)
    for key, model in (("closed_form", None), ("superres", "default")):
        hd.tl.superresolve(sdata, IMAGE, model=model, key_added=key)
    draw(sdata).savefig(options.output, dpi=70, pil_kwargs={"quality": 82})


def draw(sdata: SpatialData) -> plt.Figure:
    """Six panels, in the order in which they are made."""
    table = sdata["table"]
    of_kind = table[:, table.var["kind"] == KIND]
    gene = of_kind.var_names[np.argmax(of_kind.X.sum(0))]
    figure, axes = plt.subplots(2, 3, figsize=(13, 8.2), layout="constrained")
    known = {"scale_bar": False, "outline": False}
    hd.pl.superresolve(sdata, gene, panels=["he", "spots"], axes=axes[0, :2], **known)
    hd.pl.superresolve(sdata, gene, panels=["map"], key_added="closed_form", axes=axes[0, 2:], **known)
    hd.pl.superresolve(sdata, gene, panels=["map", "std"], axes=axes[1, :2], **known)
    estimate = axes[1, 0].images[-1]
    truth = sdata["phantom_truth"].sel(c=gene).where(sdata["phantom_regions"] > 0)
    axes[1, 2].imshow(truth, cmap=estimate.cmap, norm=estimate.norm)
    titles = ("H&E", "counts of the spots", "closed form", "conditional diffusion", "standard deviation", "truth")
    for ax, title in zip(axes.flat, titles, strict=True):
        ax.set(title="", xlabel="", ylabel="", xticks=[], yticks=[])
        ax.set_title(title, fontsize=FONT)
        ax.axis("off")
        for drawn in [*ax.images, *ax.collections]:
            if drawn.colorbar:
                drawn.colorbar.remove()
    figure.colorbar(estimate, ax=axes, shrink=0.4, label="counts per bin, all but the standard deviation")
    return figure


if __name__ == "__main__":
    main()
