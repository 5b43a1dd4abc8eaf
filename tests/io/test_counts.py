"""Which numbers are counts, where they are and which genes are meant; each remedy is run and compared with a truth."""

from __future__ import annotations

import logging
import re
import runpy
from pathlib import Path

import anndata
import dask.array as da
import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from scipy import sparse

from hadmst_sc.io import read_observation
from hadmst_sc.io.values import transformed
from hadmst_sc.section.errors import ContractError

HELPERS = runpy.run_path(str(Path(__file__).with_name("conftest.py")))
visium_section, fingerprint = HELPERS["visium_section"], HELPERS["fingerprint"]
N_GENES = 30


def section(change=None, n_genes=N_GENES):
    """A section whose table went through ``change``, and the counts it had before."""
    sdata = visium_section(n_genes=n_genes)
    table = sdata["table"].copy()
    counts = table.X.toarray()
    changed = change(table) if change else None
    table = table if changed is None else changed
    del sdata["table"]
    sdata["table"] = table
    return sdata, counts


def read(sdata, **arguments):
    return read_observation(sdata, "S1_full_image", bin_um=40.0, **arguments)


BEFORE_CODE = (
    "Pass",
    "Call",
    "Restore them:",
    "Remove these spots:",
    "keep the first of each:",
    "if it is the first:",
)


def remedy(message: str) -> str:
    """The code after "Pass", "Call" or the like."""
    return re.search(f"(?:{'|'.join(BEFORE_CODE)}) `(.*?)`", message)[1]


def mend(sdata, kind, **arguments):
    """Read, follow what the errors say until none is left, and give the observation."""
    for _ in range(3):
        before = fingerprint(sdata)
        with pytest.raises(kind) as raised:
            read(sdata, **arguments)
        assert fingerprint(sdata) == before
        message, names = (
            str(raised.value),
            {"sdata": sdata, "numpy": np, "anndata": anndata, "genes": arguments.get("genes")},
        )
        code = remedy(message)
        if re.match(r"(genes|layer)=", code):
            arguments |= eval(f"dict({code})", names)
        else:
            exec(code, names)
            if then := re.search(r"then pass `(layer=.*?)`", message):
                arguments |= eval(f"dict({then[1]})")
        try:
            return read(sdata, **arguments), message
        except (ValueError, TypeError, KeyError):
            continue
    raise AssertionError(message)


def warned(caplog, sdata, **arguments):
    with caplog.at_level(logging.WARNING, logger="hadmst_sc"):
        obs = read(sdata, **arguments)
    return obs, caplog.text


# --- features that are no genes ---


def with_antibodies(table):
    """The last five features are antibodies, the most abundant of all."""
    table.X = table.X.toarray()
    table.X[:, -5:] += np.arange(len(table))[:, None] % 2 * 500
    table.var["feature_types"] = ["Gene Expression"] * (N_GENES - 5) + ["Antibody Capture"] * 5


@pytest.mark.parametrize("genes", [None, 10])
def test_features_that_are_no_genes_are_not_chosen_and_this_is_said(genes, caplog):
    sdata, _ = section(with_antibodies)
    obs, message = warned(caplog, sdata, genes=genes)
    assert len(obs.genes) == (genes or N_GENES - 5)
    assert not set(obs.genes) & set(sdata["table"].var_names[-5:])
    assert "5 of 30 features are not genes (5 Antibody Capture)" in message


def test_features_that_are_no_genes_do_not_change_the_ranking():
    """The depth of a spot is that of its genes."""
    sdata, _ = section(with_antibodies)
    alone, _ = section(lambda table: table[:, :-5].copy())
    assert read(sdata, genes=8).genes == read(alone, genes=8).genes


def test_more_genes_than_there_are_beside_other_features_is_an_error_whose_remedy_runs():
    obs, message = mend(section(with_antibodies)[0], ValueError, genes=N_GENES)
    assert "needs 1 to 25" in message and len(obs.genes) == N_GENES - 5


