"""Fine-tuning: train existing weights further on the user's sections, and save the result."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

from hadmst_sc.models import HadmstModel, load_model
from hadmst_sc.models.weights import save_model
from hadmst_sc.runtime import torch_threads, usual_errors
from hadmst_sc.section.arguments import FLAG, SEED, Requirement, optional, whole
from hadmst_sc.section.errors import Problems, WrongTypeError
from hadmst_sc.section.observation import Observation
from hadmst_sc.train import loop
from hadmst_sc.train.bank import RealSection
from hadmst_sc.train.config import BankConfig, SectionKind, TrainConfig

CROP = 64  # bins; the bundled weights were trained on crops of this size


def _is_folder(value: Any) -> bool:
    return isinstance(value, str | Path) and str(value) != "" and not Path(value).is_file()


@usual_errors
def fine_tune(
    sections: Observation | Sequence[Observation],
    *,
    output: str | Path,
    model: str | Path = "default",
    steps: int = 300,
    n_phantoms: int = 16,
    random_state: int = 0,
    n_jobs: int | None = None,
    resume: bool = True,
) -> HadmstModel:
    """Train the bundled network further on sections of your own.

    Some spots are held out, several times, and the network learns to predict them. It is trained on phantoms too, to
    preserve the samples and the alignment, which a section without truth cannot teach. The command
    ``hadmst-sc train`` does the same from a configuration file, with every setting of the training. Phantoms are
    generated in worker processes, so a script calls this below ``if __name__ == "__main__":``.

    Parameters
    ----------
    sections
        One or more sections, of :func:`hadmst_sc.io.read_observation`, with bins of the size that you use later. Keep
        one aside to see whether the result is better.
    output
        Folder of the checkpoint, the log and the weights, ``model.safetensors`` with its card.
    model
        Weights to start from: a bundled name or a path.
    steps
        Steps of the optimiser.
    n_phantoms
        Number of phantoms.
    random_state
        Seed of the training.
    n_jobs
        CPU threads and processes; ``None`` = 2.
    resume
        Continue from the checkpoint in ``output``, which must have been made with the same arguments and sections.

    Returns
    -------
    The trained model, ready for ``hd.tl.superresolve(..., model=model)``.

    Raises
    ------
    ValueError
        If an argument has a wrong type or value, or the checkpoint was made with other arguments or sections.
    ContractError
        If sections have too few spots or genes; all are named.

    Examples
    --------
    >>> sdata = hd.datasets.phantom(n_genes=12, size_um=1600.0)
    >>> obs = hd.io.read_observation(sdata, "phantom_full_image", bin_um=20.0)
    >>> model = hd.train.fine_tune(obs, output="runs/mine", steps=1, n_phantoms=1)
    >>> hd.tl.predict(obs, model=model, gate=False).mean.shape
    (12, 80, 80)
    """
    problems = Problems("cannot fine-tune")
    sections = [sections] if isinstance(sections, Observation) else sections
    if not isinstance(sections, list | tuple) or not all(isinstance(one, Observation) for one in sections or [None]):
        raise WrongTypeError(
            "`sections` needs observations of `hd.io.read_observation`, but holds something else or nothing. Pass "
            "`sections=[hd.io.read_observation(sdata, image_key, bin_um=20.0)]`."
        )
    given: dict[str, Any] = {
        "output": output,
        "model": model,
        "steps": steps,
        "n_phantoms": n_phantoms,
        "random_state": random_state,
        "n_jobs": n_jobs,
        "resume": resume,
    }
    required = {
        "output": (Requirement("a folder, as text or path", _is_folder), "runs/mine"),
        "model": (Requirement("a bundled name or a path", lambda value: isinstance(value, str | Path)), "default"),
        "steps": (whole(1, 10**8), 300),
        "n_phantoms": (whole(1, 10**6), 16),
        "random_state": (SEED, 0),
        "n_jobs": (optional(whole(1, 1024)), None),
        "resume": (FLAG, True),
    }
    problems.check(given, required)
    problems.raise_if_any()
    load_model(model)  # an error comes before anything is made
    workers, real = n_jobs or 2, [RealSection(one) for one in sections]
    sizes = sorted({one.grid.bin_um for one in sections})
    bank = BankConfig(
        first_seed=1000,
        n_phantoms=n_phantoms,
        n_genes=32,
        n_workers=workers,
        start_with=n_phantoms,
        kinds=tuple(SectionKind(size_um=CROP * bin_um, bin_um=bin_um) for bin_um in sizes),
        n_masked=4,
    )
    config = TrainConfig(
        seed=random_state,
        steps=steps,
        crop=CROP,
        genes=max(1, min(8, *(int(one.usable.sum()) for one in real))),
        # A quarter of the rate that made the bundled weights: they are near already.
        learning_rate=2e-4,
        warmup=20,
        mean_share=0.6,
        real_share=0.6,
        draw=1.0,
        start_from=str(model),
        checkpoint_every=100,
        threads=workers,
        bank=bank,
    )
    # What was distilled from an earlier state of a section must not pass for this one.
    named = {f"section_{section.digest}": section for section in real}
    return train_and_save(config, output, sections=named, resume=resume)


def train_and_save(
    config: TrainConfig,
    output: str | Path,
    *,
    sections: Mapping[str, RealSection],
    shared: str | Path | None = None,
    weights: str | Path | None = None,
    resume: bool = True,
) -> HadmstModel:
    """Train from a configuration, and write the weights with a card that says how they were made.

    Parameters
    ----------
    config, output, sections, shared, resume
        As for :func:`~hadmst_sc.train.train`.
    weights
        File of the weights; ``None`` = ``model.safetensors`` in ``output``.
    """
    try:
        with torch_threads(None):
            model = loop.train(config, output=output, shared=shared, sections=sections, resume=resume)
    except BrokenProcessPool as error:
        raise RuntimeError(
            "the worker processes of the training ended. They import your script: call it below "
            "`if __name__ == '__main__':`. If it is, memory ran out: pass `n_jobs=1`."
        ) from error
    trained_on = {name: str(section) for name, section in sections.items()}
    card: dict[str, Any] = {"training": config.to_dict(), "sections": trained_on}
    if config.start_from:  # a name or a path may stand for other weights later
        card["start_sha256"] = load_model(config.start_from).sha256
    target = Path(weights or Path(output) / "model.safetensors")
    save_model(model, target, card=card | {"log": loop.read_log(output)})
    return load_model(target)
