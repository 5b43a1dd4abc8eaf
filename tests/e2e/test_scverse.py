"""The output table and image in the hands of scanpy, squidpy and spatialdata-plot."""

from __future__ import annotations

import numpy as np
import pytest

sc = pytest.importorskip("scanpy")
sq = pytest.importorskip("squidpy")


@pytest.fixture(scope="module")
def table(solved):
    table = solved.tables["superres_table"]
    # Below 4,096 observations scanpy's neighbours are exact, without the minute that compiling pynndescent takes.
    return table[table.obs["array_row"] < 34].copy()


def test_scanpy_clusters_the_bins(table):
    sc.pp.normalize_total(table, target_sum=1e4)
    sc.pp.log1p(table)
    sc.pp.pca(table, n_comps=5)
    sc.pp.neighbors(table, n_neighbors=10)
    sc.tl.leiden(table, flavor="igraph", n_iterations=2, resolution=0.5)
    assert 2 <= table.obs["leiden"].nunique() <= 50


def test_squidpy_finds_each_inner_bins_four_neighbours(table):
    sq.gr.spatial_neighbors_grid(table, n_neighs=4)
    degree = np.asarray(table.obsp["spatial_connectivities"].sum(1)).ravel()
    assert degree.max() == 4 and np.median(degree) == 4


def test_squidpy_morans_i_is_high_for_smooth_maps(table):
    if "spatial_connectivities" not in table.obsp:
        sq.gr.spatial_neighbors_grid(table, n_neighs=4)
    sq.gr.spatial_autocorr(table, mode="moran", genes=list(table.var_names[:4]))
    assert table.uns["moranI"]["I"].median() > 0.3


def test_squidpy_draws_the_bins(solved):
    import matplotlib.pyplot as plt

    table = solved.tables["superres_table"]
    small = table[table.obs["array_row"] < 20].copy()
    sq.pl.spatial_scatter(small, color=table.var_names[0], shape="square", img=False)
    assert plt.gcf().axes[0].get_title() == table.var_names[0]


def test_spatialdata_plot_draws_labels_by_gene(solved):
    import matplotlib.pyplot as plt
    import spatialdata_plot  # noqa: F401

    gene = solved.tables["superres_table"].var_names[0]
    axes = solved.pl.render_labels("superres_bins", color=gene, table_name="superres_table").pl.show(
        coordinate_systems="phantom", return_ax=True
    )
    picture = np.asarray(axes.images[0].get_array())
    assert picture.shape[:2] and picture[..., :3].std() > 0
    assert plt.gcf().axes
