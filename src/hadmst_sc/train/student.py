"""Training of the H&E student: features from which a ridge regression at the spots predicts expression.

The *teacher* has what no user has, expression in every bin, as leading components over genes. The student does not
learn particular components (genes differ between sections). It learns features for which the readout that inference
fits, ridge regression at the spots, predicts the components in the bins. The readout is differentiable, so the student
is trained through it (as in Bertinetto et al. 2019). Every section has two stainings: features must agree between them,
and a second branch takes up the differences.
"""

from __future__ import annotations

import logging
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from safetensors.numpy import load_file, save_file
from safetensors.torch import load_file as load_torch
from safetensors.torch import save_file as save_torch
from scipy import ndimage
from torch import Tensor
from torch.nn import functional
from torch.optim.swa_utils import AveragedModel

from hadmst_sc.models import HEStudent, ModelSpec
from hadmst_sc.phantom.fields import random_field
from hadmst_sc.phantom.simulate import simulate
from hadmst_sc.section.features import N_BASE, he_features
from hadmst_sc.section.observation import Observation
from hadmst_sc.train.config import SectionKind, StudentConfig, key_of
from hadmst_sc.train.schedule import cosine, ema

logger = logging.getLogger("hadmst_sc")

N_TEACHER = 12  # components
KINDS = (  # Visium at 10 and 20 µm and legacy ST, in turn
    *(SectionKind() for _ in range(11)),
    *(SectionKind(size_um=2560.0, bin_um=20.0) for _ in range(6)),
    *(SectionKind(size_um=2560.0, bin_um=20.0, spot_um=100.0, pitch_um=200.0) for _ in range(3)),
)
N_GENES = 64
MIN_SPOTS, MIN_BINS = 20, 2000  # smaller crops are skipped
RIDGE = 0.03  # in units of the features' variance; about the choice of leave-one-out on sections of 300 spots


def restained(obs: Observation, rng: np.random.Generator) -> tuple[Observation, np.ndarray]:
    """Change staining, light and scanner of a section at random.

    Returns
    -------
    The section with the new image, and the change of brightness per bin, ``(ny, nx)`` float32.
    """
    light = obs.he.astype(np.float32) / 255
    shape = light.shape[1:]
    field = rng.uniform(0, 0.15) * random_field(rng, obs.grid.shape, max(obs.grid.shape) / 4)
    k = obs.he_per_bin
    density = -np.log(np.clip(light, 1 / 256, 1)) * np.exp(rng.normal(0, 0.2, (3, 1, 1))).astype(np.float32)
    density = density * np.exp(field).repeat(k, 0).repeat(k, 1)[: shape[0], : shape[1]]
    image = np.exp(-density) ** rng.uniform(0.8, 1.25) * rng.uniform(0.75, 1)
    image = ndimage.gaussian_filter(image, (0, *[rng.uniform(0, 0.7) * k / 2] * 2))
    image = image + rng.uniform(0, 0.02) * rng.standard_normal(image.shape, dtype=np.float32)
    return replace(obs, he=(np.clip(image, 0, 1) * 255 + 0.5).astype(np.uint8)), field.astype(np.float32)


