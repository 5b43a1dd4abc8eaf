"""Training and fine-tuning of the model; never imported by inference."""

from hadmst_sc.train.config import TrainConfig, load_config
from hadmst_sc.train.loop import train

__all__ = ["TrainConfig", "load_config", "train"]
