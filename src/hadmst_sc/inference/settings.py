"""Everything that a run depends on beside its section: checked once, hashed for resuming, written to the provenance."""

from __future__ import annotations

import hashlib
import json
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from hadmst_sc.diffusion import RULES
from hadmst_sc.models import HadmstModel
from hadmst_sc.models.weights import bundled_models, load_model, read_card
from hadmst_sc.runtime import pick_device
from hadmst_sc.section.arguments import FLAG, SEED, Requirement, one_of, optional, plain, shown, whole
from hadmst_sc.section.errors import Problems
from hadmst_sc.section.observation import Observation

N_STEPS = 1
BATCH_SIZE = 4  # genes
WINDOW = 384  # bins; a Visium slide of 20 µm bins in one piece. Activations of a chunk stay below a gigabyte
MANY = 10_000  # samples, steps: a slip of the keyboard beyond it
MAX_THREADS = 1024

LARGEST = 1e12  # of a feature: the squares of larger values would leave float32
ImageFeatures = np.ndarray | Callable[[np.ndarray, float], np.ndarray]
"""``(f, h, w)`` over the extent of the image, or what makes that of the image ``(3, y, x)`` uint8 and its µm per pixel.
"""
ModelLike = str | Path | HadmstModel
MODEL = Requirement(
    "a bundled name, a path, a loaded model or None", lambda value: value is None or isinstance(value, ModelLike)
)
DEVICE = Requirement("'auto' or a torch device", lambda value: isinstance(value, str | torch.device))
# Each with a value that meets it. `features` are looked at by `check_features`.
REQUIREMENTS: dict[str, tuple[Requirement, Any]] = {
    "model": (MODEL, "default"),
    "n_samples": (whole(0, MANY), 4),
    "n_steps": (whole(1, MANY), None),
    "n_metagenes": (optional(whole(2)), None),
    "consistency": (one_of(*RULES), "soft"),
    "align": (one_of(True, False, "spots"), True),
    "gate": (FLAG, True),
    "random_state": (SEED, 0),
    "keep_draws": (FLAG, False),
    "device": (DEVICE, "auto"),
    "window": (Requirement("a positive multiple of 4 bins", lambda n: whole(4).is_met(n) and n % 4 == 0), WINDOW),
    "batch_size": (whole(1), None),
    "n_jobs": (optional(whole(1, MAX_THREADS)), None),
}


SAME_MAPS = {"same_maps": True}  # of a setting that may change time and memory, but no map


@dataclass(frozen=True, eq=False)
class Settings:
    """Settings of a run; :func:`~hadmst_sc.tl.superresolve` explains each.

    Scalars of numpy become Python's. ``model`` is what the user passed until :meth:`loaded` replaces it.
    """

    model: str | Path | HadmstModel | None = "default"
    n_samples: int = 4
    n_steps: int = N_STEPS
    n_metagenes: int | None = None
    consistency: str = "soft"
    align: bool | Literal["spots"] = True
    gate: bool = True
    features: ImageFeatures | None = None
    random_state: int = 0
    keep_draws: bool = False
    device: str | torch.device = field(default="auto", metadata=SAME_MAPS)
    window: int = field(default=WINDOW, metadata=SAME_MAPS)
    batch_size: int = field(default=BATCH_SIZE, metadata=SAME_MAPS)
    n_jobs: int | None = field(default=None, metadata=SAME_MAPS)

    def __post_init__(self) -> None:
        for one in fields(self):
            object.__setattr__(self, one.name, plain(getattr(self, one.name)))

    @property
    def networks(self) -> list[HadmstModel]:
        """The loaded model, or nothing for the closed form."""
        return [] if self.network is None else [self.network]

    @property
    def network(self) -> HadmstModel | None:
        """The loaded model; ``None`` for the closed form."""
        assert not isinstance(self.model, str | Path), "not loaded"
        return self.model

    @property
    def n_draws(self) -> int:
        """Samples behind the standard deviation: none without a network, and none for one sample."""
        return self.n_samples if self.model is not None and self.n_samples > 1 else 0

    @property
    def is_gated(self) -> bool:
        """True if held-out spots decide how far the estimate goes from the closed form to the network."""
        return self.gate and self.model is not None

    def check(self, problems: Problems, names: Mapping[str, str] | None = None) -> None:
        """Note every setting of a wrong type or value; nothing is loaded.

        Parameters
        ----------
        problems
            Receives them.
        names
            What the caller's arguments are called where that differs.
        """
        called = {one.name: (names or {}).get(one.name, one.name) for one in fields(self)}
        values = {called[name]: getattr(self, name) for name in REQUIREMENTS}
        wrong = problems.check(values, {called[name]: required for name, required in REQUIREMENTS.items()})
        if isinstance(self.model, str | Path):
            _check_model(self.model, problems)
        if "device" not in wrong:
            with problems.gathered(ValueError):
                pick_device(self.device)
        if self.n_metagenes is not None and (self.model is None or self.keep_draws is True):
            found = "`model=None`" if self.model is None else "`keep_draws=True`"
            problems.add(
                f"`n_metagenes` needs a network and draws nothing gene by gene, but there is {found}. "
                f"Pass `n_metagenes=None`.",
                ValueError,
            )
        check_features(self.features, problems)

    def check_metagenes(self, obs: Observation, problems: Problems) -> None:
        """Note more metagenes than a section can have."""
        most = min(len(obs.genes) - 1, len(obs.spots))
        if self.n_metagenes is not None and self.n_metagenes > most:
            problems.add(
                f"`n_metagenes` needs a whole number from 2 to {most} (fewer than genes, no more than spots), but is "
                f"{self.n_metagenes!r}. Pass `n_metagenes=None`: the network then sees every gene.",
                ValueError,
            )

    def loaded(self) -> Settings:
        """With the model's weights in memory, on the device; without samples for the closed form, which has none."""
        if self.model is None:
            return replace(self, n_samples=0)
        return replace(self, model=load_model(self.model, pick_device(self.device)))

    def light(self) -> Settings:
        """Without model and features, as the work on a chunk of genes needs it; small enough to send to a worker."""
        return replace(self, model=None, features=None)

    def key(self) -> dict[str, Any]:
        """All that changes the maps, as JSON; what cannot be compared, such as a callable, is new each time."""
        return {one.name: digest(getattr(self, one.name)) for one in fields(self) if not one.metadata.get("same_maps")}

    def record(self) -> dict[str, Any]:
        """All settings, as the provenance keeps them: of ``features`` their digest, or the name of what makes them."""
        values = {one.name: getattr(self, one.name) for one in fields(self)}
        values["model"] = self.network.name if self.network else "closed form"
        if callable(self.features):
            values["features"] = getattr(self.features, "__qualname__", type(self.features).__qualname__)
        elif self.features is not None:
            values["features"] = digest(self.features)
        values["device"] = str(self.device)
        return values


