from __future__ import annotations

from dataclasses import replace

import pytest

from hadmst_sc.train.config import BankConfig, SectionKind, TrainConfig


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
    )
    model = {"widths": (8, 8, 8), "encoder": (8, 4), "embed": 8}
    return TrainConfig(
        steps=8,
        crop=32,
        sections=2,
        genes=3,
        warmup=2,
        log_every=2,
        checkpoint_every=3,
        threads=1,
        bank=bank,
        model=model,
    )


@pytest.fixture(scope="session")
def shared_bank(tiny, tmp_path_factory):
    """The phantoms of ``tiny``, made once by worker processes."""
    from hadmst_sc.train.data import Bank

    directory = tmp_path_factory.mktemp("bank")
    bank = Bank(directory, tiny.bank)
    _ = bank[1]
    bank.close()
    return directory


@pytest.fixture
def with_bank(tiny, shared_bank):
    return replace(tiny, bank=replace(tiny.bank, directory=str(shared_bank)))
