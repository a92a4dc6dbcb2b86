"""Nothing is trained; the share of statistics is tested where it is chosen, and in a run of configs/camvid.py."""

import jax
import numpy as np
import pytest

from input_pipeline.errors import UserError
from stpl_jax.methods import make_method
from stpl_jax.train_state import create_state, make_train_step


def test_a_step_changes_nothing(tiny_config, tiny_segmenter, tiny_variables, clips):
    tiny_config.method, tiny_config.batch_norm.prior = "blend", 0.5
    method = make_method(tiny_config, tiny_segmenter)
    assert list(method.needs) == ["target"] and not method.needs["target"].labels
    state = create_state(method, method.optimisers(tiny_config.optim), tiny_variables, jax.random.key(0))
    batch = {"target": jax.tree.map(lambda x: x[None], clips(1, frames=1, pairs=()))}
    after, _ = jax.vmap(make_train_step(method, {}, 0), (None, 0), axis_name="devices")(state, batch)
    for part in ("params", "batch_stats"):
        jax.tree.map(lambda a, b: np.testing.assert_array_equal(a[0], b), getattr(after, part), getattr(state, part))


def test_without_a_share_it_says_which_settings_there_are(tiny_config, tiny_segmenter):
    tiny_config.method = "blend"
    with pytest.raises(UserError, match="batch_norm.prior or batch_norm.choose_prior"):
        make_method(tiny_config, tiny_segmenter)
