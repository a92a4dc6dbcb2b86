"""The embedded benchmark in SYNTHIA-Seq's layout and classes: 12 trained, 11 scored (paper, Table 2)."""

from configs import synthetic


def get_config():
    """Builds the embedded benchmark's settings, with a source world written as SYNTHIA-Seq is."""
    config = synthetic.get_config()
    config.data.classes = "synthia_seq"
    config.data.source.name = config.world.source_layout = "synthia_seq"
    config.methods.tps.target_weight = 1.0  # the publication's for SYNTHIA-Seq
    config.methods.tps.own.learning_rate = 2.5e-4  # beside it
    return config
