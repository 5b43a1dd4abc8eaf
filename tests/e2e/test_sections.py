"""Several sections in one call: each as if it was alone, with the same genes; all are checked before the first."""

from __future__ import annotations

import copy
import logging
from importlib import import_module

import anndata as ad
import numpy as np
import pytest
import spatialdata as sd
import squidpy as sq
from spatialdata.transformations import Identity, Sequence, Translation, get_transformation, set_transformation

import hadmst_sc as hd
from hadmst_sc.inference import prepare as prepare_module
from hadmst_sc.io.maps import MapStore

_superresolve = import_module("hadmst_sc.tl.superresolve")  # the module: the package has the function of that name

IMAGES = ["phantom_full_image-a", "phantom_full_image-b", "phantom_full_image-c"]
RESULTS = ["superres-phantom-a", "superres-phantom-b", "superres-phantom-c"]
HOW = {"bin_um": 40.0, "model": None, "align": False, "show_progress_bar": False}


def one(seed: int) -> sd.SpatialData:
    sdata = hd.datasets.phantom(seed, n_genes=6, size_um=600.0, augment=False)
    sdata["table"].var_names = [f"g{i}" for i in range(6)]
    return sdata.subset(["phantom_full_image", "phantom", "table"])


def joined(**how) -> sd.SpatialData:
    return sd.concatenate({name: one(seed) for seed, name in enumerate("abc")}, **how)


@pytest.fixture(scope="module")
def template() -> sd.SpatialData:
    return joined(concatenate_tables=True)


@pytest.fixture
def sdata(template) -> sd.SpatialData:
    """Three sections, with one table."""
    return copy.deepcopy(template)


@pytest.fixture(scope="module")
def solved(template) -> sd.SpatialData:
    """Do not change it."""
    sdata = copy.deepcopy(template)
    hd.tl.superresolve(sdata, IMAGES, genes=3, **HOW)
    return sdata


def values(sdata: sd.SpatialData, key: str) -> np.ndarray:
    return np.asarray(sdata[f"{key}_table"].X)


def stop_before(monkeypatch, n: int) -> list[int]:
    """Ctrl-C before section ``n`` is computed; holds a number for each section that is."""
    predict, seen = _superresolve.predict, []

    def limited(*given, **more):
        if len(seen) == n:
            raise KeyboardInterrupt
        seen.append(1)
        return predict(*given, **more)

    monkeypatch.setattr(_superresolve, "predict", limited)
    return seen


def test_each_section_is_what_it_would_be_alone(solved, template):
    genes = list(solved[f"{RESULTS[0]}_table"].var_names)
    for image, key in zip(IMAGES, RESULTS, strict=True):
        alone = copy.deepcopy(template)
        hd.tl.superresolve(alone, image, genes=genes, **HOW)
        np.testing.assert_array_equal(values(solved, key), values(alone, "superres"))
        assert solved[f"{key}_table"].uns["hadmst_sc"]["shapes_key"] == key.removeprefix("superres-")


def test_all_sections_have_the_same_genes_those_of_the_best_mean_rank(solved, template):
    ranked = [list(hd.io.read_observation(template, image, genes=6, bin_um=40.0).genes) for image in IMAGES]
    best = sorted(ranked[0], key=lambda gene: sum(names.index(gene) for names in ranked))
    found = [list(solved[f"{key}_table"].var_names) for key in RESULTS]
    assert found[0] == found[1] == found[2]
    total = [sum(names.index(gene) for names in ranked) for gene in best]
    assert [sum(names.index(gene) for names in ranked) for gene in found[0]] == total[:3]


def test_one_table_per_section_gives_the_same(solved):
    sdata = joined(concatenate_tables=False)
    tables = ["table-a", "table-b", "table-c"]
    hd.tl.superresolve(sdata, IMAGES, genes=3, table_key=tables, **HOW)
    for key in RESULTS:
        np.testing.assert_array_equal(values(sdata, key), values(solved, key))


def test_tables_with_other_genes_share_those_that_all_have():
    sdata = joined(concatenate_tables=False)
    sdata.tables["table-b"] = sdata["table-b"][:, ["g5", "g1", "g0"]].copy()
    sdata.tables["table-c"] = sdata["table-c"][:, ["g0", "g1", "g2"]].copy()
    how = HOW | {"table_key": ["table-a", "table-b", "table-c"]}
    hd.tl.superresolve(sdata, IMAGES, **how)
    assert {tuple(sorted(sdata[f"{key}_table"].var_names)) for key in RESULTS} == {("g0", "g1")}
    with pytest.raises(ValueError, match=r"at most 2, the genes that all sections have, but is 3. Pass `genes=2`"):
        hd.tl.superresolve(sdata, IMAGES, genes=3, key_added="other", **how)
    sdata["table-b"].var_names = ["x", "y", "z"]
    with pytest.raises(ValueError, match=r"tables have genes in common, but they have names like"):
        hd.tl.superresolve(sdata, IMAGES, key_added="other", **how)


