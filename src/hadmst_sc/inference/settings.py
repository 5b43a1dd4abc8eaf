"""Everything that a run depends on besides its section. Checked once, hashed for resuming, kept as provenance.

Nothing here loads torch: the command line shows these settings before anything is computed.
"""

from __future__ import annotations

import hashlib
import json
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypedDict

import numpy as np

from hadmst_sc.runtime import pick_device
from hadmst_sc.section.arguments import (
    FLAG,
    RULES,
    SEED,
    Argument,
    Consistency,
    Requirement,
    one_of,
    optional,
    plain,
    shown,
    whole,
)
from hadmst_sc.section.cells import Cells
from hadmst_sc.section.errors import Problems

if TYPE_CHECKING:
    import torch

    from hadmst_sc.models import HadmstModel
    from hadmst_sc.section.observation import Observation

MANY = 10_000  # maximum of samples and of steps: more is a typo
MAX_THREADS = 1024
LARGEST = 1e12  # maximum of a feature: squares of larger values would leave the range of float32
ImageFeatures = np.ndarray | Callable[[np.ndarray, float], np.ndarray]
"""``(f, h, w)`` over the extent of the image, or a function of the image ``(3, y, x)`` uint8 and its µm per pixel that
returns such an array.
"""


def _is_model(value: Any) -> bool:
    if value is None or isinstance(value, str | Path):
        return True
    from hadmst_sc.models import HadmstModel

    return isinstance(value, HadmstModel)


def _is_device(value: Any) -> bool:
    return isinstance(value, str) or (type(value).__module__, type(value).__name__) == ("torch", "device")


MODEL = Requirement("a bundled name, a path, a loaded model or None", _is_model)
DEVICE = Requirement("'auto' or a torch device", _is_device)
CELLS = Requirement("Cells or None", lambda value: value is None or isinstance(value, Cells))
WINDOW = Requirement("a positive multiple of 4 bins", lambda value: whole(4).is_met(value) and value % 4 == 0)


def setting(
    default: Any, requirement: Requirement | None, text: str, *, maps: bool = True, none_is_default: bool = False
) -> Any:
    """A field of the settings.

    Parameters
    ----------
    default
        Value if nothing is passed; it meets the requirement.
    requirement
        Checked before anything is computed; ``None`` for a setting with its own check.
    text
        For docstrings; its first sentence is the help of the command line.
    maps
        False for a setting that may change time and memory, but not the maps.
    none_is_default
        True if ``None`` may be passed for the default.
    """
    return field(
        default=default,
        metadata={"requirement": requirement, "text": text, "maps": maps, "none_is_default": none_is_default},
    )


