"""The main job: SpatialData in, the same SpatialData with a high-resolution table and image out."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, replace
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from tqdm.auto import tqdm

from hadmst_sc.inference.cost import estimate
from hadmst_sc.inference.predict import run as predict
from hadmst_sc.inference.prepare import ImageFeatures
from hadmst_sc.inference.settings import BATCH_SIZE, N_STEPS, Settings, check_client, run_key
from hadmst_sc.io.lock import StoreError, named
from hadmst_sc.io.maps import MapStore
from hadmst_sc.io.read import read_observation
from hadmst_sc.io.scheduler import computed_here
from hadmst_sc.io.store import claimed, scratch
from hadmst_sc.io.write import as_spatialdata, check_output, check_size, write_prediction
from hadmst_sc.runtime import torch_threads, usual_errors
from hadmst_sc.section.arguments import ELEMENT, FLAG
from hadmst_sc.section.errors import Problems, logger

if TYPE_CHECKING:
    from spatialdata import SpatialData

    from hadmst_sc.models import HadmstModel

BESIDE = {
    "key_added": (ELEMENT, "superres"),
    "overwrite": (FLAG, False),
    "copy": (FLAG, False),
    "show_progress_bar": (FLAG, True),
}
VERSIONS = ("hadmst_sc", "torch", "numpy", "spatialdata", "anndata")


@usual_errors
def superresolve(
    sdata: SpatialData,
    image_key: str,
    *,
    table_key: str = "table",
    shapes_key: str | None = None,
    coordinate_system: str | None = None,
    layer: str | None = None,
    genes: Sequence[str] | int | None = None,
    bin_um: float = 10.0,
    spot_um: float | None = None,
    pitch_um: float | None = None,
    tissue_key: str | None = None,
    model: str | Path | HadmstModel | None = "default",
    n_samples: int = 4,
    n_steps: int | None = None,
    n_metagenes: int | None = None,
    consistency: str = "soft",
    align: bool | Literal["spots"] = True,
    gate: bool = True,
    features: ImageFeatures | None = None,
    device: str = "auto",
    batch_size: int | None = None,
    random_state: int = 0,
    n_jobs: int | None = None,
    client: Any = None,
    key_added: str = "superres",
    overwrite: bool = False,
    copy: bool = False,
    show_progress_bar: bool = True,
) -> SpatialData | None:
    """Super-resolve spots onto a fine grid with the help of the H&E.

    Adds to ``sdata`` (names for the default ``key_added``):

    - image ``superres``: ``(gene, y, x)`` float32, expected counts per bin, NaN outside the tissue;
    - image ``superres_std``: posterior standard deviation, when ``n_samples > 1``;
    - labels ``superres_bins``: the id of each bin in tissue;
    - table ``superres_table``: one row per bin in tissue, ready for scanpy and squidpy.

    Parameters
    ----------
    sdata
        One or more sections; changed in place unless ``copy``. If it is backed by a store, the result is written there.
    image_key
        The H&E image.
    table_key
        Table of counts that annotates the spots.
    shapes_key, coordinate_system
        Needed only when the table or the image leaves a choice.
    layer
        Layer with the counts; ``None`` = ``X``, ``"raw"`` = the matrix of ``.raw`` unless a layer has that name.
    genes
        Names, or how many of the most informative; ``None`` = ``var["highly_variable"]`` if present, else 200.
    bin_um
        Edge of the bins, µm.
    spot_um, pitch_um
        Diameter and distance of the spots, µm; ``None`` = as the table states them, else recognised from the platform's
        proportions.
    tissue_key
        Labels or shapes that mark the tissue; ``None`` = detected.
    model
        A bundled name, a path to weights, a loaded model, or ``None`` for the closed form without a network.
    n_samples
        Draws per gene for ``std``; 0 or 1 computes the mean alone, which is several times faster.
    n_steps
        Network evaluations per draw; ``None`` = 1, the distilled sampler. From 2 on the diffusion itself is sampled.
    n_metagenes
        For thousands of genes: the network sees so many metagenes (64, say), of whose maps all genes are mixed, and
        every gene keeps its own closed form and consistency. Many times faster; what it costs on this section, at
        held-out spots, is ``metagene_loss`` in the provenance. ``None`` = the network sees every gene.
    consistency
        ``"soft"`` agrees with the counts as far as counting noise allows, ``"hard"`` makes spot sums equal the counts,
        ``"off"`` leaves the network alone.
    align
        Estimate how the H&E lies against the spots (translation, rotation, smooth field), and undo it where the
        evidence is clear: the image moves under the spots, or with ``"spots"`` the spots onto the image, so that maps
        lie right on the H&E. What was found is in the provenance; see ``pl.registration``.
    gate
        Let held-out spots of this section decide how far to go from the closed form to the network; the share is in the
        provenance. False takes the network as it is, and saves two more distillations.
    features
        Further image features, such as those of a pathology model: ``(f, h, w)`` over the extent of the image, or a
        callable that makes them of ``(3, y, x)`` uint8 and its µm per pixel. The closed form regresses on them too.
    device
        ``"auto"`` = cuda, mps or cpu, whichever is there first; or a torch device.
    batch_size
        Genes at a time; ``None`` = 4. Memory grows with it, results do not change.
    random_state
        Seed of the draws.
    n_jobs
        CPU threads of the network; ``None`` leaves torch's setting. Restored afterwards.
    client
        A ``dask.distributed.Client`` whose workers take the genes in chunks.
    key_added
        Name of the result.
    overwrite
        Replace the result of an earlier run of the same name.
    copy
        Return the new elements as their own object and leave ``sdata`` alone.
    show_progress_bar
        Over genes.

    Returns
    -------
    ``None``, or with ``copy`` a SpatialData of the new elements.

    Raises
    ------
    KeyError
        If a key is not there; the message lists what is.
    ContractError
        If there are several problems, of arguments and section: all at once, each with its remedy.
    ValueError
        If an argument has a wrong type or value. Nothing is changed when anything is raised.

    Examples
    --------
    >>> sdata = hd.datasets.phantom(n_genes=4, size_um=600.0)
    >>> how = {"bin_um": 20.0, "show_progress_bar": False}
    >>> hd.tl.superresolve(sdata, "phantom_full_image", **how)
    >>> sdata["superres"].shape
    (4, 30, 30)
    >>> sdata.tables["superres_table"].layers["std"].shape[1]
    4
    """
    started = time.perf_counter()
    problems = Problems("cannot super-resolve this section")
    settings = Settings(
        model=model,
        n_samples=n_samples,
        n_steps=N_STEPS if n_steps is None else n_steps,
        n_metagenes=n_metagenes,
        consistency=consistency,
        align=align,
        gate=gate,
        features=features,
        random_state=random_state,
        device=device,
        batch_size=BATCH_SIZE if batch_size is None else batch_size,
        n_jobs=n_jobs,
    )
    settings.check(problems)
    check_client(client, problems)
    beside = {"key_added": key_added, "overwrite": overwrite, "copy": copy, "show_progress_bar": show_progress_bar}
    if not problems.check(beside, BESIDE) and not copy:
        with problems.gathered(ValueError, OSError):
            check_output(sdata, key_added, overwrite=overwrite)
    obs = read_observation(
        sdata,
        image_key,
        table_key=table_key,
        shapes_key=shapes_key,
        coordinate_system=coordinate_system,
        layer=layer,
        genes=genes,
        bin_um=bin_um,
        spot_um=spot_um,
        pitch_um=pitch_um,
        tissue_key=tissue_key,
        problems=problems,
    )
    target = None if copy else sdata
    settings.check_metagenes(obs, problems)
    with problems.gathered(ValueError, OSError):
        sizes = {"n_bins": obs.grid.n_bins, "n_inside": int(obs.inside.sum())}
        check_size(target, len(obs.genes), **sizes, with_std=settings.n_draws > 0)
    problems.raise_if_any()
    read = time.perf_counter()
    settings = settings.loaded()
    backed = target is not None and target.is_backed()
    told = f"super-resolving takes {estimate(obs, settings, backed=backed)}"
    logger.info(told)
    show_progress_bar = show_progress_bar and _printed(told)
    with ExitStack() as stack:
        store = None
        if backed:
            key = run_key(obs, settings, _version("hadmst_sc"))
            shape = (len(obs.genes), *obs.grid.shape)
            store = stack.enter_context(_maps_on_disk(sdata, key_added, key, shape, with_std=settings.n_draws > 0))
        with torch_threads(settings.n_jobs):
            prediction = predict(obs, settings, store, client, show_progress_bar=show_progress_bar)
        assert obs.source is not None  # read_observation always names its source
        facts = {
            **{key: value for key, value in asdict(obs.source).items() if value is not None},
            "bin_um": obs.grid.bin_um,
            "px_per_bin": obs.grid.px_per_bin,
            "um_per_px": obs.grid.um_per_px,
            "he_um": obs.he_um,
            "n_spots": len(obs.spots),
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "seconds_read": round(read - started, 3),
            "versions": {name: _version(name) for name in VERSIONS},
        }
        stats = prediction.gene_stats | {"spot_counts": obs.counts.sum(0, dtype=float)}
        prediction = replace(prediction, gene_stats=stats, provenance=facts | prediction.provenance)
        if copy:
            return as_spatialdata(sdata, prediction, obs.source, key_added)
        with computed_here():
            write_prediction(sdata, prediction, obs.source, key_added=key_added, overwrite=overwrite, maps=store)
        return None


@contextmanager
def _maps_on_disk(
    sdata: SpatialData, key_added: str, key: str, shape: tuple[int, int, int], *, with_std: bool
) -> Iterator[MapStore]:
    """Scratch beside the store, of which no other run writes this result meanwhile; kept if the run can be resumed."""
    assert sdata.path is not None  # for types
    with claimed(sdata.path, key_added), named(sdata.path):
        store = MapStore.open(scratch(sdata.path, key_added), key, shape, with_std=with_std)
        try:
            with named(sdata.path):
                yield store
        except BaseException as error:
            if isinstance(error, StoreError) or not store.finished:  # without room or store it cannot be resumed
                store.remove()
            raise


def _printed(text: str) -> bool:
    """Print to stderr, and tell whether that works: it may be closed, or ``None`` where there is no console."""
    try:
        if sys.stderr is not None:
            tqdm.write(text, file=sys.stderr)
    except (OSError, ValueError):
        return False
    return sys.stderr is not None


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:  # run from a source tree
        return "unknown"
