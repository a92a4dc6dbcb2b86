"""The embedded benchmark with worlds that are more like real video: the target is one drive, at another place.

Version 2 of the generated worlds: the camera hangs elsewhere, streets have other contents, and the look is one
camera's. On real drives mIoU rises with the share of the target's statistics and falls again; these worlds are made to
do the same, which `python -m experiments.tables --table=9` measures.
"""

from configs import synthetic


def get_config():
    """Builds the embedded benchmark's settings on version 2 of the generated worlds."""
    config = synthetic.get_config()
    config.world.version = "2"
    config.world.gap = (0.2, 0.7)
    return config