def _check_model(model: str | Path, problems: Problems) -> None:
    """Note weights that are not there; a bundled model is."""
    if str(model) in bundled_models():
        return
    try:
        read_card(model)
    except (OSError, ValueError) as error:
        told = str(error)
        if "`" not in told:  # no permission, a name too long or empty
            told = f"`model={str(model)!r}` cannot be read: {error}. Pass `model='default'`."
        problems.add(told, FileNotFoundError if isinstance(error, FileNotFoundError) else ValueError)


def check_features(features: ImageFeatures | None, problems: Problems) -> None:
    """Note what is wrong with maps; what a callable makes is looked at when it has made it."""
    if features is not None and not callable(features) and (told := features_problem(features)):
        problems.add(told, ValueError)


def features_problem(maps: object) -> str | None:
    """The message for features that are no maps, or ``None``."""
    wanted = "`features` needs maps (features, y, x) over the extent of the image"
    try:
        values = np.asarray(maps)
    except (TypeError, ValueError, RuntimeError):  # ragged lists; tensors on a device or with gradients
        return f"{wanted}, but {shown(maps)} is no array. Pass `features=np.asarray(maps)`."
    if values.dtype.kind not in "biuf":
        return f"{wanted}, but holds {shown(maps)} of type {values.dtype}. Pass numbers, or `features=None`."
    if values.ndim != 3 or not values.size:
        return f"{wanted}, but they have shape {values.shape}. Put the channels first."
    wrong = int((~(np.abs(values) <= LARGEST)).sum())  # also NaN, which compares false
    if wrong:
        return (
            f"`features` needs finite values of at most {LARGEST:g}, but {wrong:,} are not. Pass "
            f"`features=np.nan_to_num(features, posinf=0, neginf=0).clip(-1e6, 1e6)`."
        )
    return None


def check_client(client: Any, problems: Problems) -> None:
    """Note a client that is none, such as the address of a cluster."""
    if client is not None and not all(hasattr(client, name) for name in ("submit", "scatter", "ncores", "cancel")):
        problems.add(
            f"`client` needs a dask.distributed.Client, but is {shown(client)}. Pass `client=None`, or connect to the "
            f"cluster by `client=distributed.Client(address)`.",
            ValueError,
        )


def digest(value: Any) -> Any:
    """A value as JSON that is equal where it is."""
    if isinstance(value, np.ndarray):
        return hashlib.sha256(np.ascontiguousarray(value).tobytes()).hexdigest() + repr((value.shape, value.dtype.str))
    if isinstance(value, HadmstModel):  # by what it holds: weights can be trained further after they were loaded
        parts = ((name, digest(tensor.cpu().numpy())) for name, tensor in sorted(value.state_dict().items()))
        return hashlib.sha256(repr(list(parts)).encode()).hexdigest()
    return value if value is None or isinstance(value, str | int | float) else uuid.uuid4().hex


def run_key(obs: Observation, settings: Settings, version: str) -> str:
    """One string for a section, the settings that change its maps, and the package's version."""
    matrix = obs.measurement.matrix
    arrays = (obs.he, obs.counts, obs.inside, matrix.data, matrix.indices, matrix.indptr, obs.measurement.centres)
    section = [repr((obs.grid, obs.he_um, obs.genes, obs.spots)), *(digest(array) for array in arrays)]
    named = hashlib.sha256(repr(section).encode()).hexdigest()
    return json.dumps({"section": named, "version": version} | settings.key())