def test_a_feature_that_is_named_is_taken_with_a_warning(caplog):
    sdata, _ = section(with_antibodies)
    obs, message = warned(caplog, sdata, genes=["gene-29", "gene-0"])
    assert (
        obs.genes == ("gene-29", "gene-0")
        and "1 of the 2 features named in `genes` are not genes (['gene-29'])" in message
    )
    np.testing.assert_array_equal(obs.counts, sdata["table"].X[:, [29, 0]])


def test_highly_variable_features_that_are_no_genes_are_left_out(caplog):
    def change(table):
        with_antibodies(table)
        table.var["highly_variable"] = np.arange(N_GENES) >= N_GENES - 8

    obs, _ = warned(caplog, section(change)[0])
    assert set(obs.genes) == {"gene-22", "gene-23", "gene-24"}


@pytest.mark.parametrize("kinds", [["Gene Expression"] * 29 + [None], ["gene expression "] * 30])
def test_features_of_unknown_type_are_genes(kinds, caplog):
    obs, message = warned(caplog, section(lambda table: table.var.__setitem__("feature_types", kinds))[0])
    assert len(obs.genes) == N_GENES and not message


def test_a_table_without_any_gene_is_read_with_a_warning(caplog):
    obs, message = warned(caplog, section(lambda table: table.var.__setitem__("feature_types", "Antibody Capture"))[0])
    assert len(obs.genes) == N_GENES and "no feature is a gene" in message


# --- where the counts are ---


def log_normalised(table):
    values = table.X.toarray()
    table.X = sparse.csr_matrix(np.log1p(values / values.sum(1, keepdims=True) * 1e4).astype(np.float32))


def kept_in_raw(table):
    table.raw = table.copy()
    log_normalised(table)


def raw_of_more_genes(table):
    kept_in_raw(table)
    return table[:, :6].copy()


@pytest.mark.parametrize("change", [kept_in_raw, raw_of_more_genes])
def test_counts_in_raw_are_named_and_read(change):
    sdata, counts = section(change)
    obs, message = mend(sdata, ContractError)
    assert "`layer='raw'`: `.raw` holds counts" in message and obs.source.layer == "raw"
    assert len(obs.genes) == N_GENES  # also those that X lacks
    np.testing.assert_array_equal(obs.counts, counts[:, [int(gene[5:]) for gene in obs.genes]])


def test_flags_of_the_table_choose_from_raw():
    def change(table):
        kept_in_raw(table)
        table.var["highly_variable"] = np.arange(N_GENES) < 4

    assert set(read(section(change)[0], layer="raw").genes) == {"gene-0", "gene-1", "gene-2", "gene-3"}


def test_a_layer_called_raw_comes_before_raw():
    def change(table):
        kept_in_raw(table)
        table.layers["raw"] = sparse.csr_matrix(np.ones(table.shape, np.float32))

    assert (read(section(change)[0], layer="raw").counts == 1).all()


def test_raw_that_holds_no_counts_is_not_offered():
    def change(table):
        log_normalised(table)
        table.raw = table.copy()
        table.layers["scaled"] = table.X.toarray() - 3.5

    with pytest.raises(ContractError) as raised:
        read(section(change)[0])
    assert "layer='" not in str(raised.value) and "cannot be restored" in str(raised.value)


def test_a_layer_that_is_not_there_is_replaced_by_one_that_holds_counts():
    def change(table):
        table.layers["molecules"] = table.X.copy()
        table.layers["data"] = table.X.toarray() * 0.5 - 3
        table.X = table.layers["data"]

    obs, message = mend(section(change)[0], KeyError, layer="counts")
    assert "Available: ['molecules', 'data']" in message and obs.source.layer == "molecules"


def test_repeated_names_in_raw_can_be_mended():
    def change(table):
        table.var_names = ["twice", "twice", *table.var_names[2:]]
        kept_in_raw(table)
        table.var_names_make_unique()

    obs, _ = mend(section(change)[0], ContractError, layer="raw")
    assert "twice-1" in obs.genes


@pytest.mark.parametrize("asked", [[2, 3], [0]], ids=["others", "the repeated one"])
def test_repeated_names_can_be_mended_whichever_genes_are_asked_for(asked):
    """Naming any gene ended in an error of pandas."""

    def change(table):
        table.var_names = ["twice", "twice", *table.var_names[2:]]

    sdata, _ = section(change)
    names = [sdata.tables["table"].var_names[i] for i in asked]
    obs, message = mend(sdata, ContractError, genes=names)
    assert "gene names need to be unique, but ['twice'] are not" in message and list(obs.genes) == names


