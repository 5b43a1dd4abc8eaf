"""The conditional diffusion model: inputs of the network, and preconditioning that makes it a denoiser.

Gene-agnostic: a gene is one item of the batch, described by its own maps and its token. Equation numbers are those of
Karras et al. 2022 (*Elucidating the design space of diffusion-based generative models*).
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from hadmst_sc.distillation.components import CONTEXT
from hadmst_sc.distillation.genes import PRIORS, TOKEN
from hadmst_sc.models.alignment import SpatialAlignment, aligned
from hadmst_sc.models.distillation import HEStudent
from hadmst_sc.models.local import LocalUNet, in_windows, silence
from hadmst_sc.section.features import BASE, N_BASE

# Noise levels far above those that denoising is trained on. They select two other tasks of the network: the posterior
# mean of the counts, and one sample from noise alone (see `train.losses`).
_LEVEL_OF_MEAN, _LEVEL_OF_SAMPLE = 80.0, 40.0

ALIGN = 4  # bins: two levels of down-sampling
MAX_SIZE = 4096  # bound of all values in a spec: far more than a network of maps needs
LOG_CHANGE = 5.0  # the mean stays within a factor e^±5 of the closed form: a guard, far wider than changes in training
CHANNELS = (*PRIORS, "surprise", "measured", "coverage", "he less space")  # see `gene_channels`
N_CHANNELS = len(CHANNELS)
# Names of all inputs in their order. Weights are only valid for this order: cards store it, and loading checks it.
INPUTS = {"features": [*BASE], "context": CONTEXT.names, "channels": [*CHANNELS], "token": [*TOKEN]}


@dataclass(frozen=True)
class ModelSpec:
    """All parameters that are needed to build the network; stored in the card of the weights.

    Examples
    --------
    >>> spec = hd.models.ModelSpec(widths=(8, 16, 16))
    >>> hd.models.ModelSpec.from_dict(spec.to_dict()) == spec
    True
    """

    context: int = CONTEXT.n_channels
    token: int = len(TOKEN)
    student: tuple[int, int, int] = (24, 40, 64)  # widths
    student_branches: tuple[int, int] = (16, 4)  # features, nuisance
    alignment: int = 24  # hidden channels
    offset: float = 3.0  # largest offset of the alignment, bins
    encoder: tuple[int, int] = (48, 16)  # hidden, features
    widths: tuple[int, int, int] = (24, 40, 64)
    embed: int = 64
    sigma_data: float = 1.0  # standard deviation of the residual over the training phantoms
    halo: int = 32  # bins; at least the measured reach, and a multiple of `align`
    align: int = ALIGN

    def __post_init__(self) -> None:
        # A spec is read from a file, so its values can be anything.
        for one in fields(self):
            value, like = getattr(self, one.name), one.default
            sizes, wanted = (value, like) if isinstance(like, tuple) else ((value,), (like,))
            fits = isinstance(sizes, tuple) and len(sizes) == len(wanted)
            if not fits or not all(type(n) in (int, type(wanted[0])) and 0 < n <= MAX_SIZE for n in sizes):
                raise ValueError(f"`{one.name}` needs values like {like!r}, but is {value!r:.80}.")
        if self.align != ALIGN or self.halo % ALIGN:
            raise ValueError(
                f"`align` needs to be {ALIGN} and `halo` a multiple of it, but they are {self.align, self.halo}."
            )

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> ModelSpec:
        """Inverse of :meth:`to_dict`; unknown keys are an error."""
        plain: dict[str, Any] = {key: tuple(v) if isinstance(v, list) else v for key, v in values.items()}
        return cls(**plain)


def channels_last(model: HadmstModel) -> HadmstModel:
    """Convert the model to the channels-last memory layout (1.4 × as fast on a CPU)."""
    return model.to(memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]


def frequencies() -> Tensor:
    """Frequencies of the noise level embedding, ``(8,)``; always on the CPU, regardless of the default device."""
    return torch.linspace(math.log(0.25), math.log(8), 8, dtype=torch.float32, device="cpu").exp()


def gene_channels(priors: Tensor, spots: Tensor, coverage: Tensor, offsets: Tensor | None = None) -> Tensor:
    """Per-gene input maps in log space.

    Parameters
    ----------
    priors
        ``(b, len(PRIORS), ny, nx)`` in the order of ``distillation.genes.PRIORS``, rates in gene means.
    spots
        ``(b, ny, nx)`` measured rates under the spots, zero in the gaps.
    coverage
        ``(ny, nx)`` or ``(b, ny, nx)`` share of each bin under a spot.
    offsets
        From :meth:`HadmstModel.encode`: priors that depend on the image alone are warped by them.

    Returns
    -------
    ``(b, N_CHANNELS, ny, nx)``
    """
    coverage = coverage.expand(spots.shape)
    measured = (coverage > 0).to(spots.dtype)
    logs = priors.log()
    if offsets is not None:
        from_image = [PRIORS.index("he"), PRIORS.index("texture")]
        logs[:, from_image] = aligned(logs[:, from_image], offsets)
    maps = dict(zip(PRIORS, logs.unbind(1), strict=True))
    maps["surprise"] = (spots.log1p() - priors[:, PRIORS.index("joint")].log1p()) * measured
    maps["measured"], maps["coverage"] = spots.log1p() * measured, coverage
    maps["he less space"] = maps["he"] - maps["space"]
    return torch.stack([maps[name] for name in CHANNELS], 1)


class HEEncoder(nn.Module):
    """Encoder of the distilled context to features; local, with a reach of two bins.

    The context already contains the section's leading components; the encoder learns which of their local patterns
    matter. There is no normalisation over space, because tiles must give the same result as the slide.
    """

    def __init__(self, in_channels: int, hidden: int, out_channels: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(in_channels, hidden, 3, padding=1),
            nn.SiLU(),
            nn.Conv2d(hidden, hidden, 3, padding=1),
            nn.SiLU(),
            nn.Conv2d(hidden, out_channels, 1),
        )

    def forward(self, context: Tensor) -> Tensor:
        """Features ``(b, out_channels, ny, nx)`` of a context ``(b, in_channels, ny, nx)``."""
        return self.layers(context)


class HadmstModel(nn.Module):
    """Conditional diffusion model of one gene's map given the section.

    Examples
    --------
    Load once for several calls of ``tl.superresolve(..., model=model)``:

    >>> model = hd.models.load_model("default")
    >>> isinstance(model, hd.models.HadmstModel), model.name
    (True, 'default')
    """

    frequencies: Tensor

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        self.spec = spec
        self.name, self.sha256 = "unnamed", ""  # set from the weights file, for provenance
        hidden, features = spec.encoder
        self.student = HEStudent(N_BASE, spec.student, *spec.student_branches)
        self.alignment = SpatialAlignment(spec.alignment, spec.offset)
        self.encoder = HEEncoder(spec.context, hidden, features)
        self.embedding = nn.Sequential(
            nn.Linear(16 + 1 + spec.token, spec.embed), nn.SiLU(), nn.Linear(spec.embed, spec.embed), nn.SiLU()
        )
        self.unet = LocalUNet(1 + N_CHANNELS + features, spec.widths, spec.embed)
        silence(self.unet.head)  # at initialisation the network is the closed form
        self.register_buffer("frequencies", frequencies(), persistent=False)

    def encode(self, context: Tensor, *, align: bool = True) -> tuple[Tensor, Tensor]:
        """Compute what all genes of a section share, independent of gene and noise level.

        Parameters
        ----------
        context
            ``(b, context, ny, nx)`` from :func:`hadmst_sc.distillation.genes.distill`.
        align
            False uses the image without offsets.

        Returns
        -------
        Features ``(b, features, ny, nx)``, and the offsets ``(b, 2, ny, nx)`` by which the image was warped.
        """
        offsets = self.alignment(context[:, CONTEXT.of("texture")], context[:, CONTEXT.of("space")])
        if not align:
            offsets = torch.zeros_like(offsets)
        bent = aligned(context[:, CONTEXT.from_image], offsets)
        context = context.clone()
        context[:, CONTEXT.from_image] = bent
        return self.encoder(context), offsets

    def read(self, context: np.ndarray) -> tuple[Tensor, Tensor]:
        """Apply :meth:`encode` to a slide's context ``(context, ny, nx)``, once for all genes; results on the CPU."""
        features, offsets = in_windows(self.encode, context, next(self.parameters()).device)
        return features, offsets

    def _embed(self, sigma: Tensor, token: Tensor) -> Tensor:
        phase = (sigma.log() / 4)[:, None] * self.frequencies  # c_noise
        is_mean = (sigma >= _LEVEL_OF_MEAN).to(token.dtype)[:, None]
        return self.embedding(torch.cat([phase.sin(), phase.cos(), is_mean, token], 1))

    def condition(self, features: Tensor, channels: Tensor) -> Tensor:
        """Apply the first layer to all inputs but the state; once per gene, reused by every evaluation.

        Parameters
        ----------
        features
            ``(b, features, ny, nx)`` from :meth:`encode`.
        channels
            ``(b, N_CHANNELS, ny, nx)`` from :func:`gene_channels`.

        Returns
        -------
        ``(b, widths[0], ny, nx)``
        """
        parts = [part.contiguous(memory_format=torch.channels_last) for part in (channels, features)]
        stem = self.unet.stem
        return functional.conv2d(torch.cat(parts, 1), stem.weight[:, 1:], stem.bias, padding=1)

    def network(self, x: Tensor, sigma: Tensor, condition: Tensor, token: Tensor) -> Tensor:
        """The raw network ``F`` (Eq. 7): ``(b, 1, ny, nx)``; the state enters scaled by c_in."""
        c_in = torch.rsqrt(sigma**2 + self.spec.sigma_data**2)[:, None, None, None]
        state = (c_in * x).contiguous(memory_format=torch.channels_last)
        first = condition + functional.conv2d(state, self.unet.stem.weight[:, :1], padding=1)
        return self.unet.above(first, self._embed(sigma, token))

    def log_change(self, condition: Tensor, token: Tensor) -> Tensor:
        """Logarithm of the posterior mean rate relative to the closed form, ``(b, 1, ny, nx)``.

        Trained on the Poisson deviance, so the estimate is a mean of counts; a mean of log residuals would not be.

        Parameters
        ----------
        condition
            ``(b, widths[0], ny, nx)`` from :meth:`condition`.
        token
            ``(b, token)``.
        """
        nothing = condition.new_zeros(len(token), 1, *condition.shape[-2:])
        level = token.new_full((len(token),), _LEVEL_OF_MEAN)
        return self.network(nothing, level, condition, token).clamp(-LOG_CHANGE, LOG_CHANGE)

    def mean(self, condition: Tensor, token: Tensor, base: Tensor) -> Tensor:
        """Posterior mean rate, ``(b, 1, ny, nx)`` in the unit of ``base``; see :meth:`denoise` for the arguments."""
        return base * self.log_change(condition, token).exp()

    def draw(self, noise: Tensor, condition: Tensor, token: Tensor) -> Tensor:
        """One sample of the residual from one evaluation, ``(b, 1, ny, nx)``.

        Parameters
        ----------
        noise
            ``(b, 1, ny, nx)`` standard normal.
        condition, token
            See :meth:`denoise`.
        """
        level = token.new_full((len(token),), _LEVEL_OF_SAMPLE)
        state = noise * (_LEVEL_OF_SAMPLE**2 + self.spec.sigma_data**2) ** 0.5
        return self.denoise(state, level, condition, token)

    def forward(self, x: Tensor, sigma: Tensor, features: Tensor, channels: Tensor, token: Tensor) -> Tensor:
        """Apply :meth:`denoise` with a condition computed from ``features`` and ``channels``."""
        return self.denoise(x, sigma, self.condition(features, channels), token)

    def denoise(self, x: Tensor, sigma: Tensor, condition: Tensor, token: Tensor) -> Tensor:
        """Denoised state ``D(x; sigma)`` (Eq. 7).

        Parameters
        ----------
        x
            ``(b, 1, ny, nx)`` noisy residual.
        sigma
            ``(b,)`` noise levels.
        condition
            ``(b, widths[0], ny, nx)`` from :meth:`condition`.
        token
            ``(b, token)``.
        """
        raw = self.network(x, sigma, condition, token)
        s2, d2 = (sigma**2)[:, None, None, None], self.spec.sigma_data**2
        return d2 / (s2 + d2) * x + (s2.sqrt() * self.spec.sigma_data * torch.rsqrt(s2 + d2)) * raw
