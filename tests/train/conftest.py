from __future__ import annotations

from dataclasses import replace

import pytest

from hadmst_sc.train.config import BankConfig, SectionKind, StudentConfig, TrainConfig


@pytest.fixture(scope="session")
def tiny() -> TrainConfig:
    """A configuration that trains in seconds."""
    bank = BankConfig(
        first_seed=50_000,
        n_phantoms=2,
        n_genes=6,
        n_workers=1,
        start_with=1,
        steps_per_phantom=3,
        kinds=(SectionKind(size_um=800.0),),
        n_masked=2,
    )
    student = StudentConfig(first_seed=60_000, n_phantoms=1, steps=2, crop=96)
    model = {"widths": (8, 8, 8), "encoder": (8, 4), "embed": 8, "student": (8, 8, 8), "alignment": 8}
    return TrainConfig(
        steps=8,
        crop=32,
        sections=2,
        genes=3,
        warmup=2,
        log_every=2,
        checkpoint_every=3,
        threads=1,
        student=student,
        bank=bank,
        model=model,
    )


@pytest.fixture(scope="session")
def student(tiny):
    """A student that knows nothing yet."""
    from hadmst_sc.train.loop import build_model

    return build_model(tiny).student


@pytest.fixture(scope="session")
def real():
    """A phantom that stands for a real section: nobody looks at its rate."""
    from hadmst_sc.phantom.simulate import simulate
    from hadmst_sc.train.bank import RealSection

    obs = simulate(70_000, size_um=800.0, n_genes=6, depth=(2.0, 40.0)).observation
    return {"section_10": RealSection(obs)}


@pytest.fixture(scope="session")
def shared_output(tiny, real, tmp_path_factory):
    """Lessons, student and bank of ``tiny``, made once by worker processes."""
    from hadmst_sc.train.loop import train

    output = tmp_path_factory.mktemp("run")
    train(tiny, output=output, sections=real, until=1)
    return output


@pytest.fixture
def with_bank(tiny, shared_output):
    """``tiny`` with what ``shared_output`` holds."""
    lessons, bank = (str(shared_output / name) for name in ("lessons", "bank"))
    return replace(tiny, bank=replace(tiny.bank, directory=bank), student=replace(tiny.student, directory=lessons))


@pytest.fixture
def bank(with_bank, shared_output, real):
    """Opened, complete."""
    from hadmst_sc.train.bank import Bank
    from hadmst_sc.train.loop import build_model
    from hadmst_sc.train.student import train_student

    student = train_student(with_bank.student, build_model(with_bank).spec, output=shared_output, n_workers=1)
    bank = Bank(shared_output / "bank", with_bank.bank, student, real)
    assert not bank._jobs
    yield bank
    bank.close()
