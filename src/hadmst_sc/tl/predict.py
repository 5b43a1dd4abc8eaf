"""Arrays in, arrays out: :func:`superresolve` for those who have an observation."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from hadmst_sc.inference.predict import run
from hadmst_sc.inference.prepare import ImageFeatures
from hadmst_sc.inference.settings import BATCH_SIZE, N_STEPS, WINDOW, Settings, check_client
from hadmst_sc.models import HadmstModel
from hadmst_sc.section.arguments import FLAG
from hadmst_sc.section.errors import Problems
from hadmst_sc.section.observation import MapSink, Observation, Prediction


def predict(
    obs: Observation,
    *,
    model: str | Path | HadmstModel | None = "default",
    n_samples: int = 0,
    n_steps: int | None = None,
    n_metagenes: int | None = None,
    consistency: str = "soft",
    align: bool | Literal["spots"] = True,
    gate: bool = True,
    features: ImageFeatures | None = None,
    device: str = "auto",
    window: int = WINDOW,
    gene_chunk: int | None = None,
    random_state: int = 0,
    keep_draws: bool = False,
    into: MapSink | None = None,
    client: Any = None,
    show_progress_bar: bool = False,
) -> Prediction:
    """Super-resolve the genes of an observation.

    The same as :func:`superresolve` for those who have arrays. Results do not depend on ``window``, ``gene_chunk``,
    the order of the genes or ``client``.

    Parameters
    ----------
    obs
        One section.
    model
        A bundled name, a path, a loaded model, or ``None`` for the closed form alone.
    n_samples
        Draws per gene; 2 or more give ``std``. The mean never comes from draws.
    n_steps
        Network evaluations per draw; ``None`` = 1, the distilled sampler. From 2 on the diffusion itself is sampled.
    n_metagenes
        The network sees so many metagenes, of whose maps all genes are mixed; ``None`` = every gene.
    consistency
        ``"soft"`` (knows counting noise), ``"hard"`` (sums equal the counts) or ``"off"``.
    align
        Estimate how the H&E lies against the spots, and where the evidence is clear move the image under the spots;
        with ``"spots"`` move the spots onto the image. False takes both as they lie.
    gate
        Let held-out spots of this section decide how far the estimate goes from the closed form to the network. False
        takes the network as it is, and saves two more distillations.
    features
        Further image features, see :data:`ImageFeatures`.
    device
        ``"auto"`` (cuda, mps, cpu) or a torch device.
    window
        Edge of the windows in bins, a multiple of 4: smaller needs less memory and more time.
    gene_chunk
        Genes per batch; ``None`` = 4.
    random_state
        Seed of the draws.
    keep_draws
        Keep every draw in ``draws``: ``n_samples`` times the memory of the mean.
    into
        Where the maps go as they are made; genes that an earlier run left there are not made again. ``None`` keeps them
        in memory.
    client
        A ``dask.distributed.Client``: gene chunks become tasks.
    show_progress_bar
        Show one over genes.

    Returns
    -------
    Expected counts per bin, with per-gene statistics and provenance.

    Raises
    ------
    FileNotFoundError
        If there is no such model, and nothing else is wrong.
    ValueError
        If an argument has a wrong type or value; several are one :class:`~hadmst_sc.section.errors.ContractError`.

    Examples
    --------
    >>> sdata = hd.datasets.phantom(n_genes=4, size_um=600.0)
    >>> obs = hd.io.read_observation(sdata, "phantom_full_image", bin_um=20.0)
    >>> hd.tl.predict(obs, model=None).mean.shape
    (4, 30, 30)
    """
    problems = Problems("cannot predict this section")
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
        keep_draws=keep_draws,
        device=device,
        window=window,
        batch_size=BATCH_SIZE if gene_chunk is None else gene_chunk,
    )
    settings.check(problems, {"batch_size": "gene_chunk"})
    check_client(client, problems)
    problems.check({"show_progress_bar": show_progress_bar}, {"show_progress_bar": (FLAG, False)})
    problems.raise_if_any()
    settings.check_metagenes(obs, problems)
    problems.raise_if_any()
    return run(obs, settings.loaded(), into, client, show_progress_bar=show_progress_bar)
