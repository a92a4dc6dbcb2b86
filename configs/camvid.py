"""One drive of CamVid, real video: adapted on its first half, scored on its second, from public Cityscapes weights.

python main.py --config=configs/camvid.py --workdir=runs/0001TP --config.init_from=CHECKPOINT \\
    --config.data.target.raw_dir=CAMVID --config.data.target.drive=0001TP

Network and classes come from the checkpoint. Frames are read at the size of the widely used copy; a larger one is
--config.data.target.size="(544, 720)". No source data is read.
"""

from ml_collections import ConfigDict

from configs import base

# Of the rows that learn: `python -m benchmarks.real --tune` gave every row the same tries, on the drive 0006R0; see
# benchmarks/results/real_tuning.md. da_vsn_free came out the same with each.
LEARNING_RATES = {
    "tent": 1e-4,
    "cotta": 1e-3,
    "sar": 1e-5,
    "self_training": 1e-3,
    "duplicate": 1e-4,
    "temporal": 1e-4,
    "spatial": 1e-4,
    "naive": 1e-4,
    "ur": 1e-3,
    "hcl": 1e-3,
    "da_vsn_free": 1e-3,
    "vat_vst_free": 1e-4,
    "tps_free": 1e-4,
    "stpl": 1e-4,
    "stpl_plus": 1e-5,
}


def rate_of(row, rate):
    """What sets a row's learning rate, as `config.rows` has it."""
    if row == "cotta":  # its Adam has a rate of its own
        return dict(methods=dict(cotta=dict(learning_rate=rate)))
    return dict(optim=dict(learning_rate=rate))


def get_config():
    """Builds the settings for a drive of CamVid."""
    config = base.get_config()
    config.from_checkpoint = True
    # One device and one clip at a time: two cores take 2 to 3 s for it, and online methods see a single stream.
    config.cpu_devices = 1
    config.clips_per_device = config.evaluate.clips_per_device = 1
    # XLA's own code for convolutions and products, YNNPACK for sums alone: more clips/s with this network on a CPU.
    config.cpu_xla_flags += " --xla_cpu_experimental_ynn_fusion_type=LIBRARY_FUSION_TYPE_REDUCE"
    config.method = "stpl_plus"
    config.compare_with = ("source_only", "bn_statistics", "alpha_bn")
    config.data.target.name = "camvid"
    config.data.target.drive = "0001TP"
    config.data.target.size = (360, 480)
    config.optim.learning_rate = 1e-4
    config.optim.steps = config.optim.decay_steps = 60
    config.optim.clip_norm = 5.0
    config.batch_norm.average_over = "clean"
    # At a rate of 1e-4, rates that add up to the public code's 1.6, see configs/base.py: here from 1e-4·60/1.9.
    config.methods.ur.decoder_multiplier = 500.0
    config.evaluate.every = 0
    config.checkpoint.every = 30
    config.log_every = 10
    config.rows.update({name: rate_of(name, rate) for name, rate in LEARNING_RATES.items()})
    # Statistics alone: of more frames at once, for a pass over a drive's first half takes 13 to 26 steps then.
    statistics = dict(clips_per_device=4, optim=dict(steps=30))
    for name in ("bn_statistics", "alpha_bn"):
        config.rows[name] = ConfigDict(statistics)
    for name in ("alpha_bn_25", "alpha_bn_75"):
        config.rows[name].update(ConfigDict(statistics))
    config.rows.ubna.clips_per_device = 4
    config.rows.blend.clips_per_device = 4
    return config
