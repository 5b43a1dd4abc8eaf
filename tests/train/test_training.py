"""Training learns, resumes bit for bit, and refuses what it cannot continue."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from threadpoolctl import threadpool_limits

from hadmst_sc.diffusion.denoiser import Residual
from hadmst_sc.distillation.components import CONTEXT
from hadmst_sc.distillation.genes import PRIORS, TOKEN
from hadmst_sc.models.weights import save_model
from hadmst_sc.train import bank as bank_module
from hadmst_sc.train import loop
from hadmst_sc.train.bank import Bank, RealSection, make_masked, make_phantom
from hadmst_sc.train.config import SectionKind, TrainConfig, load_config
from hadmst_sc.train.data import draw_batch, without_he
from hadmst_sc.train.loop import build_model, learning_rate, train
from hadmst_sc.train.losses import TrainingStep, deviance


def test_resumed_training_equals_uninterrupted_training_bit_for_bit(with_bank, real, tmp_path):
    train(with_bank, sections=real, output=tmp_path / "whole")
    for stop in (2, 5, 8):  # before, between and after checkpoints
        train(with_bank, sections=real, output=tmp_path / "pieces", until=stop)
    whole, pieces = (load_file(tmp_path / run / "checkpoint.safetensors") for run in ("whole", "pieces"))
    assert set(whole) == set(pieces)
    assert all(torch.equal(whole[name], pieces[name]) for name in whole)


def test_a_checkpoint_of_another_configuration_is_refused(with_bank, real, tmp_path):
    train(with_bank, sections=real, output=tmp_path, until=1)
    with pytest.raises(ValueError, match="`config` differs"):
        train(replace(with_bank, learning_rate=1e-5), sections=real, output=tmp_path)


def test_a_checkpoint_of_other_sections_or_other_weights_is_refused(with_bank, real, tmp_path):
    train(with_bank, sections=real, output=tmp_path / "first", until=1)
    obs = real["section_10"].obs
    other = {"section_10": RealSection(replace(obs, counts=obs.counts[:, ::-1].copy()))}
    with pytest.raises(ValueError, match=r"content of `sections` differs .*another output folder, or `resume=False`"):
        train(with_bank, sections=other, output=tmp_path / "first")
    model, start = train(with_bank, sections=real, output=tmp_path / "first", until=1), tmp_path / "start.safetensors"
    again = replace(with_bank, start_from=str(start), model={})
    save_model(model, start, card={})
    train(again, sections=real, output=tmp_path / "second", until=1)
    next(iter(model.parameters())).data += 1.0
    save_model(model, start, card={})
    with pytest.raises(ValueError, match="weights that training starts from differ"):
        train(again, sections=real, output=tmp_path / "second")


def test_states_of_the_optimisers_go_where_the_parameters_are(with_bank, real, tmp_path, monkeypatch):
    train(with_bank, sections=real, output=tmp_path, until=1)

    class ToAnother(loop.Fabric):  # a change of type stands for one of device
        def setup(self, module, optimizer):
            module.double()
            return super().setup(module, optimizer)

    made = []
    monkeypatch.setattr(loop, "Fabric", ToAnother)
    monkeypatch.setattr(loop, "_State", lambda config, plain=loop._State: made.append(plain(config)) or made[-1])
    train(with_bank, sections=real, output=tmp_path, until=1)
    (state,) = made
    moments = [value for one in state.optimizer.state.values() for name, value in one.items() if name != "step"]
    assert moments and {value.dtype for value in moments} == {torch.float64}


def test_files_of_a_bank_are_used_by_what_would_make_the_same_alone(with_bank, student, real, tmp_path, monkeypatch):
    class Nobody:  # takes jobs and does none
        def __init__(self, *_):
            pass

        def submit(self, make, path, *_):
            return path

    monkeypatch.setattr(bank_module, "ProcessPoolExecutor", Nobody)

    def names(config=with_bank.bank, of=student, sections=real):
        return set(Bank(tmp_path, config, of, sections)._jobs)

    another = copy.deepcopy(student)
    next(iter(another.parameters())).data += 1
    changed = {"section_10": RealSection(real["section_10"].obs.subset_spots(range(30)))}
    kinds = (SectionKind(size_um=800.0, bin_um=20.0),)
    assert names() == names(replace(with_bank.bank, n_workers=7, start_with=2, directory="elsewhere"))
    assert not names() & names(of=another) and not names() & names(replace(with_bank.bank, n_genes=5))
    assert {path.name[:7] for path in names() & names(sections=changed)} == {"phantom"}
    assert {path.name[:7] for path in names() & names(replace(with_bank.bank, kinds=kinds))} == {"section"}


def test_no_resume_starts_again(with_bank, real, tmp_path):
    train(with_bank, sections=real, output=tmp_path, until=3)
    train(with_bank, sections=real, output=tmp_path / "fresh", until=1)
    train(with_bank, sections=real, output=tmp_path, resume=False, until=1)
    again, fresh = (load_file(p / "checkpoint.safetensors") for p in (tmp_path, tmp_path / "fresh"))
    assert all(torch.equal(again[name], fresh[name]) for name in fresh)


def test_training_on_one_batch_lowers_both_losses(with_bank, bank):
    batch = draw_batch(bank, with_bank, 0, 0)
    module = TrainingStep(build_model(with_bank))
    optimizer = torch.optim.AdamW(module.parameters(), 3e-3)
    generator = torch.Generator().manual_seed(0)
    sigma, noise = torch.full((2,), 0.8), torch.randn(2, 1, 32, 32, generator=generator)
    no_draws = torch.zeros(2, 0, 32, 32)
    losses = []
    for _ in range(30):
        optimizer.zero_grad()
        loss, _ = module(batch, 4, sigma, noise, no_draws)
        (loss.mean + loss.denoising).backward()
        optimizer.step()
        losses.append((loss.mean.item(), loss.denoising.item()))
    first, last = losses[0], losses[-1]
    assert last[0] < 0.95 * first[0] and last[1] < 0.8 * first[1]


def test_an_untrained_network_has_the_loss_of_the_closed_form(with_bank, bank):
    batch = draw_batch(bank, with_bank, 0, 0)
    module = TrainingStep(build_model(with_bank))
    loss, _ = module(batch, 6, torch.zeros(0), torch.zeros(0, 1, 32, 32), torch.zeros(2, 0, 32, 32))
    assert 0 < loss.mean.item() < 1


def test_batches_depend_on_seed_and_step_alone(with_bank, bank):
    first, second = (draw_batch(bank, with_bank, 5, 0) for _ in range(2))
    other = draw_batch(bank, with_bank, 6, 0)
    assert torch.equal(first.priors, second.priors) and not torch.equal(first.priors, other.priors)


def test_a_bank_is_the_same_whoever_makes_it(with_bank, shared_output, tmp_path):
    trained = build_model(with_bank).student
    (stored,) = (shared_output / "lessons").glob("student_*")
    trained.load_state_dict(load_file(stored))
    here = make_phantom(tmp_path / "here.safetensors", 50_001, with_bank.bank, trained)
    (other,) = (shared_output / "bank").glob("phantom_050001_*")
    a, b = load_file(here), load_file(other)
    apart = {
        name: float((a[name].float() - b[name].float()).abs().max()) for name in b if not torch.equal(a[name], b[name])
    }
    assert not apart


def test_a_bank_is_the_same_with_any_number_of_threads(with_bank, student, real, tmp_path):
    for threads in (1, 2):
        with threadpool_limits(threads, user_api="blas"):
            make_phantom(tmp_path / f"phantom_{threads}", 50_001, with_bank.bank, student)
            make_masked(tmp_path / f"masked_{threads}", 1, real["section_10"], with_bank.bank, student)
    for name in ("phantom", "masked"):
        assert (tmp_path / f"{name}_1").read_bytes() == (tmp_path / f"{name}_2").read_bytes()


def test_without_he_the_token_priors_and_context_forget_the_image():
    rng = np.random.default_rng(0)
    crop = {
        "priors": rng.random((2, len(PRIORS), 3, 3), np.float32),
        "token": np.ones((2, len(TOKEN)), np.float32),
        "context": rng.random((1, CONTEXT.n_channels, 3, 3), np.float32),
        "known": np.ones(1, np.float32),
    }
    blind = without_he(crop)
    for index, name in enumerate(PRIORS):
        expected = 1 if name in ("he", "texture") else crop["priors"][:, PRIORS.index("space")]
        assert (blind["priors"][:, index] == expected).all()
    assert (blind["token"][:, TOKEN.index("r2_he")] == 0).all() and not blind["context"][:, CONTEXT.from_image].any()
    assert (blind["context"][:, CONTEXT.of("joint")] == crop["context"][:, CONTEXT.of("space")]).all()
    assert not blind["known"].any() and crop["context"].all()


def test_deviance_is_zero_at_the_target_and_positive_elsewhere():
    target = torch.tensor([0.1, 1.0, 7.0])
    assert deviance(target.log(), target).abs().max() < 1e-5
    assert (deviance(target.log() + 0.3, target) > 0).all()


def test_residual_scale_makes_errors_of_order_one(bank):
    section = bank.phantom(0)
    from hadmst_sc.diffusion.denoiser import first_closed_form

    base = first_closed_form(torch.from_numpy(section["priors"].astype(np.float32)))
    x = Residual(base).encode(torch.from_numpy(section["target"].astype(np.float32)))
    assert 0.3 < x[:, torch.from_numpy(section["inside"] > 0)].std().item() < 3


def test_learning_rate_warms_up_and_decays():
    config = TrainConfig(steps=1000, warmup=50)
    assert learning_rate(config, 0) == pytest.approx(config.learning_rate / 50)
    assert learning_rate(config, 1000) == pytest.approx(0.03 * config.learning_rate)


def test_config_refuses_unknown_keys_by_name(tmp_path):
    (tmp_path / "a.toml").write_text("steps = 3\nlerning_rate = 1.0\n")
    with pytest.raises(ValueError, match=r"unknown keys \['lerning_rate'\]; known keys are .*'learning_rate'"):
        load_config(tmp_path / "a.toml")


def test_config_that_is_not_there_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere\.toml"):
        load_config(tmp_path / "nowhere.toml")


CONFIGURATIONS = ("phantoms", "default", "breast_only", "brain_only", "fine_tune")


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_committed_configurations_read_and_stay_off_the_test_seeds(root, name):
    config = load_config(root / "training" / f"{name}.toml")
    for part in (config.bank, config.student):
        assert part.first_seed + part.n_phantoms <= 100_000
    assert config.crop % 4 == 0


def test_no_split_trains_on_what_it_is_scored_on(root):
    breast, brain, every = (
        {section.name for section in load_config(root / "training" / f"{name}.toml").bank.real}
        for name in ("breast_only", "brain_only", "default")
    )
    assert breast and all("her2st" in name or "breast" in name for name in breast)
    assert brain and not any("her2st" in name or "breast" in name for name in brain)
    assert "xenium_breast_crop" not in every  # the truth of the benchmark
