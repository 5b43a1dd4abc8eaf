"""Training configuration from a TOML file; everything is checked before anything is computed."""

from __future__ import annotations

import difflib
import hashlib
import json
import tomllib
from collections.abc import Callable, Iterable
from dataclasses import MISSING, asdict, dataclass, field, fields
from math import inf
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, cast

from hadmst_sc.runtime import memory_limit
from hadmst_sc.section.arguments import LENGTH, SIZE, Requirement, number, one_of, positive, shown, whole
from hadmst_sc.section.errors import ContractError

__all__ = ["BankConfig", "OwnConfig", "RealConfig", "SectionKind", "StudentConfig", "TrainConfig", "load_config"]


@dataclass(frozen=True)
class SectionKind:
    """One platform geometry of the training phantoms."""

    size_um: float = 1920.0
    bin_um: float = 10.0
    spot_um: float = 55.0
    pitch_um: float = 100.0
    share: float = 1.0  # share of the phantoms, relative to the other kinds

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
    invariance: float = 0.1  # weights of the losses relative to distillation
    nuisance: float = 0.1


@dataclass(frozen=True)
class RealConfig:
    """A real section of the data folder, at one bin size."""

    name: str  # name for `datasets.load` or `datasets.load_cells`
    bin_um: float = 20.0


@dataclass(frozen=True)
class OwnConfig:
    """The user's own section in a zarr store, read with the arguments of ``tl.superresolve``."""

    path: str  # path of the store, relative to the folder of the TOML file
    image_key: str
    table_key: str = ""  # "": `table`
    shapes_key: str | None = None
    coordinate_system: str | None = None
    layer: str | None = None
    genes: int | tuple[str, ...] | None = None  # names, or number of the most informative; `None`: see `own_section`
    bin_um: float = 20.0
    spot_um: float | None = None
    pitch_um: float | None = None
    tissue_key: str | None = None
    truth_key: str | None = None  # table of cells or small bins; spots are simulated from half of their molecules
    um_per_unit: float | None = None  # µm per unit of the positions of `truth_key`


@dataclass(frozen=True)
class BankConfig:
    """Sections with their priors, made once by worker processes and cached."""

    directory: str = "bank"  # in the output folder
    first_seed: int = 0  # keep below 900,000: benchmarks use seeds from there on
    n_phantoms: int = 200
    n_genes: int = 64
    n_workers: int = 2
    start_with: int = 24  # phantoms before the first step ...
    steps_per_phantom: int = 8  # ... and steps per further phantom: a fixed schedule makes runs reproducible
    kinds: tuple[SectionKind, ...] = (SectionKind(),)
    real: tuple[RealConfig | OwnConfig, ...] = ()  # entries with `path` are the user's own sections
    n_masked: int = 8  # random hold-outs of each real section
    hidden_share: tuple[float, float] = (0.1, 0.5)  # range of the share of spots that is held out
    window: int = 192  # edge of the window of a real section that is stored, bins


@dataclass(frozen=True)
class TrainConfig:
    """All settings of a training run.

    Examples
    --------
    >>> config = hd.train.TrainConfig(steps=100)
    >>> config.bank.n_phantoms, config.start_from
    (200, '')
    """

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
    drop_he: float = 0.2  # share of crops without H&E, so that the network also learns to predict from spots alone
    real_share: float = 0.4  # share of crops from real sections, if there are any
    mean_share: float = 0.5  # share of phantom items that train the mean; the others train the denoiser
    alignment: float = 0.1  # weight of the loss of the offsets
    draw: float = 0.0  # weight of the score of one-step samples; 0: not trained
    adversary: float = 0.0  # weight of the adversarial loss of these samples; 0: no discriminator
    adversary_learning_rate: float = 4e-4
    start_from: str = ""  # "default" (the bundled weights), a path relative to the working directory, or "" (random)
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
        """Plain values for the card of the weights."""
        return asdict(self)


def key_of(*made_from: object) -> str:
    """Eight hexadecimal digits for the name of a file that was made from all this: with anything else it is another."""
    return hashlib.sha256(repr(made_from).encode()).hexdigest()[:8]


