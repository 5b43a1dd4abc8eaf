"""The student: its readout is ridge regression, it learns, and a new staining moves the image but not the tissue."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from hadmst_sc.models import HEStudent
from hadmst_sc.phantom.simulate import simulate
from hadmst_sc.section.features import N_BASE
from hadmst_sc.train.config import SectionKind
from hadmst_sc.train.loop import train
from hadmst_sc.train.student import draw_lesson, make_lesson, readout, restained, student_loss, teacher_maps


@pytest.fixture(scope="module")
def lesson_path(tmp_path_factory):
    path = tmp_path_factory.mktemp("lessons") / "lesson.safetensors"
    return make_lesson(path, 61_000, SectionKind(size_um=800.0).geometry(), 8)


def test_readout_recovers_a_linear_law_from_the_spots():
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(4, 400, generator=generator)
    pooled = features.view(4, 40, 10).mean(2)
    law = torch.tensor([[1.0, -2.0, 0.0, 0.5]])
    found = readout(features, pooled, law @ pooled)
    assert torch.corrcoef(torch.cat([found, law @ features]))[0, 1] > 0.999


def test_a_student_learns_its_lesson(lesson_path):
    torch.manual_seed(0)
    student, probe = HEStudent(N_BASE, (8, 8, 8), 6, 2), torch.nn.Linear(2, 1)
    optimizer = torch.optim.Adam([*student.parameters(), *probe.parameters()], 5e-3)
    lesson = draw_lesson(lesson_path, 80, None)
    losses = []
    for _ in range(30):
        optimizer.zero_grad()
        parts = student_loss(student, probe, lesson)
        (parts[0] + 0.1 * parts[1] + 0.1 * parts[2]).backward()
        optimizer.step()
        losses.append([part.item() for part in parts])
    assert losses[-1][0] < 0.9 * losses[0][0]  # distillation
    assert losses[-1][2] < losses[0][2]  # nuisance


def test_crops_of_a_lesson_keep_whole_spots_alone(lesson_path):
    lesson = draw_lesson(lesson_path, 48, np.random.default_rng(0))
    assert lesson["stains"].shape == (2, N_BASE, 48, 48)
    share = torch.zeros(int(lesson["row"].max()) + 1).index_add(0, lesson["row"], lesson["share"])
    torch.testing.assert_close(share, torch.ones_like(share), rtol=1e-3, atol=1e-3)


def test_a_new_staining_changes_the_image_and_nothing_else():
    obs = simulate(61_001, size_um=800.0, n_genes=3).observation
    other, field = restained(obs, np.random.default_rng(0))
    assert other.counts is obs.counts and field.shape == obs.grid.shape
    assert np.abs(other.he.astype(int) - obs.he).mean() > 3
    assert np.corrcoef(other.he.mean(0).ravel(), obs.he.mean(0).ravel())[0, 1] > 0.8


def test_the_teacher_knows_the_leading_component():
    rng = np.random.default_rng(0)
    programme = rng.standard_normal((20, 20))
    rate = np.exp(0.5 * programme * rng.choice([-1, 1], 12)[:, None, None])
    maps, weight = teacher_maps(rate, np.ones((20, 20), bool), np.full(12, 5.0))
    assert abs(np.corrcoef(maps[0].ravel(), programme.ravel())[0, 1]) > 0.95
    assert weight[0] == weight.max() and weight.sum() == pytest.approx(1)


def test_a_trained_student_is_frozen_and_ships_with_the_model(with_bank, real, shared_output, tmp_path):
    model = train(with_bank, output=tmp_path, sections=real, until=2)
    (file,) = (shared_output / "lessons").glob("student_*")
    stored = load_file(file)
    assert all(torch.equal(value, stored[name]) for name, value in model.student.state_dict().items())


def test_features_of_a_tile_are_those_of_the_slide():
    torch.manual_seed(0)
    student = HEStudent(N_BASE, (8, 8, 8), 6, 2).double().eval()
    maps = torch.randn(1, N_BASE, 128, 128, dtype=torch.float64)
    log_bin = torch.zeros(1, 1, dtype=torch.float64)
    with torch.no_grad():
        whole, part = student(maps, log_bin)[0], student(maps[..., 16:112, 16:112], log_bin)[0]
    torch.testing.assert_close(part[..., 36:60, 36:60], whole[..., 52:76, 52:76])