def test_functions_find_each_result_by_its_name(solved, tmp_path):
    for key in RESULTS:
        assert hd.tl.summary(solved, key_added=key).facts["spots"].endswith("counts of table")
        assert hd.pl.superresolve(solved, solved[f"{key}_table"].var_names[0], key_added=key).size
        hd.io.export(solved, tmp_path / f"{key}.h5ad", key_added=key)
    with pytest.raises(KeyError, match="Try `key_added='superres-phantom-"):
        hd.tl.summary(solved)


def test_spots_in_one_system_are_told_apart_by_shapes_key_and_the_message_has_it(solved, sdata):
    for image, key in zip(IMAGES, RESULTS, strict=True):
        for name in (image, key.removeprefix("superres-")):
            set_transformation(sdata[name], {"global": Identity()}, set_all=True)
    with pytest.raises(ValueError, match="`shapes_key` is needed") as raised:
        hd.tl.superresolve(sdata, IMAGES, genes=3, **HOW)
    remedy = str(raised.value).split("Pass `")[1].split("`")[0]
    eval(
        f"hd.tl.superresolve(sdata, IMAGES, genes=3, {remedy}, **HOW)",
        {"hd": hd, "HOW": HOW, "IMAGES": IMAGES} | locals(),
    )
    for key in RESULTS:
        np.testing.assert_array_equal(values(sdata, key), values(solved, key))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"image_key": []}, "`image_key` needs one or several different names"),
        ({"image_key": [IMAGES[0], IMAGES[0]]}, f"Pass `image_key={IMAGES[:1]!r}`"),
        ({"image_key": [IMAGES[0], 5]}, f"Pass `image_key={IMAGES[:1]!r}`"),
        ({"image_key": [*IMAGES, "he"]}, "he: `image_key='he'` is not in"),
        ({"table_key": ["table", "table"]}, "one for each of the 3 images, but has 2. Pass `table_key='table'`"),
        ({"shapes_key": "phantom-a"}, f"{IMAGES!r} show the same spots, 'phantom-a'. Pass `image_key={IMAGES[:1]!r}`"),
        ({"layer": [None, "x", "x"]}, f"{IMAGES[1]}, {IMAGES[2]}: `layer='x'` is not in"),
        ({"layer": "x"}, "`layer='x'` is not in"),
        ({"genes": ["g0", "g9"]}, "`genes` has 1 of 2 names that are not in"),
        ({"features": [np.zeros((2, 2)), None, None]}, f"{IMAGES[0]}: `features` needs maps"),
        ({"cells_key": [None, "cells", None]}, f"{IMAGES[1]}: `cells_key='cells'`"),
        ({"key_added": "a b"}, "`key_added` needs"),
    ],
)
def test_nothing_is_written_if_one_section_is_refused(sdata, arguments, message, monkeypatch):
    monkeypatch.setattr(_superresolve, "predict", lambda *_, **__: pytest.fail("the work"))
    before = {*sdata.images, *sdata.labels, *sdata.tables}
    with pytest.raises((KeyError, ValueError, TypeError)) as raised:
        hd.tl.superresolve(sdata, **{"image_key": IMAGES} | HOW | arguments)
    assert message in str(raised.value)
    assert {*sdata.images, *sdata.labels, *sdata.tables} == before


def test_problems_of_all_sections_are_told_together(sdata):
    spots = sdata["phantom-b"]
    sdata["phantom-b"] = spots.assign(radius=spots.radius * np.linspace(1, 2, len(spots)))
    with pytest.raises(ValueError, match="cannot super-resolve these sections") as raised:
        hd.tl.superresolve(sdata, IMAGES, **HOW | {"bin_um": -1}, layer=[None, None, "x"], consistency="some")
    message = str(raised.value)
    assert f"{IMAGES[2]}: `layer='x'`" in message and f"{IMAGES[1]}: " in message
    assert message.count("`bin_um` needs") == 1 and "`consistency` needs" in message


