"""VIPER → Cityscapes-Seq (paper, Table 1): ResNet-101, 15 classes, 720×1280 source, 512×1024 target."""

from configs import base


def get_config():
    """Builds the paper's settings for VIPER → Cityscapes-Seq; set data.source.raw_dir and data.target.raw_dir."""
    return base.get_config()
