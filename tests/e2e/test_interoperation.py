"""A result behaves as any other element where scverse's tools cut, join, filter, show and export."""

from __future__ import annotations

import numpy as np
import pytest
import spatialdata as sd
import zarr

import hadmst_sc as hd


@pytest.fixture(scope="module")
def solved():
    sdata = hd.datasets.phantom(n_genes=3, size_um=600.0)
    hd.tl.superresolve(sdata, "phantom_full_image", model=None, bin_um=20.0, show_progress_bar=False)
    return sdata


def ids(labels) -> set[int]:
    return set(np.unique(np.asarray(labels.data)).tolist()) - {0}


def test_subset_keeps_the_table_with_its_labels(solved):
    part = solved.subset(["superres", "superres_bins"])
    assert part["superres_table"].n_obs == solved["superres_table"].n_obs


def test_a_bounding_box_cuts_map_labels_and_table_alike(solved):
    xy = solved["superres_table"].obsm["spatial"]
    cut = sd.bounding_box_query(
        solved,
        axes=("x", "y"),
        min_coordinate=xy.min(0),
        max_coordinate=xy.mean(0),
        target_coordinate_system="phantom",
    )
    assert 0 < cut["superres_table"].n_obs < solved["superres_table"].n_obs
    assert set(cut["superres_table"].obs["bin_id"]) == ids(cut["superres_bins"])
    assert cut["superres"].shape[1:] == cut["superres_bins"].shape


def test_sections_are_concatenated(solved):
    both = sd.concatenate({"a": solved, "b": solved}, concatenate_tables=True, obs_names_make_unique=True)
    table = both["superres_table"]
    assert table.n_obs == 2 * solved["superres_table"].n_obs
    assert set(table.obs["region"]) == {"superres_bins-a", "superres_bins-b"} <= set(both.labels)


def test_a_query_of_the_table_filters_it(solved):
    annsel = pytest.importorskip("annsel")
    kept = sd.filter_by_table_query(
        solved,
        "superres_table",
        element_names=["superres_bins"],
        obs_expr=annsel.col("measured") == True,  # noqa: E712
    )
    table = kept["superres_table"]
    assert 0 < table.n_obs < solved["superres_table"].n_obs and table.obs["measured"].all()


def test_viewers_find_what_they_ask_for(solved):
    """What napari-spatialdata asks of labels and table: that they answer to each other by integer ids, and values."""
    table, labels = solved["superres_table"], solved["superres_bins"]
    assert sd.get_element_annotators(solved, "superres_bins") == {"superres_table"}
    assert set(sd.get_element_instances(labels)) - {0} == set(table.obs["bin_id"]) == ids(labels)
    assert np.issubdtype(labels.dtype, np.integer) and np.issubdtype(table.obs["bin_id"].dtype, np.integer)
    gene = table.var_names[0]
    values = sd.get_values(gene, sdata=solved, element_name="superres_bins", table_name="superres_table")
    np.testing.assert_array_equal(values[gene].to_numpy(), np.asarray(table[:, gene].X).ravel())
    assert list(solved["superres"].coords["c"].values) == list(table.var_names)


def test_the_store_is_what_vitessce_reads(solved, tmp_path):
    """OME-NGFF with a name for every channel, labels beside it, and a table of AnnData with coordinates."""
    solved.write(tmp_path / "section.zarr")
    root = zarr.open_group(tmp_path / "section.zarr", mode="r")
    ome = root["images/superres"].attrs["ome"]
    assert [channel["label"] for channel in ome["omero"]["channels"]] == list(solved["superres_table"].var_names)
    assert [axis["name"] for axis in ome["multiscales"][0]["axes"]] == ["c", "y", "x"]
    assert root["labels/superres_bins"].attrs["ome"]["image-label"] is not None
    table = root["tables/superres_table"]
    assert table.attrs["encoding-type"] == "anndata" and table["obsm/spatial"].shape[1] == 2
    assert table.attrs["instance_key"] == "bin_id" and table.attrs["region"] == "superres_bins"
