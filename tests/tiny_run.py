"""A run small enough for tests: the embedded benchmark with a handful of clips and the narrowest network."""

from configs import synthetic


def tiny_run_config(steps=4):
    """Builds a configuration whose rows take seconds; everything but the sizes is the embedded benchmark's."""
    config = synthetic.get_config()
    config.seed = 7
    config.steps = steps
    config.log_every = 1
    config.clips_per_device = 1
    config.evaluate.clips_per_device = 1
    config.checkpoint.every = 2
    config.method, config.compare_with = "stpl", ("source_only",)
    config.report.update(dict(frames=1, analysis=False))
    config.compilation_cache = False
    config.data.source.size = config.data.target.size = (32, 64)
    config.data.threads = 1
    config.world.update(
        dict(size=(64, 128), source_clips=10, target_train_clips=10, target_val_clips=9, video_frames=3)
    )
    config.model.backbone.update(dict(widths=(4, 4, 4, 4), stem_width=4, stem_kernel=3))
    config.model.classifier_dilations = (1, 2)
    return config