# --- counts of which a part was removed ---


def corrections(counts):
    rng = np.random.default_rng(0)
    share = rng.dirichlet(np.ones(counts.shape[1]))
    yield "one share of all", counts * 0.93
    yield "a share per spot", counts * rng.uniform(0.6, 1, (len(counts), 1))
    yield "ambient counts subtracted", np.clip(counts - 0.1 * counts.sum(1, keepdims=True) * share, 0, None)
    yield "a share per value", counts * rng.uniform(0.7, 1, counts.shape)


def rates(n_genes, depth, seed=0):
    """Counts of spots that differ in depth and place."""
    rng = np.random.default_rng(seed)
    pattern = 1 + 0.8 * np.sin(np.arange(225)[:, None] / 40 + rng.uniform(0, 6, n_genes))
    rate = rng.gamma(0.5, 2.0, n_genes) * pattern * rng.gamma(4, 0.25, (225, 1))
    return rng.poisson(rate / rate.sum(1).mean() * depth).astype(np.float64)


PANELS = {"whole transcriptome": (3000, 6000), "shallow": (3000, 800), "panel": (50, 400), "four": (4, 80)}


@pytest.mark.parametrize("panel", PANELS)
def test_corrected_counts_look_like_counts(panel):
    for name, values in corrections(rates(*PANELS[panel])):
        assert transformed(sparse.csr_matrix(values.astype(np.float32))) is None, name


def normalisations(counts):
    totals = counts.sum(1, keepdims=True)
    equal = counts / totals * np.median(totals)
    yield "log1p", np.log1p(counts)
    yield "square root", np.sqrt(counts)
    yield "normalised to the median", equal
    yield "normalised to 10,000", counts / totals * 1e4
    yield "counts per million", counts / totals * 1e6
    yield "shares", counts / totals
    yield "log-normalised", np.log1p(equal)
    yield "log-normalised to 10,000", np.log1p(counts / totals * 1e4)
    yield "log2 of counts per million", np.log2(1 + counts / totals * 1e6)
    yield "log10", np.log10(1 + equal)
    yield "by size factors", np.log2(1 + counts / (totals / totals.mean()) ** 0.9)
    yield "scaled to one", counts / np.maximum(counts.max(0), 1)