BYTES_PER_PARAMETER = 24  # float32: weights, their average, gradients, two moments, and a copy in a checkpoint


def _stays_inside(path: Any) -> bool:
    """True if a path stays below the folder that it is relative to, on any operating system."""
    if not isinstance(path, str) or not path.strip("./\\ ") or "\0" in path:
        return False
    return all(
        not pure.is_absolute() and ".." not in pure.parts for pure in (PurePosixPath(path), PureWindowsPath(path))
    )


def _pair(text: str, is_met: Callable[[float, float], bool]) -> Requirement:
    """Requirement of two finite numbers that satisfy ``is_met``."""
    finite = number(-inf).is_met
    return Requirement(
        text, lambda pair: isinstance(pair, tuple) and len(pair) == 2 and all(map(finite, pair)) and is_met(*pair)
    )


def _genes(value: Any) -> bool:
    if isinstance(value, tuple):
        return bool(value) and all(isinstance(gene, str) for gene in value)
    return whole(1).is_met(value)


COUNT, SHARE, WEIGHT, RATE = whole(1, 10**8), number(0, 1), number(0), number(1e-12, 1, text="a positive rate up to 1")
CROP = Requirement("a multiple of 4 bins from 16 to 1,024", lambda n: whole(16, 1024).is_met(n) and n % 4 == 0)
SEED = whole(0, 899_999)  # benchmarks use seeds from 900,000 on
MANY = whole(1, 1024)
FOLDER = Requirement("a folder inside the output folder, without '..'", _stays_inside)
TEXT = Requirement("text in quotes", lambda value: isinstance(value, str))
NAMED = Requirement("non-empty text in quotes", lambda value: isinstance(value, str) and value != "")
TABLE = Requirement("a table", lambda value: isinstance(value, dict))
TABLES = Requirement(
    "a list of tables", lambda value: isinstance(value, tuple) and all(isinstance(one, dict) for one in value)
)
REQUIREMENTS: dict[type, dict[str, Requirement]] = {
    TrainConfig: {
        "seed": SEED,
        "crop": CROP,
        **dict.fromkeys(("steps", "checkpoint_every", "log_every"), COUNT),
        **dict.fromkeys(("sections", "genes", "devices", "threads"), MANY),
        "warmup": whole(0, 10**8),
        **dict.fromkeys(("learning_rate", "adversary_learning_rate"), RATE),
        **dict.fromkeys(("weight_decay", "ema", "drop_he", "real_share", "mean_share"), SHARE),
        "clip_norm": positive(),
        **dict.fromkeys(("alignment", "draw", "adversary"), WEIGHT),
        "start_from": TEXT,
        "log_sigma": _pair(
            "a list of a mean and a positive standard deviation", lambda mean, sd: abs(mean) < 10 > sd > 0
        ),
        "accelerator": one_of("auto", "cpu", "gpu", "cuda", "mps"),
        **dict.fromkeys(("student", "bank", "model"), TABLE),
    },
    StudentConfig: {
        "directory": FOLDER,
        "first_seed": SEED,
        "crop": CROP,
        **dict.fromkeys(("n_phantoms", "steps"), COUNT),
        "learning_rate": RATE,
        **dict.fromkeys(("invariance", "nuisance"), WEIGHT),
    },
    BankConfig: {
        "directory": FOLDER,
        "first_seed": SEED,
        **dict.fromkeys(("n_phantoms", "start_with"), whole(0, 10**6)),
        **dict.fromkeys(("n_genes", "n_masked"), whole(1, 10**5)),
        "n_workers": MANY,
        "steps_per_phantom": COUNT,
        **dict.fromkeys(("kinds", "real"), TABLES),
        "hidden_share": _pair("a list of two shares, 0 < low <= high < 1", lambda low, high: 0 < low <= high < 1),
        "window": CROP,
    },
    SectionKind: {
        "size_um": number(100, 50_000, text="a length of 100 to 50,000 µm"),
        "bin_um": LENGTH,
        **dict.fromkeys(("spot_um", "pitch_um"), SIZE),
        "share": number(0),
    },
    RealConfig: {"name": NAMED, "bin_um": LENGTH},
    OwnConfig: {
        **dict.fromkeys(("path", "image_key"), NAMED),
        "table_key": TEXT,
        **dict.fromkeys(("shapes_key", "coordinate_system", "layer", "tissue_key", "truth_key"), TEXT),
        "genes": Requirement("a list of names or a number", _genes),
        **dict.fromkeys(("bin_um", "spot_um", "pitch_um", "um_per_unit"), positive()),
    },
}
TABLES_OF: dict[str, type] = {"bank": BankConfig, "student": StudentConfig}
LISTS_OF: dict[str, Callable[[dict[str, Any]], type]] = {
    "kinds": lambda item: SectionKind,
    "real": lambda item: RealConfig if "name" in item else OwnConfig,
}