@dataclass(frozen=True, eq=False)
class Settings:
    """Settings of a run. NumPy scalars become Python scalars. ``model`` stays as passed until :meth:`loaded`."""

    model: str | Path | HadmstModel | None = setting(
        "default", MODEL, "A bundled name, a path to weights, a loaded model, or ``None`` for the closed form alone."
    )
    with_std: bool = setting(
        True, FLAG, "Also compute the standard deviation of every bin. False halves the size of the result."
    )
    n_samples: int = setting(
        0,
        whole(0, MANY),
        "Samples of the diffusion model to keep in ``draws``. Neither mean nor standard deviation come from samples.",
    )
    n_steps: int = setting(
        1,
        whole(1, MANY),
        "Network evaluations per sample. ``None`` = 1, the distilled sampler; 2 or more sample the diffusion.",
        none_is_default=True,
    )
    n_genes: int | None = setting(
        None,
        optional(whole(1)),
        "Number of genes to predict, from the first; ``None`` = all. The components of the section come from all genes "
        "of ``obs``.",
    )
    n_metagenes: int | None = setting(
        None,
        optional(whole(2)),
        "Number of metagenes (such as 64) that the network sees in place of every gene, for panels of thousands of "
        "genes. Every gene keeps its own closed form and consistency. Many times faster; the loss of accuracy at "
        "held-out spots is ``metagene_loss`` in the provenance. ``None`` = the network sees every gene.",
    )
    consistency: Consistency = setting(
        "soft",
        one_of(*RULES),
        'Agreement with the counts. ``"soft"`` agrees as far as counting noise allows, ``"hard"`` makes the sums over '
        'the spots equal the counts, ``"off"`` leaves the maps as they are.',
    )
    align: bool | Literal["spots"] = setting(
        True,
        one_of(True, False, "spots"),
        "Register the H&E to the spots: translation or rotation if held-out spots make it more probable than none, a "
        'smooth field if the evidence is clear. The image is moved to the spots or, with ``"spots"``, the spots to the '
        "image, so that the maps overlay the original H&E. See ``pl.registration``.",
    )
    gate: bool = setting(
        True,
        FLAG,
        "Let held-out spots of this section decide the blend of closed form and network. The share of the network is "
        "in the provenance. False uses the network alone, and saves up to two more distillations.",
    )
    features: ImageFeatures | None = setting(
        None,
        None,
        "Additional image features, such as those of a pathology model. An array ``(f, h, w)`` over the extent of the "
        "image, or a function of the image ``(3, y, x)`` uint8 and its µm per pixel that returns one. The closed form "
        "regresses on them too.",
    )
    cells: Cells | None = setting(
        None,
        CELLS,
        "Cells or nuclei on the grid of the section. Where spots show that expression follows them, it is put there. "
        'The spots are then registered to the image, as with ``align="spots"``.',
    )
    device: str | torch.device = setting(
        "auto", DEVICE, '``"auto"`` = cuda, mps or cpu, whichever is available first; or a torch device.', maps=False
    )
    window: int = setting(
        # Holds a Visium slide in 20 µm bins in one piece; activations of a chunk stay below a gigabyte.
        384,
        WINDOW,
        "Edge of the windows in bins, a multiple of 4. Smaller windows need less memory and more time.",
        maps=False,
    )
    batch_size: int | None = setting(
        None,
        optional(whole(1)),
        "Genes at a time; ``None`` = 4 that the network sees, or up to 16 that it does not see. Memory grows with it, "
        "results do not change.",
        maps=False,
    )
    random_state: int = setting(0, SEED, "Seed of all random numbers.")
    n_jobs: int | None = setting(
        None,
        optional(whole(1, MAX_THREADS)),
        "CPU threads of the network. ``None`` keeps torch's setting. Restored afterwards.",
        maps=False,
    )
    client: Any = setting(
        None, None, "A ``dask.distributed.Client`` whose workers compute the genes in chunks.", maps=False
    )

    def __post_init__(self) -> None:
        for one in fields(self):
            value = plain(getattr(self, one.name))
            if value is None and one.metadata["none_is_default"]:
                value = one.default
            object.__setattr__(self, one.name, value)

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> Settings:
        """Settings from the keyword arguments of a caller."""
        return cls(**given)

    @property
    def network(self) -> HadmstModel | None:
        """The loaded model; ``None`` for the closed form."""
        assert not isinstance(self.model, str | Path), "not loaded"
        return self.model

    @property
    def is_gated(self) -> bool:
        """True if held-out spots decide the blend of closed form and network."""
        return self.gate and self.model is not None

    def check(self, problems: Problems, names: Mapping[str, str] | None = None) -> None:
        """Collect every setting of a wrong type or value; nothing is loaded.

        Parameters
        ----------
        problems
            Collects the messages.
        names
            Names of the caller's arguments where they differ.
        """
        called = {one.name: (names or {}).get(one.name, one.name) for one in fields(self)}
        values = {called[one.name]: getattr(self, one.name) for one in fields(self) if one.metadata["requirement"]}
        required = {
            called[one.name]: (one.metadata["requirement"], None if one.metadata["none_is_default"] else one.default)
            for one in fields(self)
        }
        wrong = problems.check(values, required)
        if isinstance(self.model, str | Path):
            _check_model(self.model, problems)
        if "device" not in wrong:
            with problems.gathered(ValueError):
                pick_device(self.device)
        if self.n_metagenes is not None and (self.model is None or self.n_samples):
            found = "`model=None`" if self.model is None else f"`n_samples={shown(self.n_samples)}`"
            problems.add(
                f"`n_metagenes` needs a network and has no samples of single genes, but {found} was passed. "
                f"Pass `n_metagenes=None`.",
                ValueError,
            )
        if self.model is None and self.n_samples:
            problems.add(
                f"`n_samples={shown(self.n_samples)}` needs a network, but `model=None` was passed. Pass "
                f"`n_samples=0`.",
                ValueError,
            )
        # maps of a callable are checked once it has returned them
        if self.features is not None and not callable(self.features) and (told := features_problem(self.features)):
            problems.add(told, ValueError)
        needed = ("submit", "scatter", "ncores", "cancel")
        if self.client is not None and not all(hasattr(self.client, name) for name in needed):
            problems.add(
                f"`client` needs a dask.distributed.Client, but is {shown(self.client)}. Pass `client=None`, or "
                f"connect to the cluster with `client=distributed.Client(address)`.",
                ValueError,
            )

    def check_with(self, obs: Observation, problems: Problems) -> None:
        """Collect problems: more genes or metagenes than the section allows, cells on another grid."""
        if self.cells is not None and self.cells.overlap.shape[1] != obs.grid.n_bins:
            problems.add(
                f"`cells` needs the {obs.grid.n_bins:,} bins of `obs`, but has {self.cells.overlap.shape[1]:,}. Read "
                f"both with the same `bin_um`.",
                ValueError,
            )
        if self.n_genes is not None and self.n_genes > len(obs.genes):
            problems.add(
                f"`n_genes` needs at most the {len(obs.genes)} genes of `obs`, but is {self.n_genes}. Pass "
                f"`n_genes=None`.",
                ValueError,
            )
        most = min((self.n_genes or len(obs.genes)) - 1, len(obs.spots))
        if self.n_metagenes is not None and self.n_metagenes > most:
            problems.add(
                f"`n_metagenes` needs a whole number from 2 to {most} (fewer than genes, no more than spots), but is "
                f"{self.n_metagenes!r}. Pass `n_metagenes=None`: the network then sees every gene.",
                ValueError,
            )

    def loaded(self) -> Settings:
        """Copy with the model's weights loaded on the device."""
        if self.model is None:
            return self
        from hadmst_sc.models import load_model

        return replace(self, model=load_model(self.model, pick_device(self.device)))

    def light(self) -> Settings:
        """Copy without model, features and cells, for the work on a chunk of genes; small enough for a worker."""
        return replace(self, model=None, features=None, cells=None)

    def key(self) -> dict[str, Any]:
        """All settings that change the maps, as JSON; a value that cannot be compared (a callable) is new each time."""
        return {one.name: digest(getattr(self, one.name)) for one in fields(self) if one.metadata["maps"]}

    def record(self) -> dict[str, Any]:
        """All settings, for the provenance; ``features`` as their digest, or as the name of their function."""
        values = {one.name: getattr(self, one.name) for one in fields(self) if one.name != "client"}
        values["model"] = self.network.name if self.network else "closed form"
        if callable(self.features):
            values["features"] = getattr(self.features, "__qualname__", type(self.features).__qualname__)
        elif self.features is not None:
            values["features"] = digest(self.features)
        if self.cells is not None:
            values |= {"cells": self.cells.key, "cells_digest": self.cells.digest}
            values["cells_place"] = None if self.cells.place is None else self.cells.place[:2].ravel().tolist()
        values["device"] = str(self.device)
        return values


