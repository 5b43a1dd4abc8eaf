"""The training configuration: every setting with its default. :mod:`.config` reads and checks a TOML file."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True)
class SectionKind:
    """One platform geometry of the training phantoms."""

    size_um: float = 1920.0
    bin_um: float = 10.0
    spot_um: float = 55.0
    pitch_um: float = 100.0
    share: float = 1.0  # of the phantoms, relative to the other kinds

    def geometry(self) -> dict[str, Any]:
        """Arguments of ``simulate``."""
        return {"size_um": self.size_um, "bin_um": self.bin_um, "spot_um": self.spot_um, "pitch_um": self.pitch_um}


@dataclass(frozen=True)
class StudentConfig:
    """The H&E student, trained before the bank is made."""

    directory: str = "lessons"  # in the output folder
    first_seed: int = 2000
    n_phantoms: int = 320
    steps: int = 4500
    crop: int = 128  # bins
    learning_rate: float = 2e-3
    invariance: float = 0.1  # weights of the losses beside distillation
    nuisance: float = 0.1


@dataclass(frozen=True)
class RealConfig:
    """A real section of the data folder, in one size of bins."""

    name: str  # as `datasets.load` or `datasets.load_cells` know it
    bin_um: float = 20.0


@dataclass(frozen=True)
class OwnConfig:
    """A section of one's own, in a zarr store; read as ``tl.superresolve`` reads it, by the same arguments."""

    path: str  # of the store, seen from the folder of the TOML file
    image_key: str
    table_key: str = ""  # "": `table`
    shapes_key: str | None = None
    coordinate_system: str | None = None
    layer: str | None = None
    genes: int | tuple[str, ...] | None = None  # names, or a number for the most informative; `None`: see `own_section`
    bin_um: float = 20.0
    spot_um: float | None = None
    pitch_um: float | None = None
    tissue_key: str | None = None
    truth_key: str | None = None  # table of cells or small bins: spots are made of half of their molecules
    um_per_unit: float | None = None  # of the positions of `truth_key`


@dataclass(frozen=True)
class BankConfig:
    """Sections with their priors, made once by worker processes and cached."""

    directory: str = "bank"  # in the output folder
    first_seed: int = 0  # benchmarks use seeds from 900,000 on: keep below
    n_phantoms: int = 200
    n_genes: int = 64
    n_workers: int = 2
    start_with: int = 24  # phantoms before the first step ...
    steps_per_phantom: int = 8  # ... and then one more every so many steps: a schedule, so that a run can be repeated
    kinds: tuple[SectionKind, ...] = (SectionKind(),)
    real: tuple[RealConfig | OwnConfig, ...] = ()  # with `path`: one's own
    n_masked: int = 8  # times that spots of each are hidden
    hidden_share: tuple[float, float] = (0.1, 0.5)
    window: int = 192  # bins of a real section that are kept


@dataclass(frozen=True)
class TrainConfig:
    """Everything that decides what the weights become."""

    seed: int = 0
    steps: int = 4000
    crop: int = 64  # bins; a multiple of the network's alignment
    sections: int = 3  # per step ...
    genes: int = 8  # ... and genes of each
    learning_rate: float = 1.5e-3
    warmup: int = 50
    weight_decay: float = 1e-4
    ema: float = 0.998
    clip_norm: float = 1.0
    drop_he: float = 0.2  # share of crops without H&E: the network must know what the spots alone can say
    real_share: float = 0.4  # share of crops from real sections, where there are any
    mean_share: float = 0.5  # share of phantom items that train the mean; the others train the denoiser
    alignment: float = 0.1  # weight of the loss of the offsets
    draw: float = 0.0  # weight of the score of draws; 0 trains none
    adversary: float = 0.0  # weight of fooling the discriminator with them; 0 trains none
    adversary_learning_rate: float = 4e-4
    start_from: str = ""  # "default", the bundled weights; or a path, seen from the working directory; "": fresh ones
    log_sigma: tuple[float, float] = (-0.4, 1.3)  # mean and s.d. of ln sigma (Karras et al. 2022, Table 1: -1.2, 1.2)
    checkpoint_every: int = 200
    log_every: int = 25
    accelerator: str = "auto"
    devices: int = 1
    threads: int = 2
    student: StudentConfig = field(default_factory=StudentConfig)
    bank: BankConfig = field(default_factory=BankConfig)
    model: dict[str, Any] = field(default_factory=dict)  # overrides of ModelSpec

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as the weights' card stores them."""
        return asdict(self)
