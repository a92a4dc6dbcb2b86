"""Your own cameras: unlabelled video in, adapted model out.

python main.py --config=configs/own_video.py --workdir=runs/mine --config.init_from=CHECKPOINT \\
    --config.data.target.raw_dir=FOLDER

Network, classes, size and how flow is resized come from the checkpoint.
"""

from ml_collections import ConfigDict

from configs import base


def get_config():
    """Builds the settings for unlabelled video of one's own."""
    config = base.get_config()
    config.from_checkpoint = True
    config.method = "stpl_plus"
    config.compare_with = ("source_only", "alpha_bn")
    config.data.target.name = "own_video"
    config.data.target.size = (0, 0)  # the checkpoint's, in the video's aspect ratio
    config.optim.learning_rate = 1e-4
    config.optim.steps = config.optim.decay_steps = 500
    config.optim.clip_norm = 5.0
    config.batch_norm.average_over = "clean"
    config.rows.alpha_bn = ConfigDict(dict(optim=dict(steps=100)))
    config.evaluate.every = 0
    config.checkpoint.every = 100
    config.log_every = 25
    return config
