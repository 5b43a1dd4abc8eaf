"""Super-resolved gene expression from H&E and spots, from SpatialData into SpatialData.

Importing the package is cheap: submodules, and with them torch, matplotlib and spatialdata, load when first used.
"""

from __future__ import annotations

import sys
import warnings
from importlib import import_module
from importlib.machinery import ModuleSpec
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # for editors and type checkers; at run time `__getattr__` does it
    from types import ModuleType

    from hadmst_sc import datasets, io, metrics, models, pl, pp, tl, train

__version__ = "0.1.0"

__all__ = ["__version__", "datasets", "io", "metrics", "models", "pl", "pp", "tl", "train"]


def __getattr__(name: str) -> ModuleType:  # PEP 562
    if name in __all__:
        return import_module(f"{__name__}.{name}")
    raise AttributeError(f"module '{__name__}' has no attribute '{name}'. Available: {__all__}.")


def __dir__() -> list[str]:
    return __all__


# Modules under the names that they had first. Importing one gives the module of today, with a warning; a few names in
# it are others now.
MOVED = dict(
    pair.split("=")
    for pair in """
additive=regression.additive agreement=alignment.evidence allocator=runtime
arguments=section.arguments components=distillation.components contract=section.observation
datasets.cells=phantom.cells datasets.fields=phantom.fields datasets.genes=phantom.cells
datasets.render=phantom.render datasets.section=datasets.visium datasets.simulate=phantom.simulate
datasets.spots=phantom.simulate datasets.tissue=phantom.tissue deformation=alignment.warp distill=distillation.genes
expression=diffusion.denoiser features=section.features grid=section.grid io.again=io.result io.interrupts=io.lock
io.mask=io.tissue io.problems=section.errors io.text=section.arguments io.thumbnail=io.resample
io.untrusted=io.contents kriging=regression.kriging measurement=section.measurement
metagenes=distillation.metagenes models.encoder=models.distillation models.hadmst=models.diffusion
models.unet=models.local models.windows=models.local pl._arguments=pl._draw pl._section=pl._result
place=alignment.evidence registration=alignment.register reliability=trust.reliability threads=runtime
tl._chunk=inference.chunk tl._cluster=inference.workers tl._device=runtime tl._estimate=inference.cost
tl._features=inference.prepare tl._gate=trust.gate tl._key=inference.settings tl._memory=inference.workers
tl._mixture=inference.by_metagenes tl._predict=inference.predict tl._prepare=inference.prepare
tl._progress=runtime tl._quantiles=tl.quantiles tl._reliability=tl.reliability tl._section=inference.shared
tl._settings=inference.settings tl._shapes=tl.bins_to_shapes tl._summary=tl.summary
tl._superresolve=tl.superresolve tl._work=inference.workers train.discriminator=models.adversary
train.draws=train.losses train.settings=train.config uncertainty=trust.intervals weights=models.weights
""".split()
)


class _MovedFinder:
    """Finds modules under their names of version 0.1."""

    @classmethod
    def find_spec(cls, name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        package, _, old = name.partition(".")
        return ModuleSpec(name, cls()) if package == __name__ and old in MOVED else None  # type: ignore[arg-type]

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        new = f"{__name__}.{MOVED[spec.name.partition('.')[2]]}"
        warnings.warn(f"`{spec.name}` is `{new}` now. Import that.", DeprecationWarning, stacklevel=2)
        module = import_module(new)
        self._spec = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        module.__spec__ = self._spec  # the import system put in that of the old name


if not any(getattr(one, "__name__", "") == "_MovedFinder" for one in sys.meta_path):  # as after a reload
    sys.meta_path.append(_MovedFinder)  # type: ignore[arg-type]
