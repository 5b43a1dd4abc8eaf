"""The training loop: deterministic by (seed, step), resumable bit for bit, checkpoints without pickles."""

from __future__ import annotations

import copy
import json
import logging
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from lightning_fabric import Fabric
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from hadmst_sc.models import HadmstModel, ModelSpec
from hadmst_sc.models.adversary import ChannelDiscriminator, fooling_loss, judge_loss
from hadmst_sc.models.diffusion import channels_last
from hadmst_sc.models.weights import load_model
from hadmst_sc.runtime import freed_memory_kept
from hadmst_sc.train.bank import Bank, RealSection, check_sections
from hadmst_sc.train.config import TrainConfig
from hadmst_sc.train.data import draw_batch
from hadmst_sc.train.losses import Drawn, Losses, TrainingStep
from hadmst_sc.train.pictures import maps_of, save_grid
from hadmst_sc.train.schedule import cosine, ema
from hadmst_sc.train.student import train_student

logger = logging.getLogger("hadmst_sc")
LOSSES = (*Losses._fields, "adversary", "judge")


def build_model(config: TrainConfig) -> HadmstModel:
    """Build the initial model: ``start_from``, or random weights from the seed.

    The caller's random state is unchanged.

    Raises
    ------
    FileNotFoundError, ValueError
        If ``start_from`` cannot be loaded, or ``model`` describes another network.
    """
    start = load_model(config.start_from) if config.start_from else None
    spec = ModelSpec.from_dict((start.spec.to_dict() if start else {}) | config.model)
    if start and spec != start.spec:
        raise ValueError(
            f"`model` needs to match `start_from={config.start_from!r}`, but changes it to {config.model}. "
            f"Remove the table `[model]`."
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        model = HadmstModel(spec)
    if start:
        model.load_state_dict(start.state_dict())
    model.student.requires_grad_(False)  # the bank was made with it: see `train_student`
    return model


def learning_rate(config: TrainConfig, step: int) -> float:
    """Learning rate of a step."""
    return cosine(config.learning_rate, step, config.steps, config.warmup)


class Origin(NamedTuple):
    """Origin of a checkpoint: what it was made from, in plain values."""

    config: dict[str, Any]
    sections: dict[str, str]  # digests by name
    start_sha256: str  # of the weights that training starts from; "": random ones

    @classmethod
    def of(cls, config: TrainConfig, sections: Mapping[str, RealSection]) -> Origin:
        """The configuration, and the content of what it names."""
        start = load_model(config.start_from).sha256 if config.start_from else ""
        plain = json.loads(json.dumps(config.to_dict()))  # as a checkpoint stores it: lists in place of tuples
        return cls(plain, {name: section.digest for name, section in sections.items()}, start)

    def differs(self, record: Mapping[str, Any]) -> str | None:
        """Say what the record of a checkpoint was made from instead; ``None`` if it is the same."""
        told = ("`config` differs", "the content of `sections` differs", "the weights that training starts from differ")
        for (name, mine), sentence in zip(self._asdict().items(), told, strict=True):
            if record.get(name, mine) != mine:  # checkpoints of earlier versions have the configuration alone
                return sentence
        return None


class _State:
    """Model, average and optimiser, saved as safetensors + JSON and nothing else."""

    def __init__(self, config: TrainConfig) -> None:
        self.step_module = TrainingStep(channels_last(build_model(config)))
        self.average = AveragedModel(self.step_module.model, avg_fn=ema(config.ema))
        self.optimizer = torch.optim.AdamW(
            self._trained(), config.learning_rate, betas=(0.9, 0.99), weight_decay=config.weight_decay
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            self.judge = ChannelDiscriminator(self.step_module.model.spec.token)
        self.judge_optimizer = torch.optim.Adam(
            self.judge.parameters(), config.adversary_learning_rate, betas=(0.0, 0.99)
        )
        self.step = 0
        self.log: list[dict[str, float]] = []

    def _trained(self) -> list[nn.Parameter]:
        return [p for p in self.step_module.parameters() if p.requires_grad]

    @property
    def _optimizers(self) -> dict[str, torch.optim.Optimizer]:
        return {"optimizer": self.optimizer, "judge_optimizer": self.judge_optimizer}

    def tensors(self) -> dict[str, Tensor]:
        out = {f"model.{k}": v for k, v in self.step_module.model.state_dict().items()}
        out |= {f"average.{k}": v for k, v in self.average.state_dict().items()}
        out |= {f"judge.{k}": v for k, v in self.judge.state_dict().items()}
        for prefix, optimizer in self._optimizers.items():
            for index, moments in optimizer.state_dict()["state"].items():
                out |= {f"{prefix}.{index}.{name}": torch.as_tensor(v) for name, v in moments.items()}
        return {k: v.detach().cpu().contiguous() for k, v in out.items()}

    def save(self, directory: Path, origin: Origin) -> None:
        """Write the checkpoint under a temporary name, then rename it: a kill leaves the old or the new one."""
        record = json.dumps(origin._asdict() | {"step": self.step, "log": self.log})
        # The record is stored inside the tensor file, so a single rename keeps both consistent.
        scratch = directory / "checkpoint.part"
        save_file({k: v.clone() for k, v in self.tensors().items()}, scratch, metadata={"record": record})
        scratch.rename(directory / "checkpoint.safetensors")

    def load(self, path: Path, origin: Origin) -> None:
        """Continue from a checkpoint; parameters must be on their device, where those of the optimisers follow them."""
        record = _record(path)
        if differs := origin.differs(record):
            raise ValueError(
                f"{differs} from what made {path}. Pass another output folder, or `resume=False` (`--no-resume`)."
            )
        tensors = load_file(path)

        def under(prefix: str) -> dict[str, Tensor]:
            return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}

        self.step_module.model.load_state_dict(under("model."))
        self.average.load_state_dict(under("average."))
        self.judge.load_state_dict(under("judge."))
        for prefix, optimizer in self._optimizers.items():
            state: dict[int, dict[str, Tensor]] = {}
            for key, value in under(f"{prefix}.").items():
                index, name = key.split(".")
                state.setdefault(int(index), {})[name] = value
            optimizer.load_state_dict(optimizer.state_dict() | {"state": state})
        self.step, self.log = int(record["step"]), record["log"]


def _noise(config: TrainConfig, step: int, n: int, n_drawn: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(config.seed * 1_000_003 + step)
    mean, sd = config.log_sigma
    sigma = torch.exp(mean + sd * torch.randn(n, generator=generator))
    noise = torch.randn(n, 1, config.crop, config.crop, generator=generator)
    return sigma, noise, torch.randn(2, n_drawn, config.crop, config.crop, generator=generator)


def train(
    config: TrainConfig,
    *,
    output: str | Path,
    shared: str | Path | None = None,
    sections: Mapping[str, RealSection] | None = None,
    resume: bool = True,
    until: int | None = None,
) -> HadmstModel:
    """Train or resume training, and return the averaged model.

    Parameters
    ----------
    config
        See :class:`~hadmst_sc.train.TrainConfig`.
    output
        Directory of ``checkpoint.safetensors`` and ``log.jsonl``.
    shared
        Directory of the student's lessons and the bank, which several runs can share; ``None``: ``output``.
    sections
        Real sections by name, which is also the name of their files in the bank. The caller must read the sections of
        ``config.bank.real``, because this package does not depend on SpatialData.
    resume
        Resume from the checkpoint if there is one; it must come from the same configuration, sections and weights.
    until
        Stop before this step, with a checkpoint; the schedule is still that of ``config.steps``.

    Raises
    ------
    ValueError
        If the checkpoint was made with another configuration, from other sections or from other weights, or a section
        cannot fill a crop.

    Examples
    --------
    >>> from hadmst_sc.train.config import BankConfig, StudentConfig
    >>> bank = BankConfig(n_phantoms=1, start_with=1, n_genes=8, n_workers=1)
    >>> config = hd.train.TrainConfig(steps=1, bank=bank, student=StudentConfig(n_phantoms=1, steps=1))
    >>> hd.train.train(config, output="runs/new").spec.widths
    (24, 40, 64)
    """
    check_sections(sections or {}, config)
    output, made = Path(output), Path(shared or output)
    output.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(config.threads)
    fabric = Fabric(accelerator=config.accelerator, devices=config.devices)
    fabric.launch()
    origin = Origin.of(config, sections or {})
    state, checkpoint = _State(config), output / "checkpoint.safetensors"
    module, optimizer = fabric.setup(state.step_module, state.optimizer)
    judge, judge_optimizer = fabric.setup(state.judge, state.judge_optimizer)
    state.average.to(fabric.device)
    if resume and checkpoint.exists():
        state.load(checkpoint, origin)
    if not config.start_from:
        student = train_student(
            config.student, state.step_module.model.spec, output=made, n_workers=config.bank.n_workers
        )
        for model in (state.step_module.model, cast(HadmstModel, state.average.module)):
            model.student.load_state_dict(student.state_dict())
    student = copy.deepcopy(state.step_module.model.student).cpu()  # for workers, which have no business on the device
    bank = Bank(made / config.bank.directory, config.bank, student, sections)
    recent: list[tuple[float, ...]] = []
    started = time.monotonic()
    try:
        with freed_memory_kept():
            last = min(config.steps, until or config.steps)
            while state.step < last:
                recent.append(_advance(state, config, bank, fabric, (module, optimizer), (judge, judge_optimizer)))
                if state.step % config.log_every == 0 and fabric.is_global_zero:
                    _log(state, recent, time.monotonic() - started, output)
                    recent.clear()
                due = state.step % config.checkpoint_every == 0 or state.step == last
                if due and fabric.is_global_zero:
                    state.save(output, origin)
                    _picture(state, config, bank, fabric, output)
    finally:
        bank.close()
    return cast(HadmstModel, state.average.module)


def _advance(
    state: _State, config: TrainConfig, bank: Bank, fabric: Fabric, trained: tuple[Any, Any], judged: tuple[Any, Any]
) -> tuple[float, ...]:
    """One step of training; its losses in the order of ``LOSSES``."""
    (module, optimizer), (judge, judge_optimizer) = trained, judged
    # Each process draws its own batch; a single process draws the same batches after a resume.
    seed = config.seed + 7919 * fabric.global_rank
    batch = draw_batch(bank, config, state.step, seed)
    n_mean = batch.n_real + round(config.mean_share * (len(batch.section) - batch.n_real))
    n_drawn = len(batch.drawn) if config.draw else 0
    noises = _noise(config, state.step, len(batch.section) - n_mean, n_drawn)
    for group in optimizer.param_groups:
        group["lr"] = learning_rate(config, state.step)
    optimizer.zero_grad()
    losses, drawn = module(batch.to(fabric.device), n_mean, *(noise.to(fabric.device) for noise in noises))
    plays = bool(config.adversary and len(drawn.truth))
    fooling = _fooling(judge, drawn) if plays else torch.zeros(())
    weighted = losses.mean + losses.denoising + config.alignment * losses.alignment + config.draw * losses.draw
    fabric.backward(weighted + config.adversary * fooling if plays else weighted)
    fabric.clip_gradients(module, optimizer, max_norm=config.clip_norm)
    optimizer.step()
    judging = _judge(fabric, judge, judge_optimizer, drawn) if plays else torch.zeros(())
    state.average.update_parameters(state.step_module.model)
    state.step += 1
    return tuple(loss.item() for loss in (*losses, fooling, judging))


def _picture(state: _State, config: TrainConfig, bank: Bank, fabric: Fabric, output: Path) -> None:
    """Write ``pictures.png``: maps of the first crop of the run with a phantom, predicted with the averaged weights."""
    batch = next((b for step in range(20) if len((b := draw_batch(bank, config, step, config.seed)).drawn)), None)
    if batch is None:
        return
    batch = batch.to(fabric.device)
    *_, noise = _noise(config, 0, 0, len(batch.drawn))
    module = TrainingStep(cast(HadmstModel, state.average.module))
    save_grid(maps_of(module, batch, noise.to(fabric.device)), output / "pictures.png")


def _fooling(judge: Any, drawn: Drawn) -> Tensor:
    """Adversarial loss of one of the samples; the discriminator's own parameters get no gradient."""
    for parameter in judge.parameters():
        parameter.requires_grad_(False)
    return fooling_loss(judge(drawn.draws[0], *drawn.beside))


def _judge(fabric: Fabric, judge: Any, optimizer: Any, drawn: Drawn) -> Tensor:
    """Train the discriminator for one step."""
    for parameter in judge.parameters():
        parameter.requires_grad_(True)
    optimizer.zero_grad()
    loss = judge_loss(judge(drawn.truth, *drawn.beside), judge(drawn.draws[1].detach(), *drawn.beside))
    fabric.backward(loss)
    optimizer.step()
    return loss.detach()


def _record(checkpoint: Path) -> dict[str, Any]:
    """Read what a checkpoint tells of itself."""
    with safe_open(checkpoint, "pt") as file:
        record: dict[str, Any] = json.loads(file.metadata()["record"])
    return record


def read_log(output: str | Path) -> list[dict[str, float]]:
    """Read the logged losses of a run from its checkpoint, oldest first."""
    log: list[dict[str, float]] = _record(Path(output) / "checkpoint.safetensors")["log"]
    return log


def _log(state: _State, recent: list[tuple[float, ...]], seconds: float, output: Path) -> None:
    losses = {name: round(float(v), 4) for name, v in zip(LOSSES, np.mean(recent, 0), strict=True)}
    row: dict[str, float] = {"step": state.step} | losses | {"seconds": round(seconds, 1)}
    state.log.append(row)
    logger.info("  ".join(f"{name} {value:g}" for name, value in row.items()))
    with (output / "log.jsonl").open("a") as file:
        file.write(json.dumps(row) + "\n")
