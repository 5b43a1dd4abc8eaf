"""Weights on disk: tensors as safetensors, metadata as a JSON card, verified by sha256 and self-test.

Loading never runs code from a file: no pickle is ever read.
"""

from __future__ import annotations

import copy
import hashlib
import json
import os
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from hadmst_sc.diffusion.denoiser import Residual
from hadmst_sc.distillation.components import CONTEXT
from hadmst_sc.distillation.genes import PRIORS, TOKEN
from hadmst_sc.models.diffusion import INPUTS, HadmstModel, ModelSpec, channels_last, frequencies, gene_channels
from hadmst_sc.runtime import alone_after_fork
from hadmst_sc.section.features import N_BASE

BUNDLED = Path(__file__).parent / "_weights"
FORMAT = 3  # 3 adds the names of the inputs
FIRST_WITH_INPUTS = 3
READABLE = (2, FORMAT)
SELF_TEST_TOLERANCE = 1e-4
MAX_CARD = 10_000_000  # bytes of JSON; the card of the bundled model has 25,000
REMEDY = "Install the weights again, or try `model='default'`."
_SIZE = 32  # edge of the self-test's patch, bins


def bundled_models() -> list[str]:
    """Names of the bundled models, which ``model=`` accepts."""
    return sorted(path.stem for path in BUNDLED.glob("*.safetensors"))


def load_model(model: str | Path | HadmstModel = "default", device: str | torch.device = "cpu") -> HadmstModel:
    """Load weights. Files are verified: sha256, tensors and, unless bundled, self-test.

    Parameters
    ----------
    model
        A bundled name, a path to a ``.safetensors`` file with its ``.json`` card next to it, or a loaded model. A
        loaded model is not changed: it is copied if it is on another device, in training mode or in another precision.
    device
        Device to load the model to.

    Raises
    ------
    TypeError
        If ``model`` is neither a name, a path nor a model.
    FileNotFoundError
        If there is no such model or no card.
    ValueError
        If the files are damaged, do not belong together, or fail the self-test of their card.

    Examples
    --------
    >>> hd.models.load_model("default").name
    'default'
    """
    device = torch.device(device)
    alone_after_fork()
    if isinstance(model, HadmstModel):
        return _ready(model, device)
    bundled = isinstance(model, str) and model in bundled_models()
    path = BUNDLED / f"{model}.safetensors" if bundled else _file(model)
    card = read_card(path)
    try:
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise _refused(model, f"{path} cannot be read: {error}") from error
    _check_inputs(path.name, card)
    if found != card["sha256"]:
        raise ValueError(f"`model`: {path.name} does not have the sha256 of its card: it is damaged. {REMEDY}")
    loaded = _built(path, card)
    loaded.name, loaded.sha256 = path.stem, card["sha256"]
    if not bundled:  # our tests run it for bundled models
        try:
            self_test(loaded, card)
        except ValueError as error:
            raise ValueError(f"`model`: {path.name} does not reproduce the outputs in its card: {error}") from error
    return loaded.to(device)


def _check_inputs(name: str, card: dict[str, Any]) -> None:
    """Refuse weights that were trained on other inputs or in another order; cards of format 2 have no names."""
    if card["format"] < FIRST_WITH_INPUTS:
        return
    named = card.get("inputs")
    for kind, ours in INPUTS.items():
        found = named.get(kind) if isinstance(named, dict) else None
        theirs = found if isinstance(found, list) else []
        if theirs != ours:
            pairs = enumerate(zip_longest(theirs, ours, fillvalue="none"), 1)
            place, (one, other) = next((place, pair) for place, pair in pairs if pair[0] != pair[1])
            raise ValueError(
                f"`model`: {name} was trained on {kind} in another order or of another kind: number {place} is "
                f"{str(one)!r:.80}, but {other!r} in this version. Train the weights again, or try `model='default'`."
            )