def test_a_flipped_image_is_found_before_any_section_is_computed(monkeypatch):
    sections = {}
    for seed, name in enumerate("ab"):
        whole = hd.datasets.phantom(
            3 + seed, n_genes=16, size_um=1200.0, depth=(2.0, 40.0), augment=False, style="voronoi"
        )
        whole["table"].var_names = [f"g{i}" for i in range(16)]
        sections[name] = whole
    monkeypatch.setattr(_superresolve, "predict", lambda *_, **__: pytest.fail("the work"))
    monkeypatch.setattr(
        import_module("hadmst_sc.tl._sections"), "turned", lambda obs, *_: f"{obs.source.image_key} is flipped"
    )
    sdata = sd.concatenate(sections, concatenate_tables=True)
    with pytest.raises(ValueError, match="these sections") as raised:
        hd.tl.superresolve(sdata, IMAGES[:2], **HOW | {"align": True})
    assert f"{IMAGES[0]}: {IMAGES[0]} is flipped" in str(raised.value)
    assert f"{IMAGES[1]}: {IMAGES[1]} is flipped" in str(raised.value)


def test_registering_first_changes_no_bit_and_happens_once(template, monkeypatch):
    registered, estimate = [], prepare_module.estimate_alignment
    monkeypatch.setattr(
        prepare_module, "estimate_alignment", lambda *given, **how: (registered.append(1), estimate(*given, **how))[1]
    )
    together, alone = copy.deepcopy(template), copy.deepcopy(template)
    how = HOW | {"align": True, "genes": ["g0", "g1"]}
    hd.tl.superresolve(together, IMAGES[:2], **how)
    assert len(registered) == 2
    hd.tl.superresolve(alone, IMAGES[0], **how)
    np.testing.assert_array_equal(values(together, RESULTS[0]), values(alone, "superres"))
    ours, theirs = (
        one.uns["hadmst_sc"]["registration"] for one in (together[f"{RESULTS[0]}_table"], alone["superres_table"])
    )
    assert repr(ours) == repr(theirs)


@pytest.mark.parametrize(("overwrite", "backed"), [(False, True), (True, False)])
def test_a_stopped_run_goes_on_and_computes_no_finished_section_again(
    sdata, solved, overwrite, backed, monkeypatch, tmp_path, capsys
):
    if backed:
        sdata.write(tmp_path / "sections.zarr")
        sdata = sd.read_zarr(tmp_path / "sections.zarr")
    how = HOW | {"genes": 3, "overwrite": overwrite}
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        stop_before(patch, 1)
        hd.tl.superresolve(sdata, IMAGES, **how)
    assert f"finished and kept are {RESULTS[0]}. The same call goes on" in capsys.readouterr().err
    assert RESULTS[0] in sdata and RESULTS[1] not in sdata
    sdata[f"{RESULTS[0]}_table"].obs["mine"] = 1
    if backed:
        sdata = sd.read_zarr(tmp_path / "sections.zarr")
    seen = stop_before(monkeypatch, 9)
    hd.tl.superresolve(sdata, IMAGES, **how)
    assert len(seen) == 2 and f"kept, as the same call has made them: {RESULTS[0]}" in capsys.readouterr().err
    for key in RESULTS:
        np.testing.assert_array_equal(values(sdata, key), values(solved, key))
    hd.tl.superresolve(sdata, IMAGES, **how)
    assert len(seen) == 2


def test_a_section_stopped_within_its_genes_resumes_there(sdata, monkeypatch, tmp_path, capsys):
    sdata.write(tmp_path / "sections.zarr")
    sdata = sd.read_zarr(tmp_path / "sections.zarr")
    write, calls = MapStore.write, []

    def limited(self, *given) -> None:
        calls.append(self.path.name)
        if len(calls) == 5:
            raise KeyboardInterrupt
        write(self, *given)

    how = HOW | {"genes": 3, "batch_size": 1}
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(MapStore, "write", limited)
        hd.tl.superresolve(sdata, IMAGES[:2], **how)
    err = capsys.readouterr().err
    assert f"finished and kept are {RESULTS[0]}." in err and f".{RESULTS[1]}.maps. The same call resumes" in err
    calls.clear()
    monkeypatch.setattr(MapStore, "write", lambda self, *given: (calls.append(1), write(self, *given))[1])
    hd.tl.superresolve(sdata, IMAGES[:2], **how)
    assert len(calls) == 2  # of three genes one was finished


def test_a_result_of_another_call_is_refused_or_replaced(sdata, solved, monkeypatch):
    hd.tl.superresolve(sdata, IMAGES, genes=3, **HOW)
    seen = stop_before(monkeypatch, 9)
    with pytest.raises(ValueError, match=f"{IMAGES[0]}: .*Pass another name, such as `key_added='superres_2'`"):
        hd.tl.superresolve(sdata, IMAGES, genes=2, **HOW)
    assert not seen and sdata[RESULTS[0]].shape[0] == 3
    hd.tl.superresolve(sdata, IMAGES, genes=2, key_added="superres_2", **HOW)
    assert sdata["superres_2-phantom-a"].shape[0] == 2
    seen.clear()
    hd.tl.superresolve(sdata, IMAGES, genes=2, overwrite=True, **HOW)
    assert len(seen) == 3 and sdata[RESULTS[0]].shape[0] == 2


