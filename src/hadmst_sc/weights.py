"""Weights on disk: safetensors for the numbers, JSON for what they are, a sha256 and a self-test for trust.

Nothing here can run code from a file: no pickle is ever read.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from hadmst_sc.distill import PRIORS
from hadmst_sc.features import N_BASE
from hadmst_sc.models import SIGMA_MEAN, HadmstModel, ModelSpec
from hadmst_sc.models.hadmst import channels_last, gene_channels

BUNDLED = Path(__file__).parent / "_weights"
FORMAT = 2  # 2: with the student and the alignment
SELF_TEST_TOLERANCE = 1e-4
_SIZE = 32  # bins, edge of the self-test's patch


def bundled_models() -> list[str]:
    """Names that ``model=`` takes without a path."""
    return sorted(path.stem for path in BUNDLED.glob("*.safetensors"))


def load_model(model: str | Path | HadmstModel = "default", device: str | torch.device = "cpu") -> HadmstModel:
    """Load weights, after checking their sha256 against the card.

    Parameters
    ----------
    model
        A bundled name, a path to a ``.safetensors`` file with its ``.json`` card beside it, or a loaded model.
    device
        Where to put it.

    Raises
    ------
    FileNotFoundError
        If there is no such model or no card.
    ValueError
        If the files are damaged or do not belong together.
    """
    if isinstance(model, HadmstModel):
        return model.to(device).eval()
    path = BUNDLED / f"{model}.safetensors" if str(model) in bundled_models() else Path(model)
    card = read_card(path)
    data = path.read_bytes()
    if hashlib.sha256(data).hexdigest() != card["sha256"]:
        raise ValueError(f"`model`: {path.name} does not have the sha256 of its card: it is damaged. Install it again.")
    try:
        loaded = HadmstModel(ModelSpec.from_dict(card["spec"]))
        loaded.load_state_dict(load_file(path))
    except (SafetensorError, RuntimeError, TypeError, KeyError) as error:
        raise ValueError(f"`model`: {path.name} does not hold the network that its card describes: {error}") from error
    loaded.name, loaded.sha256 = path.stem, card["sha256"]
    return channels_last(loaded.to(device)).eval()


def read_card(path: str | Path) -> dict[str, Any]:
    """The JSON card beside a weights file."""
    path = Path(path)
    card_path = path.with_suffix(".json")
    if not path.is_file() or not card_path.is_file():
        raise FileNotFoundError(
            f"`model` needs a bundled name ({bundled_models()}) or a .safetensors file with its .json card, "
            f"but {path} has no such pair."
        )
    try:
        card = json.loads(card_path.read_text())
        complete = card["format"] == FORMAT and {"sha256", "spec", "self_test"} <= set(card)
    except (ValueError, TypeError, KeyError):
        complete = False
    if not complete:
        raise ValueError(f"`model`: {card_path.name} is no card of format {FORMAT}. Install the weights again.")
    return card


def save_model(model: HadmstModel, path: str | Path, *, card: dict[str, Any]) -> None:
    """Write weights and card, and read them back through the self-test.

    Parameters
    ----------
    model
        On any device.
    path
        Of the ``.safetensors`` file; the card goes beside it.
    card
        JSON-ready facts to keep with the weights (training configuration, data, figures).
    """
    path = Path(path)
    model = model.cpu().eval()
    save_file({k: v.detach().clone().contiguous() for k, v in model.state_dict().items()}, path)
    record = card | {
        "format": FORMAT,
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "spec": model.spec.to_dict(),
        "n_parameters": sum(p.numel() for p in model.parameters()),
        "self_test": _evaluate(model).tolist(),
    }
    path.with_suffix(".json").write_text(json.dumps(record, indent=1) + "\n")
    self_test(load_model(path), read_card(path))


def _patch(spec: ModelSpec) -> dict[str, Tensor]:
    """A fixed input, from a generator whose stream is a standard, not a library's habit."""
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
    """The denoiser at two levels on the fixed input, and the student, thinned to 48 numbers."""
    patch = {k: v.to(next(model.parameters()).device) for k, v in _patch(model.spec).items()}
    features, offsets = model.encode(patch["context"])
    channels = gene_channels(patch["priors"], patch["spots"], patch["coverage"], offsets)
    learned, _ = model.student(patch["context"][:, -N_BASE:], torch.zeros(1, 1, device=features.device))
    outputs = [learned.flatten()[:: learned.numel() // 16]]
    for level in (SIGMA_MEAN, 0.7):
        sigma = torch.full((1,), level, device=features.device)
        x = patch["x"] * (level < SIGMA_MEAN)
        denoised = model(x, sigma, features, channels, patch["token"], patch["priors"][:, 2:3])
        outputs.append(denoised.flatten()[:: _SIZE * _SIZE // 16])
    return torch.cat(outputs).cpu()


def self_test(model: HadmstModel, card: dict[str, Any] | None = None) -> float:
    """Run the model on the card's fixed input; the largest deviation relative to the largest value.

    Parameters
    ----------
    model
        The loaded model.
    card
        Its card; ``None`` = that of the bundled model of the same name.

    Raises
    ------
    ValueError
        If the deviation is above 1e-4: this machine does not compute what the model was trained to.
    """
    expected = torch.tensor((card or read_card(BUNDLED / f"{model.name}.safetensors"))["self_test"])
    deviation = float((_evaluate(model) - expected).abs().max() / expected.abs().max())
    if not deviation <= SELF_TEST_TOLERANCE:
        raise ValueError(
            f"The model's self-test deviates by {deviation:.1e}, more than {SELF_TEST_TOLERANCE:.0e}. "
            "Check the torch installation (`hadmst-sc doctor`) or install the weights again."
        )
    return deviation