def _built(path: Path, card: dict[str, Any]) -> HadmstModel:
    """Build the network of a card on the CPU, after checking that the file contains exactly its tensors."""
    try:
        with safe_open(path, framework="pt") as file, torch.inference_mode(False):
            # The meta device has shapes only: no memory is allocated and the caller's random state is not used.
            with torch.device("meta"):
                network = HadmstModel(_checked_spec(card["spec"]))
            needed = {name: list(tensor.shape) for name, tensor in network.state_dict().items()}
            headers = {name: file.get_slice(name) for name in file.keys()}
            if {name: header.get_shape() for name, header in headers.items()} != needed:
                raise ValueError("tensors have other names or shapes")
            if any(header.get_dtype() != "F32" for header in headers.values()):
                raise ValueError("tensors are not all float32")
            with torch.device("cpu"):
                network.load_state_dict({name: file.get_tensor(name).clone() for name in needed}, assign=True)
    except (SafetensorError, RuntimeError, TypeError, KeyError, ValueError, OSError) as error:
        raise ValueError(f"`model`: {path.name} does not hold the network that its card describes: {error}") from error
    network.frequencies = frequencies()
    _check_finite(network, path.name)
    return channels_last(network).eval()


def _checked_spec(values: Any) -> ModelSpec:
    """Return the spec of a card after checking that this version can use it."""
    if not isinstance(values, dict):
        raise TypeError(f"a spec needs to be a table, but is {values!r:.80}")
    spec = ModelSpec.from_dict(values)
    if (spec.context, spec.token) != (CONTEXT.n_channels, len(TOKEN)):
        raise ValueError(f"it takes {spec.context} maps and {spec.token} token entries, not those of this version")
    return spec


def _ready(model: HadmstModel, device: torch.device) -> HadmstModel:
    """Prepare a loaded model for inference on a device; a copy if that changes the model."""
    _check_finite(model, model.name)
    parameters = list(model.parameters())
    there = all(p.device.type == device.type and device.index in (None, p.device.index) for p in parameters)
    if there and not model.training and all(p.dtype == torch.float32 for p in parameters):
        return model
    with torch.inference_mode(False):
        return channels_last(copy.deepcopy(model).to(device, torch.float32)).eval()


def _check_finite(model: HadmstModel, name: str) -> None:
    if not all(bool(parameter.isfinite().all()) for parameter in model.parameters()):
        raise ValueError(f"`model`: the weights of {name} contain NaN or infinite values. {REMEDY}")


def _refused(model: object, found: str, kind: type[Exception] = FileNotFoundError) -> Exception:
    return kind(
        f"`model` needs a bundled name ({bundled_models()}), a .safetensors file with its .json card next to it, or a "
        f"loaded model, but {found}. Try `model='default'`."
    )


def _file(model: object) -> Path:
    """Path of a weights file that exists together with its card."""
    if not isinstance(model, str | os.PathLike):
        raise _refused(model, f"is {model!r:.80}", TypeError)
    try:
        path = Path(model)
        if path.is_file() and path.with_suffix(".json").is_file():
            return path
    except (OSError, ValueError, TypeError):  # an invalid path, a loop of links
        pass
    raise _refused(model, f"{str(model)!r:.200} has no such pair")


def read_card(path: str | Path) -> dict[str, Any]:
    """Read the JSON card of a weights file."""
    card_path = _file(path).with_suffix(".json")
    try:
        if card_path.stat().st_size > MAX_CARD:
            raise ValueError("too large")
        card = json.loads(card_path.read_bytes())
        complete = card["format"] in READABLE and {"sha256", "spec", "self_test"} <= set(card)
    except OSError as error:
        raise _refused(path, f"{card_path} cannot be read: {error}") from error
    except (ValueError, TypeError, KeyError, RecursionError):
        complete = False
    if not complete:
        raise ValueError(f"`model`: {card_path.name} is not a card of the formats {READABLE}. {REMEDY}")
    return dict(card)


