"""Train samplers with and without the adversarial learner: ``python training/adversary.py``.

All start from the same weights and see the same crops of the same phantoms: two of one seed differ in the adversarial
learner alone. The task ``draws`` of the benchmark compares their samples. A run that was stopped is continued.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from hadmst_sc.train.config import load_config
from hadmst_sc.train.fine_tune import train_and_save

HERE = Path(__file__).parent
N_SEEDS = 3


def main() -> None:
    config, folder = load_config(HERE / "adversary.toml"), HERE / "run" / "adversary"
    for seed in range(N_SEEDS):
        for arm, weight in (("with", config.adversary), ("without", 0.0)):
            target = HERE / "adversary" / f"{arm}_{seed}.safetensors"
            if not target.exists():
                target.parent.mkdir(exist_ok=True)
                own = replace(config, seed=seed, adversary=weight)
                train_and_save(own, folder / f"{arm}_{seed}", sections={}, shared=folder, weights=target)
                print(f"wrote {target}", flush=True)


if __name__ == "__main__":  # phantoms are made by worker processes, which import this file
    main()
