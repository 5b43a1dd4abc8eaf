"""The first picture of the README and of the site: ``HADMST_DATA=path/to/sections python docs/first_picture.py``.

Super-resolves 200 genes of a coronal mouse brain (Visium with H&E, of 10x Genomics, CC BY 4.0) on 10 µm bins with all
settings at their defaults, and draws one gene with a zoom. Writes ``docs/_static/mouse_brain.jpg``. The H&E in that
folder is a reduced one, 4.3 µm per pixel, whose colours are interpolated. The bundled weights were trained on spots of
this section.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import matplotlib

matplotlib.use("agg")

import matplotlib.pyplot as plt
import spatialdata as sd
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle
from mpl_toolkits.axes_grid1.anchored_artists import AnchoredSizeBar

import hadmst_sc as hd

NAME, GENE = "visium_mouse_brain", "Hpca"
TITLES = {"he": "H&E", "spots": "measured in spots", "map": "estimated, bins of 10 µm"}
WHOLE, ZOOM = (1550.0, 6350.0, 4200.0, 1030.0), (3900.0, 4500.0, 3700.0, 3304.0)  # left, right, bottom, top in µm
SIZE, DRAWN_DPI, SAVED_DPI = (14.0, 6.45), 250, 110  # drawn at a high resolution, to which the H&E is reduced
PLAIN, LARGE = 17, 21  # pt


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", type=Path, help="keep the result in this zarr store, or draw the one that is there")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "_static" / "mouse_brain.jpg")
    options = parser.parse_args()
    if options.store and options.store.exists():
        sdata = sd.read_zarr(options.store)
    else:
        sdata = hd.datasets.load(NAME)
        hd.tl.superresolve(sdata, f"{NAME}_full_image")
        if options.store:
            sdata.write(options.store)
    options.output.parent.mkdir(exist_ok=True)
    draw(sdata).savefig(options.output, dpi=SAVED_DPI, pil_kwargs={"quality": 88})


def draw(sdata: sd.SpatialData) -> plt.Figure:
    """Upper row: a part of the section. Lower row: what is framed there."""
    figure, axes = plt.subplots(2, 3, figsize=SIZE, dpi=DRAWN_DPI, layout="constrained")
    for row, box, bar_um in zip(axes, (WHOLE, ZOOM), (1000, 100), strict=True):
        left, right, bottom, top = box
        how = {"panels": list(TITLES), "axes": row, "crop": (left, top, right, bottom)}
        hd.pl.superresolve(sdata, GENE, **how, vmax_quantile=0.998, scale_bar=False, outline=False)
        counts = row[-1].images[-1]
        counts.colorbar.remove()  # one for both rows, below
        for ax in row:
            ax.set(title="", xlabel="", ylabel="")
        scale_bar(row[0], bar_um)
    for ax, title in zip(axes[0], TITLES.values(), strict=True):
        ax.set_title(title, fontsize=LARGE)
        left, right, bottom, top = ZOOM
        ax.add_patch(Rectangle((left, top), right - left, bottom - top, fill=False, edgecolor="deepskyblue", lw=3))
    for ax in axes[1]:
        ax.spines[:].set(visible=True, color="deepskyblue", linewidth=3)
    axes[0, 0].set_ylabel(GENE, fontsize=LARGE, fontstyle="italic")
    axes[1, 0].set_ylabel("zoom", fontsize=LARGE, fontstyle="normal")
    bar = figure.colorbar(counts, ax=axes, shrink=0.6, aspect=25, pad=0.01)
    bar.set_label("counts per bin", fontsize=PLAIN)
    bar.ax.tick_params(labelsize=PLAIN)
    return figure


def scale_bar(ax: Axes, length_um: int) -> None:
    label = f"{length_um / 1000:g} mm" if length_um >= 1000 else f"{length_um} µm"
    thick = abs(ax.get_ylim()[0] - ax.get_ylim()[1]) / 60
    bar = AnchoredSizeBar(
        ax.transData,
        length_um,
        label,
        "lower left",
        size_vertical=thick,
        sep=5,
        pad=0.4,
        fontproperties={"size": PLAIN},
    )
    bar.patch.set(alpha=0.8, linewidth=0)
    ax.add_artist(bar)


if __name__ == "__main__":
    main()
