"""Training: fine-tune the bundled network on sections of your own, or train a network from a configuration file.

Needs ``pip install 'hadmst-sc[train]'``. Inference never imports it.
"""

from hadmst_sc.train.config import TrainConfig, load_config
from hadmst_sc.train.fine_tune import fine_tune
from hadmst_sc.train.loop import train

__all__ = ["TrainConfig", "fine_tune", "load_config", "train"]
