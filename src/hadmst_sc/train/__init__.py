"""Training of the bundled model; never imported by inference."""

from hadmst_sc.train.config import TrainConfig
from hadmst_sc.train.loop import train
from hadmst_sc.train.read_config import load_config

__all__ = ["TrainConfig", "load_config", "train"]