def test_overwrite_restores_a_table_that_was_changed_and_without_it_the_table_stays(sdata, solved, monkeypatch):
    hd.tl.superresolve(sdata, IMAGES, genes=3, **HOW)
    sdata[f"{RESULTS[1]}_table"].X = np.log1p(sdata[f"{RESULTS[1]}_table"].X)
    del sdata.images[RESULTS[2]]
    seen = stop_before(monkeypatch, 9)
    hd.tl.superresolve(sdata, IMAGES, genes=3, **HOW)
    assert not seen
    np.testing.assert_array_equal(values(sdata, RESULTS[1]), np.log1p(values(solved, RESULTS[1])))
    hd.tl.superresolve(sdata, IMAGES, genes=3, overwrite=True, **HOW)
    assert len(seen) == 2 and RESULTS[2] in sdata
    np.testing.assert_array_equal(values(sdata, RESULTS[1]), values(solved, RESULTS[1]))


def test_with_other_counts_the_same_call_is_another_one(sdata):
    hd.tl.superresolve(sdata, IMAGES[:1], genes=3, **HOW)
    sdata["table"].X = 2 * sdata["table"].X
    with pytest.raises(ValueError, match="needs names that are free"):
        hd.tl.superresolve(sdata, IMAGES[:1], genes=3, **HOW)


def test_a_copy_has_all_results_and_changes_nothing(sdata, solved):
    before = {*sdata.images, *sdata.labels, *sdata.tables}
    new = hd.tl.superresolve(sdata, IMAGES, genes=3, copy=True, **HOW)
    assert {*sdata.images, *sdata.labels, *sdata.tables} == before and "hadmst_sc" not in sdata.attrs
    assert set(new.attrs["hadmst_sc"]) == set(RESULTS) == {name for name in new.images if not name.endswith("_std")}
    for key in RESULTS:
        np.testing.assert_array_equal(values(new, key), values(solved, key))


def test_one_bar_covers_all_sections_and_never_goes_back(sdata, monkeypatch):
    module = import_module("hadmst_sc.tl._sections")
    shown, reckon = [], module.SectionProgress._reckon

    def recorded(self, share: float) -> None:
        reckon(self, share)
        bar = self._all
        shown.append((bar._text, bar._position(bar._event[0]) / sum(bar._plan.values())))

    monkeypatch.setattr(module.SectionProgress, "_reckon", recorded)
    hd.tl.superresolve(sdata, IMAGES, genes=3, **HOW)
    texts, shares = zip(*shown, strict=True)
    assert [key for key in RESULTS if any(text.startswith(f"{key}: ") for text in texts)] == RESULTS
    assert list(shares) == sorted(shares)
    starts = [next(share for text, share in shown if text.startswith(key)) for key in RESULTS]
    assert starts[0] < starts[1] < starts[2] < shares[-1] and 0.9 < shares[-1] <= 1


def test_messages_say_which_section_they_are_about(sdata, caplog):
    spots = sdata["table"].obs["region"] != "phantom-b"
    few = sdata["table"].obs["region"] == "phantom-b"
    few &= few.cumsum() <= 20
    sdata["table"] = sdata["table"][spots | few].copy()
    with caplog.at_level(logging.WARNING, "hadmst_sc"):
        hd.tl.superresolve(sdata, IMAGES, genes=2, **HOW)
    assert any(message.startswith(f"{IMAGES[1]}: the section has 20 spots") for message in caplog.messages)
    assert not any(message.startswith("the section has") for message in caplog.messages)


def test_all_bins_in_one_table_work_with_scanpy_and_squidpy(solved, tmp_path):
    sections = [key.removeprefix("superres-") for key in RESULTS]
    bins = ad.concat(
        {name: solved[f"superres-{name}_table"] for name in sections}, label="section", merge="same", uns_merge="unique"
    )
    del bins.uns["spatialdata_attrs"]
    assert bins.obs_names.is_unique and list(bins.obs["section"].cat.categories) == sections == list(
        bins.uns["spatial"]
    )
    np.testing.assert_array_equal(bins[bins.obs["section"] == sections[1]].X, values(solved, RESULTS[1]))
    sq.gr.spatial_neighbors_grid(bins, n_neighs=4, library_key="section")
    row, column = bins.obsp["spatial_connectivities"].nonzero()
    section = bins.obs["section"].to_numpy()
    assert len(row) and (section[row] == section[column]).all()
    sq.pl.spatial_scatter(bins, color=bins.var_names[0], shape="square", library_key="section")
    bins.write_h5ad(tmp_path / "bins.h5ad")
    sdata = copy.copy(solved)
    sdata["bins"] = bins
    assert hd.tl.summary(sdata, key_added=RESULTS[0]).facts["genes"] == "3"
    del sdata.tables["bins"]