def save_model(model: HadmstModel, path: str | Path, *, card: dict[str, Any]) -> None:
    """Write weights and card, then load them and run the self-test.

    Parameters
    ----------
    model
        A model on any device.
    path
        The ``.safetensors`` file to write; the card is written next to it.
    card
        JSON-ready metadata to store with the weights (training configuration, data, results).
    """
    path = Path(path)
    model = model.cpu().eval()
    save_file({k: v.detach().clone().contiguous() for k, v in model.state_dict().items()}, path)
    record = card | {
        "format": FORMAT,
        "inputs": INPUTS,
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "spec": model.spec.to_dict(),
        "n_parameters": sum(p.numel() for p in model.parameters()),
        "self_test": _evaluate(model).tolist(),
    }
    path.with_suffix(".json").write_text(json.dumps(record, indent=1) + "\n")
    self_test(load_model(path), read_card(path))


def _patch(spec: ModelSpec) -> dict[str, Tensor]:
    """Fixed input from the Philox generator, whose stream is standardised."""
    rng = np.random.Generator(np.random.Philox(20_261_122))

    def normal(*shape: int) -> Tensor:
        return torch.from_numpy(rng.standard_normal((*shape, _SIZE, _SIZE), dtype=np.float32))

    coverage = (normal() > 0.5).float()
    return {
        "context": normal(1, spec.context),
        "priors": (0.5 * normal(1, len(PRIORS))).exp(),
        "spots": (0.5 * normal(1)).exp() * coverage,
        "coverage": coverage,
        "x": normal(1, 1),
        "token": torch.from_numpy(rng.standard_normal((1, spec.token), dtype=np.float32)),
    }


@torch.inference_mode()
def _evaluate(model: HadmstModel) -> Tensor:
    """Outputs of the student, mean and denoiser on the fixed input, subsampled to 48 numbers."""
    device = next(model.parameters()).device
    with device, torch.autocast(device.type, enabled=False):  # regardless of the caller's defaults
        return _outputs(model, {k: v.to(device) for k, v in _patch(model.spec).items()})


def _outputs(model: HadmstModel, patch: dict[str, Tensor]) -> Tensor:
    features, offsets = model.encode(patch["context"])
    channels = gene_channels(patch["priors"], patch["spots"], patch["coverage"], offsets)
    learned, _ = model.student(patch["context"][:, -N_BASE:], features.new_zeros(1, 1))
    outputs = [learned.flatten()[:: learned.numel() // 16]]
    condition, base = model.condition(features, channels), patch["priors"][:, 2:3]
    mean = Residual(base).encode(model.mean(condition, patch["token"], base))
    denoised = model.denoise(patch["x"], features.new_full((1,), 0.7), condition, patch["token"])
    outputs += [maps.flatten()[:: _SIZE * _SIZE // 16] for maps in (mean, denoised)]
    return torch.cat(outputs).cpu()


def self_test(model: HadmstModel, card: dict[str, Any] | None = None) -> float:
    """Run the model on a fixed input and compare with its card.

    Parameters
    ----------
    model
        The loaded model.
    card
        Its card; ``None``: that of the bundled model of the same name.

    Returns
    -------
    Largest deviation, relative to the largest value.

    Raises
    ------
    ValueError
        If the deviation is above 1e-4: this machine computes other results than the card, or the card belongs to
        another model.
    """
    card = card or read_card(BUNDLED / f"{model.name}.safetensors")
    found = _evaluate(model).numpy()
    try:
        expected = np.asarray(card["self_test"], np.float32).reshape(found.shape)
    except (TypeError, ValueError) as error:
        raise ValueError(f"The model's self-test needs {found.size} numbers, but the card has others.") from error
    deviation = float(np.abs(found - expected).max() / np.abs(expected).max())
    if not deviation <= SELF_TEST_TOLERANCE:
        raise ValueError(
            f"The model's self-test deviates by {deviation:.1e}, more than {SELF_TEST_TOLERANCE:.0e}. "
            "Check the torch installation (`hadmst-sc doctor`) or install the weights again."
        )
    return deviation
