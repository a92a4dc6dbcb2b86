"""SYNTHIA-Seq → Cityscapes-Seq (paper, Table 2): ResNet-101, 12 classes trained, 11 scored."""

from configs import base


def get_config():
    """Builds the paper's settings for SYNTHIA-Seq → Cityscapes-Seq; set data.source.raw_dir and data.target.raw_dir."""
    config = base.get_config()
    config.data.classes = "synthia_seq"
    config.data.source.name = "synthia_seq"
    # 760×1280 frames, of which the bottom 120 rows are cut.
    config.data.source.size = (640, 1280)
    config.methods.tps.target_weight = 1.0  # the publication's for SYNTHIA-Seq
    config.methods.tps.own.learning_rate = 2.5e-4  # beside it
    return config