def load_config(path: str | Path) -> TrainConfig:
    """Read a TOML file.

    Parameters
    ----------
    path
        The file; settings that it leaves out have the defaults of :class:`TrainConfig`.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If the file is not TOML, or keys are unknown, missing or have a wrong type or value. All problems are reported
        at once, each with its table. Entries of lists are numbered from 1.

    Examples
    --------
    >>> from pathlib import Path
    >>> _ = Path("mine.toml").write_text("steps = 100")
    >>> hd.train.load_config("mine.toml").steps
    100
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"`config` needs a TOML file, but {path} does not exist. Try `training/default.toml`.")
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"`config` needs a TOML file, but {path.name} is not valid: {error}. Correct it.") from error
    problems: list[str] = []
    config = _built(TrainConfig, values, path.name, problems)
    if config is not None:
        problems += _contradictions(config, path.name) + _model_problems(config, path.name)
    if len(problems) == 1:
        raise ValueError(problems[0])
    if problems:
        raise ContractError(f"`{path.name}` cannot be used for training", problems)
    return cast(TrainConfig, config)


def _built(kind: type, values: dict[str, Any], where: str, problems: list[str]) -> Any:
    """Build a part of the configuration; ``None`` if there are problems, which are appended to ``problems``."""
    before, known = len(problems), {one.name: one for one in fields(kind)}
    problems += _unknown(values, known, where)
    needed = [name for name, one in known.items() if one.default is MISSING and one.default_factory is MISSING]
    if missing := [name for name in needed if name not in values]:
        problems.append(f"`{where}` needs {missing}, which it does not have. Add `{missing[0]} = ...`.")
    found = {name: _part(kind, name, values[name], where, problems) for name in known if name in values}
    if len(problems) == before and kind is OwnConfig:
        problems += [f"`{where}`: {problem}" for problem in _own_contradictions(OwnConfig(**found))]
    return kind(**found) if len(problems) == before else None


def _unknown(values: dict[str, Any], known: Iterable[str], where: str) -> list[str]:
    """One problem for all unknown keys, with close matches as a hint; empty if all keys are known."""
    known = sorted(known)
    unknown = sorted(set(values) - set(known))
    if not unknown:
        return []
    close = [f"`{match[0]}`" for name in unknown if (match := difflib.get_close_matches(name, known, n=1))]
    hint = f"Did you mean {' and '.join(close)}?" if close else "Remove them."
    return [f"`{where}` has unknown keys {unknown}; known keys are {known}. {hint}"]


def _part(kind: type, name: str, value: Any, where: str, problems: list[str]) -> Any:
    """Check a value; build what it describes if it is a table or a list of tables."""
    value = tuple(value) if isinstance(value, list) else value
    requirement = REQUIREMENTS[kind][name]
    if not requirement.is_met(value):
        problems.append(f"`{where}`: `{name}` needs {requirement.text}, but is {shown(value)}. {_remedy(kind, name)}")
    elif name in TABLES_OF and kind is TrainConfig:
        return _built(TABLES_OF[name], value, f"{where}.{name}", problems)
    elif name in LISTS_OF and kind is BankConfig:
        items = enumerate(value, 1)
        return tuple(_built(LISTS_OF[name](one), one, f"{where}.{name}[{n}]", problems) for n, one in items)
    return value


def _remedy(kind: type, name: str) -> str:
    """Remedy that sets the default as TOML, if there is one."""
    default = next(one.default for one in fields(kind) if one.name == name)
    if default is MISSING or default is None:
        return f"Remove `{name}`." if default is None else f"Correct `{name}`."
    if isinstance(default, tuple) and name in LISTS_OF:
        return f"Write `[[bank.{name}]]` above each entry."
    return f"Set `{name} = {json.dumps(default)}`."


def _own_contradictions(own: OwnConfig) -> list[str]:
    found = []
    if own.truth_key and own.table_key:
        found.append(
            "`truth_key` and `table_key` exclude each other: spots are simulated from the one or read from the other. "
            "Remove one."
        )
    if own.truth_key and own.um_per_unit is None:
        found.append(
            "`truth_key` needs `um_per_unit`, the µm per unit of its positions. Set `um_per_unit = 1.0` for "
            "Xenium, `microns_per_pixel` of scalefactors_json.json for Visium HD."
        )
    if own.um_per_unit is not None and not own.truth_key:
        found.append("`um_per_unit` needs `truth_key`. For the size of spots set `spot_um` and `pitch_um`.")
    return found


def _contradictions(config: TrainConfig, where: str) -> list[str]:
    """Problems of settings that contradict each other."""
    found = []
    for number_of, kind in enumerate(config.bank.kinds, 1):
        n, place = round(kind.size_um / kind.bin_um), f"`{where}.bank.kinds[{number_of}]`"
        if abs(n * kind.bin_um - kind.size_um) > 1e-6 * kind.size_um:
            good = max(1, n) * kind.bin_um
            found.append(f"{place}: `size_um` needs to be a multiple of `bin_um`. Set `size_um = {good:g}`.")
        if n < config.crop:
            found.append(
                f"{place}: `size_um` needs room for a crop of {config.crop} bins, but has {n}. Set "
                f"`size_um = {config.crop * kind.bin_um:g}`, or a smaller `crop` at the top of the file."
            )
        if kind.pitch_um < kind.spot_um:
            found.append(f"{place}: `pitch_um` needs to be at least `spot_um`. Set `pitch_um = {2 * kind.spot_um:g}`.")
    if config.bank.kinds and not sum(kind.share for kind in config.bank.kinds) > 0:
        found.append(f"`{where}.bank.kinds`: one `share` needs to be above 0. Set `share = 1.0`.")
    if not config.bank.kinds and config.bank.n_phantoms:
        found.append(f"`{where}.bank`: `kinds` needs an entry for phantoms. Remove `kinds`, or set `n_phantoms = 0`.")
    if config.bank.window < config.crop:
        found.append(f"`{where}.bank`: `window` needs to be at least `crop`. Set `window = {config.crop}`.")
    return found


def _model_problems(config: TrainConfig, where: str) -> list[str]:
    """Problems of a network that cannot be built, or not be trained in the available memory; allocates nothing."""
    import torch

    from hadmst_sc.models import HadmstModel, ModelSpec

    if problem := _unknown(config.model, [one.name for one in fields(ModelSpec)], f"{where}.model"):
        return problem
    try:
        with torch.device("meta"):
            model = HadmstModel(ModelSpec.from_dict(config.model))
    except (ValueError, TypeError, RuntimeError, ZeroDivisionError, OverflowError) as error:
        return [f"`{where}.model` describes a network that cannot be built: {error}. Remove the table `[model]`."]
    needed, memory = BYTES_PER_PARAMETER * sum(p.numel() for p in model.parameters()), memory_limit()
    if needed > memory:
        return [
            f"`{where}.model` needs {needed / 1e9:,.0f} GB of memory for training, but {memory / 1e9:.0f} GB are "
            f"available. Set smaller `widths`, or remove the table `[model]`."
        ]
    return []