def _check_model(model: str | Path, problems: Problems) -> None:
    """Collect a problem if weights are missing or unreadable; bundled models always exist."""
    from hadmst_sc.models.weights import bundled_models, read_card

    if str(model) in bundled_models():
        return
    try:
        read_card(model)
    except (OSError, ValueError) as error:
        message = str(error)
        if "`" not in message:  # no permission, a name too long or empty
            message = f"`model={str(model)!r}` cannot be read: {error}. Pass `model='default'`."
        problems.add(message, FileNotFoundError if isinstance(error, FileNotFoundError) else ValueError)


def features_problem(maps: object) -> str | None:
    """Error message for features that are not valid maps, or ``None``."""
    wanted = "`features` needs maps (features, y, x) over the extent of the image"
    try:
        values = np.asarray(maps)
    except (TypeError, ValueError, RuntimeError):  # ragged lists; tensors on a device or with gradients
        return f"{wanted}, but {shown(maps)} is not an array. Pass `features=np.asarray(maps)`."
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


def digest(value: Any) -> Any:
    """A value as JSON; equal values give equal JSON."""
    if isinstance(value, Cells):
        return value.digest + digest(value.density)
    if isinstance(value, np.ndarray):
        return hashlib.sha256(np.ascontiguousarray(value).tobytes()).hexdigest() + repr((value.shape, value.dtype.str))
    if hasattr(value, "state_dict"):  # by content: loaded weights can be trained further
        parts = ((name, digest(tensor.cpu().numpy())) for name, tensor in sorted(value.state_dict().items()))
        return hashlib.sha256(repr(list(parts)).encode()).hexdigest()
    return value if value is None or isinstance(value, str | int | float) else uuid.uuid4().hex


def run_key(obs: Observation, settings: Settings, version: str) -> str:
    """Key of a run as one string: section, settings that change the maps, and version of the package."""
    return json.dumps({"section": section_key(obs), "version": version} | settings.key())


def section_key(obs: Observation) -> str:
    """Digest of all that a section holds; equal sections have equal digests."""
    matrix = obs.measurement.matrix
    arrays = (obs.he, obs.counts, obs.inside, matrix.data, matrix.indices, matrix.indptr, obs.measurement.centres)
    section = [repr((obs.grid, obs.he_um, obs.genes, obs.spots)), *(digest(array) for array in arrays)]
    return hashlib.sha256(repr(section).encode()).hexdigest()


class SettingsArguments(TypedDict, total=False):
    """The settings as keyword arguments, for type checkers."""

    model: str | Path | HadmstModel | None
    with_std: bool
    n_samples: int
    n_steps: int | None
    n_genes: int | None
    n_metagenes: int | None
    consistency: Consistency
    align: bool | Literal["spots"]
    gate: bool
    features: ImageFeatures | None
    cells: Cells | None
    device: str | torch.device
    window: int
    batch_size: int | None
    random_state: int
    n_jobs: int | None
    client: Any


def arguments_of(settings: type[Settings]) -> dict[str, Argument]:
    """The settings as arguments of functions and of the command line."""
    found = {}
    for one in fields(settings):
        optional_too = one.metadata["none_is_default"]
        kind = f"{one.type} | None" if optional_too else str(one.type)
        found[one.name] = Argument(kind, None if optional_too else one.default, one.metadata["text"])
    return found


SETTINGS = arguments_of(Settings)
