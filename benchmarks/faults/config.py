"""The run that the fault campaign disturbs: the embedded benchmark, with few clips and the narrowest network."""

from configs import synthetic


def get_config():
    """Builds settings with which all phases of a run take seconds."""
    config = synthetic.get_config()
    config.steps = 6
    config.log_every = 1
    config.cpu_devices = 1
    config.clips_per_device = 1
    config.evaluate.update(dict(every=3, clips_per_device=1))
    config.checkpoint.update(dict(every=2, keep=3))  # an older one is there, also where the last is not yet
    config.method, config.compare_with = "stpl", ("source_only",)
    config.rows.source_only.clips_per_device = 1
    config.report.update(dict(frames=1, analysis=True))
    config.analysis.update(dict(clips=2, pixels=8, neighbours=(1, 2, 5), tsne_pixels=4, frames=1))
    config.data.source.size = config.data.target.size = (32, 64)
    config.data.threads = 1
    config.world.update(
        dict(size=(64, 128), source_clips=8, target_train_clips=6, target_val_clips=3, video_frames=3, workers=2)
    )
    config.model.backbone.update(dict(widths=(4, 4, 4, 4), stem_width=4, stem_kernel=3))
    config.model.classifier_dilations = (1, 2)
    config.methods.stpl.projection.update(dict(hidden=8, dim=4))
    return config