def test_a_check_of_all_sections_has_a_column_for_each_and_names_them(sdata):
    sdata["table"].layers["odd"] = sdata["table"].X * 0.5
    report = hd.pp.validate(sdata, IMAGES, bin_um=40.0, align=False, genes=2, show_progress_bar=False)
    assert report.ok and list(report.sections) == IMAGES
    assert report.sections[IMAGES[0]].facts["genes_of_the_run"] == 2
    head, *rows = str(report).splitlines()[1:]
    assert head.split() == IMAGES and any(row.split()[0] == "spots" and len(row.split()) == 4 for row in rows)
    assert all(image in report._repr_html_() for image in IMAGES)
    report = hd.pp.validate(sdata, IMAGES, layer=[None, "x", None], bin_um=-1, align=False, show_progress_bar=False)
    messages = [message for _, message in report.findings]
    assert not report.ok and sum("`bin_um` needs" in message for message in messages) == 1
    assert any(message.startswith(f"{IMAGES[1]}: `layer='x'`") for message in messages)
    assert not hd.pp.validate(None, IMAGES).ok and not hd.pp.validate(sdata, [], align=False).ok


def test_a_section_that_was_moved_is_written_at_its_new_place(sdata):
    hd.tl.superresolve(sdata, IMAGES, genes=3, **HOW)
    for name in (IMAGES[1], "phantom-b"):
        there = {
            system: Sequence([one, Translation([1000.0, 0.0], ("x", "y"))])
            for system, one in get_transformation(sdata[name], get_all=True).items()
        }
        set_transformation(sdata[name], there, set_all=True)
    with pytest.raises(ValueError, match="overwrite"):
        hd.tl.superresolve(sdata, IMAGES, genes=3, **HOW)
    hd.tl.superresolve(sdata, IMAGES, genes=3, overwrite=True, **HOW)
    left = sd.get_extent(sdata[RESULTS[1]], coordinate_system="phantom-b")["x"][0]
    assert left == pytest.approx(1000.0) and sdata[f"{RESULTS[1]}_table"].obsm["spatial"][:, 0].min() > 1000.0


@pytest.mark.parametrize("kind", [list, "tensor"])
def test_finished_sections_are_recognised_with_features_of_any_kind(sdata, monkeypatch, caplog, kind):
    torch = pytest.importorskip("torch")
    maps = np.random.default_rng(0).normal(size=(2, 8, 8)).astype(np.float32)
    given = lambda: torch.from_numpy(maps.copy()) if kind == "tensor" else maps.tolist()  # noqa: E731
    how = HOW | {"genes": 2}
    hd.tl.superresolve(sdata, IMAGES, features=[given(), given(), given()], **how)
    with caplog.at_level(logging.INFO):
        hd.tl.superresolve(sdata, IMAGES, features=[given(), given(), given()], **how)
    assert f"kept, as the same call has made them: {', '.join(RESULTS)}" in caplog.text


def test_finished_sections_are_kept_where_registration_moved_the_spots(caplog):
    sdata = hd.datasets.phantom(3, n_genes=16, misregistration_um=(30.0, -20.0))
    how = {"bin_um": 20.0, "model": None, "align": "spots", "overwrite": True, "show_progress_bar": False}
    with caplog.at_level(logging.INFO):
        hd.tl.superresolve(sdata, ["phantom_full_image"], **how)
        assert "kept" not in caplog.text
    (made,) = [name for name in sdata.tables if name.startswith("superres")]
    assert sdata[made].uns["hadmst_sc"]["registration"]["applied"]
    with caplog.at_level(logging.INFO):
        hd.tl.superresolve(sdata, ["phantom_full_image"], **how)
    assert "kept, as the same call has made them" in caplog.text


def test_genes_of_a_generator_serve_all_sections(sdata):
    hd.tl.superresolve(sdata, IMAGES[:2], genes=(name for name in ("g1", "g2")), **HOW)
    assert [sdata[f"{key}_table"].n_vars for key in RESULTS[:2]] == [2, 2]
