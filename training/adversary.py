"""Train samplers with and without the adversarial learner: ``python training/adversary.py [with_0 without_0 …]``.

All start from the same weights and see the same crops of the same phantoms: two of one seed differ in the adversarial
learner alone. The task ``draws`` of the benchmark compares their samples. A run that was stopped is continued. Each
uses one thread; to use more cores, run the script once per sampler, after the phantoms of the first are made.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

from hadmst_sc.train.config import load_config
from hadmst_sc.train.fine_tune import train_and_save

HERE = Path(__file__).parent
SAMPLERS = [f"{arm}_{seed}" for seed in range(3) for arm in ("with", "without")]


def main(samplers: list[str]) -> None:
    config, folder = load_config(HERE / "adversary.toml"), HERE / "run" / "adversary"
    for sampler in samplers:
        arm, seed = sampler.split("_")
        target = HERE / "adversary" / f"{sampler}.safetensors"
        if not target.exists():
            target.parent.mkdir(exist_ok=True)
            own = replace(config, seed=int(seed), adversary=config.adversary if arm == "with" else 0.0)
            train_and_save(own, folder / sampler, sections={}, shared=folder, weights=target)
            print(f"wrote {target}", flush=True)


if __name__ == "__main__":  # phantoms are made by worker processes, which import this file
    main(sys.argv[1:] or SAMPLERS)