@pytest.mark.parametrize("panel", PANELS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_transformed_counts_do_not(panel, dtype):
    counts = rates(*PANELS[panel]) + (1 if panel == "four" else 0)
    for name, values in normalisations(counts):
        assert transformed(sparse.csr_matrix(values.astype(dtype))) is not None, name


def test_a_part_of_the_genes_still_tells_that_all_were_normalised():
    for name, values in normalisations(rates(3000, 6000)):
        assert transformed(sparse.csr_matrix(values[:, ::7].astype(np.float32))) is not None, name


def test_corrected_counts_are_read_with_a_warning(caplog):
    sdata, counts = section(lambda table: setattr(table, "X", table.X * 0.93))
    obs, message = warned(caplog, sdata, genes=["gene-2"])
    np.testing.assert_allclose(obs.counts[:, 0], counts[:, 2] * 0.93, rtol=1e-6)
    assert "100 % of the non-zero values are not whole" in message and "counting noise" in message


def there_and_back(counts):
    """Counts after a logarithm in float32 and back."""
    return np.expm1(np.log1p(counts.astype(np.float32)))


@pytest.mark.parametrize("largest", [30, 75, 40_000])
@pytest.mark.parametrize("store", [sparse.csr_matrix, np.asarray])
def test_whole_counts_with_the_noise_of_float32_are_whole_counts(largest, store, caplog):
    sdata, counts = section(lambda table: setattr(table, "X", table.X.toarray()))
    counts[4, 1] = largest
    noisy = there_and_back(counts)
    assert (noisy != counts).any()
    sdata["table"].X = store(noisy)
    obs, message = warned(caplog, sdata, genes=["gene-1", "gene-0"])
    np.testing.assert_array_equal(obs.counts, counts[:, [1, 0]])
    assert "whole" not in message


def test_one_fraction_among_whole_counts_makes_them_no_square_roots(caplog):
    sdata, counts = section()
    counts[4, 1] = 75.5
    sdata["table"].X = sparse.csr_matrix(counts)
    obs, message = warned(caplog, sdata, genes=["gene-1", "gene-0"])
    np.testing.assert_array_equal(obs.counts, counts[:, [1, 0]])
    assert "0 % of the non-zero values are not whole" in message


def test_values_in_parts_are_added_before_they_are_judged(caplog):
    def in_parts(table):
        x = table.X.tocsr()
        first, rest = np.full(x.nnz, 0.5, np.float32), x.data - 0.5
        data, columns = np.ravel(np.column_stack([first, rest])), np.repeat(x.indices, 2)
        table.X = sparse.csr_matrix((data, columns, 2 * x.indptr), x.shape)
        assert not table.X.has_canonical_format

    sdata, counts = section(in_parts)
    obs, message = warned(caplog, sdata, genes=["gene-4", "gene-0"])
    np.testing.assert_array_equal(obs.counts, counts[:, [4, 0]])
    assert "whole" not in message


@pytest.mark.parametrize("store", [np.asarray, sparse.csr_matrix])
def test_counts_of_a_shuffled_table_on_disk_belong_to_their_spots(store, tmp_path):
    sdata, counts = section()
    names = sdata["table"].obs_names
    shuffled = sdata["table"][np.random.default_rng(0).permutation(225)].copy()
    shuffled.X = store(shuffled.X.toarray())
    shuffled.write_h5ad(tmp_path / "table.h5ad")
    sdata.tables.data["table"] = anndata.read_h5ad(tmp_path / "table.h5ad", backed="r")
    for genes in (["gene-4", "gene-0"], [f"gene-{i}" for i in range(N_GENES)][::-1]):
        obs = read(sdata, genes=genes)
        expected = counts[names.get_indexer(obs.spots)][:, [int(gene[5:]) for gene in genes]]
        np.testing.assert_array_equal(obs.counts, expected)


FLAGS = {
    "words": ["True", "False"],
    "capitals": ["TRUE", "FALSE"],
    "letters": ["t", "f"],
    "numbers": [1, 0],
    "numbers as text": ["1.0", "0.0"],
    "bytes": [b"True", b"False"],
    "yes and missing": ["yes", None],
}


@pytest.mark.parametrize("name", FLAGS)
def test_highly_variable_genes_are_chosen_whatever_type_the_flag_has(name):
    yes, no = FLAGS[name]
    sdata, _ = section()
    sdata["table"].var["highly_variable"] = pd.Series([yes, no, no] * 10, sdata["table"].var_names)
    assert set(read(sdata).genes) == {f"gene-{i}" for i in range(0, N_GENES, 3)}


def test_a_flag_that_says_neither_true_nor_false_is_reported(caplog):
    sdata, _ = section()
    sdata["table"].var["highly_variable"] = ["best", "False", "True"] * 10
    obs, message = warned(caplog, sdata)
    assert len(obs.genes) == 10 and "var['highly_variable'] has the values ['best']" in message


# --- columns that are there twice ---


def repeat(sdata, kind, name, order=1):
    """Add a column again, perhaps in reverse order; in place, as spatialdata checks what is assigned to it."""
    frame = getattr(sdata["table"], kind)
    again = pd.DataFrame({name: frame[name].astype(object).to_numpy()[::order]}, frame.index)
    setattr(sdata["table"], kind, pd.concat([frame, again], axis=1))


@pytest.mark.parametrize("name", ["in_tissue", "region", "spot_id"])
@pytest.mark.parametrize("order", [1, -1])
def test_a_column_of_spots_that_is_there_twice_is_named_and_the_first_can_be_kept(name, order):
    sdata, counts = section()
    repeat(sdata, "obs", name, order)
    obs, message = mend(sdata, ContractError, genes=["gene-4"])
    assert f"`obs` needs each column once, but ['{name}']" in message
    assert ("They differ" in message) == (order == -1 and name == "spot_id")  # the others have one value
    np.testing.assert_array_equal(obs.counts[:, 0], counts[:, 4])


@pytest.mark.parametrize("arguments", [{}, {"layer": "raw"}])
def test_a_column_of_genes_that_is_there_twice_is_named_and_the_first_can_be_kept(arguments):
    sdata, counts = section()
    table = sdata["table"]
    table.var["feature_types"], table.var["highly_variable"] = "Gene Expression", [True, False, False] * 10
    for name in ("feature_types", "highly_variable"):
        repeat(sdata, "var", name)
    table.raw = table.copy()
    obs, message = mend(sdata, ContractError, **arguments)
    assert "`var` needs each column once, but" in message
    assert set(obs.genes) == {f"gene-{i}" for i in range(0, N_GENES, 3)}
    np.testing.assert_array_equal(obs.counts, counts[:, [int(gene[5:]) for gene in obs.genes]])


def test_columns_that_are_not_read_may_be_there_twice():
    sdata, counts = section()
    sdata["table"].obs["batch"], sdata["table"].var["symbol"] = "a", [f"S{i}" for i in range(N_GENES)]
    repeat(sdata, "obs", "batch")
    repeat(sdata, "var", "symbol")
    np.testing.assert_array_equal(read(sdata, genes=["gene-4"]).counts[:, 0], counts[:, 4])
    with pytest.raises(KeyError, match="S4"):
        read(sdata, genes=["S4"])


UNDONE = {
    "log1p": (np.log1p, "log(1 + x) of counts"),
    "log2": (lambda x: np.log2(1 + x), "log2(1 + x) of counts"),
    "square root": (np.sqrt, "square root of counts"),
    "scaled": (lambda x: x / 1000, "whole multiples of one number"),
}


@pytest.mark.parametrize("name", UNDONE)
@pytest.mark.parametrize("store", [sparse.csr_matrix, sparse.csr_array, np.asarray])
def test_what_can_be_undone_is_undone_by_the_remedy(name, store):
    change, description = UNDONE[name]
    sdata, counts = section(lambda table: setattr(table, "X", store(change(table.X.toarray()).astype(np.float32))))
    obs, message = mend(sdata, ContractError, genes=["gene-3", "gene-1"])
    assert description in message and obs.source.layer == "counts"
    np.testing.assert_array_equal(obs.counts, counts[:, [3, 1]])


@pytest.mark.parametrize("change", [log_normalised, lambda table: setattr(table, "X", table.X.toarray() - 1.5)])
def test_what_cannot_be_undone_names_no_layer(change):
    with pytest.raises(ContractError) as raised:
        read(section(change)[0])
    assert "layer='" not in str(raised.value)


# --- types and sizes of numbers ---

TYPES = {
    "float16": lambda x: x.astype(np.float16),
    "longdouble": lambda x: x.astype(np.longdouble),
    "big-endian": lambda x: x.astype(">f4"),
    "big-endian integers": lambda x: x.astype(">i8"),
    "int64": lambda x: x.astype(np.int64),
    "uint16": lambda x: x.astype(np.uint16),
    "objects": lambda x: x.astype(int).astype(object),
    "lazy float16": lambda x: da.from_array(x.astype(np.float16), chunks=(50, 10)),
}


@pytest.mark.parametrize("name", TYPES)
def test_every_type_of_number_gives_the_same_counts(name):
    sdata, counts = section(lambda table: setattr(table, "X", TYPES[name](table.X.toarray())))
    np.testing.assert_array_equal(read(sdata, genes=["gene-4", "gene-0"]).counts, counts[:, [4, 0]])


@pytest.mark.parametrize("store", [np.asarray, sparse.csr_matrix])
def test_truth_values_are_zeros_and_ones(store):
    sdata, counts = section(lambda table: setattr(table, "X", store(table.X.toarray() > 3)))
    np.testing.assert_array_equal(read(sdata, genes=["gene-4"]).counts[:, 0], counts[:, 4] > 3)


@pytest.mark.parametrize("x", [np.full((225, N_GENES), 2**62), np.full((225, N_GENES), -3, np.int8)])
def test_integers_that_are_no_counts_are_named(x):
    with pytest.raises(ContractError, match="tables/table/X: needs counts"):
        read(section(lambda table: setattr(table, "X", x))[0])


def test_all_values_missing_are_named():
    with pytest.raises(ContractError, match="has nan of gene"):
        read(section(lambda table: setattr(table, "X", table.X.toarray() * np.nan))[0])


@pytest.mark.parametrize("value", [1e18, 1e300, -1, np.nan, np.inf])
def test_a_value_that_is_no_count_is_named_and_its_spot_can_be_left_out(value):
    def change(table):
        table.X = table.X.toarray().astype(np.float64)
        table.X[7, 2] = value

    sdata, counts = section(change)
    obs, message = mend(sdata, ContractError)
    assert "spot 'spot-7'" in message and "gene 'gene-2'" in message
    assert "spot-7" not in obs.spots and len(obs.spots) == len(counts) - 1 and np.isfinite(obs.counts).all()


def test_objects_that_are_no_numbers_are_named():
    def change(table):
        table.layers["counts"] = table.X.copy()
        table.X = np.full(table.shape, "many", object)

    obs, message = mend(section(change)[0], ContractError)
    assert "tables/table: needs a matrix of counts, but its objects are not numbers" in message
    assert obs.source.layer == "counts"


# --- names ---


def symbols_in_a_column(table):
    table.var["gene_symbols"] = [f"SYM{i}" for i in range(N_GENES)]
    table.var_names = [f"ENSG{i:011d}.{i}" for i in range(N_GENES)]


@pytest.mark.parametrize("n", [2, 20])
@pytest.mark.parametrize("raw", [False, True])
def test_symbols_in_a_column_are_found_there(n, raw):
    def change(table):
        symbols_in_a_column(table)
        if raw:
            table.raw = table.copy()

    asked = [f"SYM{i}" for i in range(n, 0, -1)]
    sdata, counts = section(change)
    obs, message = mend(sdata, KeyError, genes=asked, layer="raw" if raw else None)
    assert "`var['gene_symbols']` has them" in message
    columns = [int(name.partition(".")[2]) for name in obs.genes]
    assert sorted(columns) == list(range(1, n + 1)) and (n > 2 or columns == [2, 1])
    np.testing.assert_array_equal(obs.counts, counts[:, columns])


@pytest.mark.parametrize(
    ("asked", "meant"),
    [
        (["epcam", "Mki67"], ["EPCAM", "Mki67"]),
        (["Epcam", "mki67"], ["EPCAM", "Mki67"]),
        (["COL1A1"], ["GRCh38_COL1A1"]),
        (["ENSG00000000001"], ["ENSG00000000001.7"]),
        (["ENSG00000000002.9"], ["ENSG00000000002"]),
        ([" EPCAM"], ["EPCAM"]),
    ],
)
def test_a_slip_in_a_name_is_mended_by_the_remedy(asked, meant):
    names = ["EPCAM", "Mki67", "GRCh38_COL1A1", "ENSG00000000001.7", "ENSG00000000002"]
    sdata, _ = section(lambda table: setattr(table, "var_names", [*names, *table.var_names[5:]]))
    assert mend(sdata, KeyError, genes=asked)[0].genes == tuple(meant)


def test_lazy_counts_of_a_shuffled_table_belong_to_their_spots():
    def lazily(table):
        table = table[::-1].copy()
        table.X = da.from_array(table.X.toarray(), chunks=(7, 3))
        return table

    (backwards, _), (lazy, _) = section(lambda table: table[::-1].copy()), section(lazily)
    first, second = read(backwards), read(lazy)
    assert first.spots == second.spots and first.genes == second.genes
    np.testing.assert_array_equal(second.counts, first.counts)


def test_a_symbol_of_two_genes_names_both():
    def with_symbols(table):
        table.var["symbol"] = ["twice", "twice", *(f"once {i}" for i in range(2, N_GENES))]

    sdata, _ = section(with_symbols)
    assert set(mend(sdata, KeyError, genes=["twice"])[0].genes) == set(sdata["table"].var_names[:2])


def test_many_names_in_the_wrong_case_are_mended_at_once():
    sdata, _ = section(lambda table: setattr(table, "var_names", [f"GENE{i}" for i in range(N_GENES)]))
    obs, _ = mend(sdata, KeyError, genes=[f"Gene{i}" for i in range(20)])
    assert obs.genes == tuple(f"GENE{i}" for i in range(20))


def test_repeated_names_that_are_no_text_can_be_mended():
    sdata, counts = section()
    sdata["table"].var.index = pd.Index([None] * N_GENES, dtype=object)
    np.testing.assert_array_equal(np.sort(mend(sdata, ContractError)[0].counts), np.sort(counts))


@pytest.mark.parametrize("name", [None, np.nan])
def test_a_gene_without_a_name_is_an_error_only_where_it_is_chosen(name):
    sdata, counts = section()
    sdata["table"].var.index = pd.Index([*sdata["table"].var_names[:-1], name], dtype=object)
    assert read(sdata, genes=["gene-0"]).genes == ("gene-0",)
    with pytest.raises(ContractError, match="needs genes with names") as raised:
        read(sdata)
    exec(remedy(str(raised.value)), {"sdata": sdata})
    obs = read(sdata)
    np.testing.assert_array_equal(obs.counts[:, obs.genes.index("unnamed_29")], counts[:, -1])


@pytest.mark.parametrize(
    "genes",
    [
        np.array(3),
        np.int64(3),
        pd.Index(["gene-5", "gene-2", "gene-9"]),
        pd.Series(["gene-5", "gene-2", "gene-9"], index=[4, 5, 6]),
        np.array(["gene-5", "gene-2", "gene-9"]),
        ("gene-5", "gene-2", "gene-9"),
        (name for name in ["gene-5", "gene-2", "gene-9"]),
        {"gene-9": 1, "gene-2": 1, "gene-5": 1}.keys(),
        {"gene-5", "gene-2", "gene-9"},
    ],
    ids=lambda genes: type(genes).__name__,
)
def test_names_keep_their_order_and_those_of_a_set_take_the_tables(genes):
    sets = isinstance(genes, (set, type({}.keys())))
    found = read(section()[0], genes=genes).genes
    if isinstance(genes, np.integer) or (isinstance(genes, np.ndarray) and not genes.ndim):
        assert found == read(section()[0], genes=3).genes
    else:
        assert found == (("gene-2", "gene-5", "gene-9") if sets else ("gene-5", "gene-2", "gene-9"))


@pytest.mark.parametrize(
    ("genes", "n"),
    [
        ("gene-1", 1),
        (b"gene-1", N_GENES),
        ({"tumour": ["gene-1", "gene-2"], "stroma": "gene-3"}, 3),
        ({"tumour": None}, N_GENES),
        ({}, N_GENES),
        ("", N_GENES),
        (2.5, N_GENES),
        (True, N_GENES),
        (np.nan, N_GENES),
        (3 + 0j, N_GENES),
    ],
)
def test_what_is_no_list_of_names_is_an_error_whose_remedy_runs(genes, n):
    obs, message = mend(section()[0], TypeError, genes=genes)
    assert message.startswith("`genes` needs names") and len(obs.genes) == n


def test_a_mask_is_an_error_whose_remedy_runs():
    sdata, _ = section()
    mask = np.arange(N_GENES) % 7 == 3
    with pytest.raises(TypeError) as raised:
        read(sdata, genes=mask)
    genes = eval(f"dict({remedy(str(raised.value))})", {"sdata": sdata, "mask": mask})["genes"]
    assert read(sdata, genes=genes).genes == ("gene-3", "gene-10", "gene-17", "gene-24")


def test_repeated_names_are_an_error_whose_remedy_runs():
    assert mend(section()[0], ValueError, genes=["gene-2", "gene-1", "gene-2"])[0].genes == ("gene-2", "gene-1")


def test_a_table_without_genes_is_named():
    with pytest.raises(ContractError, match="tables/table: needs at least one gene, but has no columns"):
        read(section(lambda table: table[:, :0].copy())[0])


def test_a_table_of_objects_reads_as_anndata_keeps_it():
    assert isinstance(section()[0]["table"], AnnData)
