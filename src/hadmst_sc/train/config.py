"""The training configuration: one TOML file, every default visible here."""

from __future__ import annotations

import tomllib
from dataclasses import MISSING, asdict, dataclass, field, fields
from math import inf
from pathlib import Path
from typing import Any, cast


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

    directory: str = "lessons"  # relative to the output directory
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


def _is(value: Any, *kinds: type) -> bool:
    """Of one of the types; to Python ``true`` would be a number."""
    return isinstance(value, kinds) and not isinstance(value, bool)


_NUMBERS = ("bin_um", "spot_um", "pitch_um", "um_per_unit")  # of OwnConfig


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

    def __post_init__(self) -> None:
        values = {name: value for name, value in vars(self).items() if value is not None}
        genes = values.pop("genes", 1)
        if not (_is(genes, int) or (isinstance(genes, tuple) and all(_is(gene, str) for gene in genes))):
            raise ValueError(f"`genes` needs a list of names or a number, but is {genes!r}.")
        for name in values.keys() - set(_NUMBERS):
            if not _is(values[name], str):
                raise ValueError(f"`{name}` needs text in quotes, but is {values[name]!r}.")
        for name in values.keys() & set(_NUMBERS):
            if not (_is(values[name], int, float) and 0 < values[name] < inf):
                raise ValueError(f"`{name}` needs a positive number, but is {values[name]!r}.")
        if not (self.path and self.image_key):
            raise ValueError("`path` and `image_key` need to name a store and its H&E, but one is empty.")
        if self.truth_key and self.table_key:
            raise ValueError(
                "`truth_key` and `table_key` exclude each other: spots are made of one, or are the other. Remove one."
            )
        if self.truth_key and self.um_per_unit is None:
            raise ValueError(
                "`truth_key` needs `um_per_unit`, the µm per unit of its positions. Set `um_per_unit = 1.0` for "
                "Xenium, `microns_per_pixel` of scalefactors_json.json for Visium HD."
            )
        if self.um_per_unit is not None and not self.truth_key:
            raise ValueError("`um_per_unit` needs `truth_key`. Sizes of spots are `spot_um` and `pitch_um`.")


@dataclass(frozen=True)
class BankConfig:
    """Sections with their priors, made once by worker processes and cached."""

    directory: str = "bank"  # relative to the output directory
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


_TABLES = {"bank": BankConfig, "student": StudentConfig}
_LISTS = {"kinds": lambda item: SectionKind, "real": lambda item: RealConfig if "name" in item else OwnConfig}


def _build(kind: type, values: dict[str, Any], where: str) -> Any:
    known = {f.name: f for f in fields(kind)}
    unknown = sorted(set(values) - set(known))
    if unknown:
        raise ValueError(f"`{where}` has unknown keys {unknown}; known are {sorted(known)}. Remove or rename them.")
    required = [name for name, f in known.items() if f.default is MISSING and f.default_factory is MISSING]
    missing = [name for name in required if name not in values]
    if missing:
        raise ValueError(f"`{where}` needs {missing}, which it lacks. Add `{missing[0]} = ...`.")
    nested: dict[str, Any] = {}
    for name, value in values.items():
        if name in _TABLES and isinstance(value, dict):
            value = _build(_TABLES[name], value, f"{where}.{name}")
        elif name in _LISTS:
            value = tuple(
                _build(_LISTS[name](item), item, f"{where}.{name}[{number}]") for number, item in enumerate(value, 1)
            )
        elif isinstance(value, list):
            value = tuple(value)
        nested[name] = value
    try:
        return kind(**nested)
    except ValueError as error:
        raise ValueError(f"`{where}`: {error}") from error


def load_config(path: str | Path) -> TrainConfig:
    """Read a TOML file.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If a key is unknown, with the known ones; if one is missing or has a bad value. Entries of lists are named by
        their number, from 1.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"`config` needs a TOML file, but {path} does not exist. Try `training/default.toml`.")
    return cast(TrainConfig, _build(TrainConfig, tomllib.loads(path.read_text()), path.name))
