"""A run of configs/camvid.py from a checkpoint of Cityscapes' classes, in small."""

import json

import numpy as np
import pytest
from raw_trees import write_camvid

from configs import camvid
from input_pipeline.errors import UserError
from input_pipeline.labels import CLASSES
from stpl_jax import checkpoint, modes, settings
from stpl_jax.checkpoint_meta import CheckpointMeta
from stpl_jax.models import make_segmenter
from stpl_jax.records import read_scores
from stpl_jax.rows import row_config


@pytest.fixture
def config(tmp_path, tiny_config, drawn_variables):
    """Five frames of a drive and a source model of 19 classes, trained at another size."""
    write_camvid(tmp_path / "raw", [f"train/0006R0_f{n:05d}.png" for n in (0, 30, 60, 90, 120)])
    tiny_config.data.target.size = (32, 64)
    meta = CheckpointMeta(
        config=json.loads(tiny_config.to_json_best_effort()),
        classes=CLASSES["cityscapes_seq"],
        label_setting="cityscapes_seq",
        row="source_only",
    )
    checkpoint.save_model(tmp_path / "source", drawn_variables(make_segmenter(tiny_config.model, 19)), meta)
    config = camvid.get_config()
    config.init_from = str(tmp_path / "source")
    config.data.target.update(raw_dir=str(tmp_path / "raw"), drive="0006R0", size=(24, 32))
    config.optim.steps = config.optim.decay_steps = 1
    config.method, config.compare_with = "bn_statistics", ("source_only",)
    config.compilation_cache = False
    return modes.with_inputs(settings.expand_paths(config), tmp_path / "run", lambda line: None)


def test_a_drive_is_adapted_to_and_scored_by_camvids_classes(config, tmp_path):
    assert config.data.target.size == (24, 32) and config.data.classes == "cityscapes_seq"
    lines = []
    modes.auto(config, tmp_path / "run", lines.append)
    assert any("camvid/train: 2 clips prepared" in line for line in lines)
    for row in ("source_only", "bn_statistics"):
        confusion = np.array(read_scores(tmp_path / "run", row).last["confusion"])
        assert confusion.shape == (11, 11)
        # Each pixel of the three frames of the second half, at the size of the labels.
        assert confusion.sum() == 3 * 36 * 48


def test_a_row_with_source_data_ends_with_what_is_missing(config, tmp_path):
    config.compare_with = ("source_only", "fda")
    assert row_config(config, "fda").method == "fda"
    with pytest.raises(UserError, match="config.data.source.raw_dir is not set"):
        modes.auto(config, tmp_path / "run", lambda line: None)
