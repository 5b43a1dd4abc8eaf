"""Super-resolution of an observation: :func:`superresolve` on arrays."""

from __future__ import annotations

from typing import Unpack

from hadmst_sc.inference.cost import cost_of
from hadmst_sc.inference.predict import run
from hadmst_sc.inference.progress import Progress
from hadmst_sc.inference.settings import SETTINGS, Settings, SettingsArguments
from hadmst_sc.section.arguments import FLAG, shown, takes
from hadmst_sc.section.errors import Problems, WrongTypeError
from hadmst_sc.section.observation import MapSink, Observation, Prediction


@takes(SETTINGS, but=("batch_size", "n_jobs"))
def predict(
    obs: Observation,
    *,
    gene_chunk: int | None = None,
    into: MapSink | None = None,
    show_progress_bar: bool = False,
    **given: Unpack[SettingsArguments],
) -> Prediction:
    """Super-resolve the genes of an observation.

    The same as :func:`superresolve`, on arrays. Results do not depend on ``window``, ``gene_chunk``, the order of the
    genes or ``client``.

    Parameters
    ----------
    obs
        One section.
    {shared}
    gene_chunk
        Genes at a time; ``None`` = 4.
    into
        Receives the maps as they are computed; genes that it has from an earlier run are skipped. ``None`` keeps the
        maps in memory.
    show_progress_bar
        Show a progress bar with the time left.

    Returns
    -------
    Expected counts per bin, with statistics of each gene and provenance.

    Raises
    ------
    FileNotFoundError
        If the model does not exist, and nothing else is wrong.
    ValueError
        If an argument has a wrong type or value; several are one :class:`~hadmst_sc.section.errors.ContractError`.

    Examples
    --------
    >>> sdata = hd.datasets.phantom(n_genes=4, size_um=600.0)
    >>> obs = hd.io.read_observation(sdata, "phantom_full_image", bin_um=20.0)
    >>> hd.tl.predict(obs, model=None).mean.shape
    (4, 30, 30)
    """
    if not isinstance(obs, Observation):
        raise WrongTypeError(
            f"`obs` needs an Observation, but is {shown(obs)}. Pass `hd.io.read_observation(sdata, image_key)`, or "
            f"call `hd.tl.superresolve(sdata, image_key)`."
        )
    problems = Problems("cannot predict this section")
    settings = Settings.of({**given, "batch_size": gene_chunk})
    settings.check(problems, {"batch_size": "gene_chunk"})
    problems.check({"show_progress_bar": show_progress_bar}, {"show_progress_bar": (FLAG, False)})
    problems.raise_if_any()
    settings.check_with(obs, problems)
    problems.raise_if_any()
    settings = settings.loaded()
    with Progress(show=show_progress_bar) as progress:
        if show_progress_bar:
            progress.plan(cost_of(obs, settings, backed=into is not None).stages | {"write": 0.0})
        return run(obs, settings, into, progress)