def teacher_maps(rate: np.ndarray, inside: np.ndarray, depth: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Leading components of the true expression in every bin, of unit variance.

    Parameters
    ----------
    rate
        ``(genes, ny, nx)`` expected counts per bin.
    inside
        Bins in tissue.
    depth
        ``(genes,)`` mean counts per spot.

    Returns
    -------
    Maps ``(N_TEACHER, ny, nx)`` float32, and their weights ``(N_TEACHER,)``, which sum to one.
    """
    roots = np.sqrt(rate[:, inside])
    roots = roots - roots.mean(1, keepdims=True)
    # As in `distill`, genes are weighted by depth, but weakly, so that a few abundant genes do not dominate.
    roots *= (np.maximum(depth, 1e-9) ** 0.25 / np.maximum(roots.std(1), 1e-9))[:, None]
    values, vectors = np.linalg.eigh(roots @ roots.T / roots.shape[1])
    values, vectors = values[::-1][:N_TEACHER], vectors[:, ::-1][:, :N_TEACHER]
    maps = np.zeros((N_TEACHER, *inside.shape), np.float32)
    maps[: len(values), inside] = (vectors.T @ roots) / np.sqrt(np.maximum(values, 1e-12))[:, None]
    weight = np.zeros(N_TEACHER, np.float32)
    weight[: len(values)] = np.sqrt(np.maximum(values, 0))
    return maps, weight / weight.sum()


def make_lesson(path: Path, seed: int, geometry: dict[str, Any], n_genes: int) -> Path:
    """Simulate a phantom in two stainings and store what the student's training reads, in half precision."""
    phantom = simulate(seed, n_genes=n_genes, **geometry)
    obs = phantom.observation
    other, field = restained(obs, np.random.default_rng([seed, 1]))
    maps, weight = teacher_maps(phantom.rate, obs.inside, obs.counts.mean(0))
    matrix = obs.measurement.matrix.tocoo()
    arrays = {
        "stains": np.stack([he_features(o)[:N_BASE] for o in (obs, other)]).astype(np.float16),
        "nuisance": field.astype(np.float16),
        "teacher": maps.astype(np.float16),
        "weight": weight,
        "inside": obs.inside.astype(np.uint8),
        "row": matrix.row.astype(np.int32),
        "col": matrix.col.astype(np.int32),
        "share": (matrix.data / obs.measurement.area[matrix.row]).astype(np.float32),
        "log_bin": np.array([np.log2(obs.grid.bin_um / 10)], np.float32),
    }
    scratch = path.with_suffix(".part")
    save_file({name: np.ascontiguousarray(a) for name, a in arrays.items()}, scratch)
    scratch.rename(path)
    return path


def readout(features: Tensor, pooled: Tensor, taught: Tensor) -> Tensor:
    """Ridge regression at the spots, applied in the bins.

    Parameters
    ----------
    features
        ``(f, bins)``.
    pooled
        ``(f, spots)`` features averaged over footprints.
    taught
        ``(k, spots)`` targets at the spots.

    Returns
    -------
    ``(k, bins)``
    """
    centre, mean = pooled.mean(1, keepdim=True), taught.mean(1, keepdim=True)
    scale = (pooled - centre).square().mean(1, keepdim=True).add(1e-6).rsqrt()
    x, y = (pooled - centre) * scale, taught - mean
    gram = x @ x.T / x.shape[1] + RIDGE * torch.eye(len(x), device=x.device)
    weights = torch.linalg.solve(gram, x @ y.T / x.shape[1])
    return weights.T @ ((features - centre) * scale) + mean


def student_loss(student: HEStudent, probe: torch.nn.Module, lesson: dict[str, Tensor]) -> tuple[Tensor, ...]:
    """Distillation, invariance and nuisance losses of one section, each about one for an untrained student.

    Parameters
    ----------
    student
        The network.
    probe
        Predicts the change of brightness from the nuisance branch.
    lesson
        Arrays of :func:`make_lesson` as float32.
    """
    inside = lesson["inside"].flatten() > 0
    n_spots = int(lesson["row"].max()) + 1
    features, nuisance = student(lesson["stains"], lesson["log_bin"].expand(2, 1))
    teacher = lesson["teacher"].flatten(1)

    def pool(maps: Tensor) -> Tensor:
        sums = maps.new_zeros(len(maps), n_spots)
        return sums.index_add(1, lesson["row"], maps[:, lesson["col"]] * lesson["share"])

    flat = features.flatten(2)
    taught = pool(teacher)
    errors = []
    for maps in flat:
        found = readout(maps, pool(maps), taught)
        error = (found - teacher)[:, inside].square().mean(1)
        errors.append((error / teacher[:, inside].var(1).clamp(min=1e-3)).clamp(max=4) @ lesson["weight"])
    spread = flat[..., inside].var(2).mean(0) + 1e-3
    invariance = ((flat[0] - flat[1])[:, inside].square().mean(1) / spread).mean()
    field = lesson["nuisance"].flatten()[inside]
    seen = probe((nuisance[1] - nuisance[0]).flatten(1)[:, inside].T)[:, 0]
    nuisance_loss = functional.mse_loss(seen, field) / (field.var() + 1e-3)
    return torch.stack(errors).mean(), invariance, nuisance_loss


def draw_lesson(path: Path, crop: int, rng: np.random.Generator | None) -> dict[str, Tensor]:
    """Load a lesson as float32; with ``rng`` a random crop of it, with the spots that are entirely inside."""
    arrays = load_file(path)
    if rng is not None:
        n = len(arrays["inside"])
        y, x = rng.integers(0, n - crop + 1, 2)
        for name in ("stains", "nuisance", "teacher", "inside"):
            arrays[name] = arrays[name][..., y : y + crop, x : x + crop]
        row, (in_y, in_x) = arrays["row"], np.divmod(arrays["col"], n)
        on = (in_y >= y) & (in_y < y + crop) & (in_x >= x) & (in_x < x + crop)
        whole = np.bincount(row[on], arrays["share"][on], row.max() + 1) > 0.999
        on &= whole[row]
        arrays["row"], arrays["share"] = (np.cumsum(whole) - 1)[row[on]], arrays["share"][on]
        arrays["col"] = (in_y[on] - y) * crop + in_x[on] - x
    whole_numbers = ("row", "col")
    return {k: torch.from_numpy(v.astype(np.int64 if k in whole_numbers else np.float32)) for k, v in arrays.items()}


def train_student(config: StudentConfig, spec: ModelSpec, *, output: Path, n_workers: int) -> HEStudent:
    """Train the student, or load it if it is stored with its lessons; returns the averaged weights.

    Parameters
    ----------
    config
        See :class:`~hadmst_sc.train.config.StudentConfig`.
    spec
        Specification of the network.
    output
        Directory of the run; lessons and ``student_<key>.safetensors`` are in its folder ``config.directory``. The key
        depends on ``config`` and ``spec``.
    n_workers
        Number of processes that make lessons.
    """
    key = key_of(replace(config, directory=""), spec.student, spec.student_branches)
    target = output / config.directory / f"student_{key}.safetensors"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.first_seed)
        student = HEStudent(N_BASE, spec.student, *spec.student_branches)
        probe = torch.nn.Linear(spec.student_branches[1], 1)
    if target.exists():
        student.load_state_dict(load_torch(target))
        return student.eval()
    paths = _lessons(target.parent, config, n_workers)
    student = student.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    average = AveragedModel(student, avg_fn=ema(0.998))
    parameters = [*student.parameters(), *probe.parameters()]
    optimizer = torch.optim.AdamW(parameters, config.learning_rate, betas=(0.9, 0.99), weight_decay=1e-4)
    recent = []
    for step in range(config.steps):
        rng = np.random.default_rng([config.first_seed, step])
        lesson = draw_lesson(paths[rng.integers(len(paths))], config.crop, rng)
        if len(lesson["row"].unique()) < MIN_SPOTS or lesson["inside"].sum() < MIN_BINS:
            continue
        for group in optimizer.param_groups:
            group["lr"] = cosine(config.learning_rate, step, config.steps, 50)
        losses = student_loss(student, probe, lesson)
        loss = losses[0] + config.invariance * losses[1] + config.nuisance * losses[2]
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        optimizer.step()
        average.update_parameters(student)
        recent.append([value.item() for value in losses])
        if (step + 1) % 100 == 0:
            distillation, invariance, nuisance = np.mean(recent, 0)
            logger.info("student %d  %.4f  %.4f  %.4f", step + 1, distillation, invariance, nuisance)
            recent.clear()
    student = cast(HEStudent, average.module)
    save_torch({k: v.contiguous() for k, v in student.state_dict().items()}, target)
    return student.eval()


def _lessons(directory: Path, config: StudentConfig, n_workers: int) -> list[Path]:
    directory.mkdir(parents=True, exist_ok=True)
    seeds = range(config.first_seed, config.first_seed + config.n_phantoms)
    paths = [directory / f"{seed:06d}_{i % len(KINDS):02d}.safetensors" for i, seed in enumerate(seeds)]
    missing = [(i, path) for i, path in enumerate(paths) if not path.exists()]
    if missing:
        with ProcessPoolExecutor(n_workers, get_context("spawn")) as pool:
            kinds = [KINDS[i % len(KINDS)].geometry() for i, _ in missing]
            jobs = [
                pool.submit(make_lesson, path, seeds[i], kind, N_GENES)
                for (i, path), kind in zip(missing, kinds, strict=True)
            ]
            for job in jobs:
                job.result()
    return paths
