"""The forward passes that methods share: the scores that pseudo-labels are made of, against PyTorch."""

import jax
import numpy as np
import pytest
from patch_network import patch_network
from torch_reference import torch_patch

from stpl_jax.forward import label_scores


@pytest.fixture(scope="module")
def scored(clips, drawn_variables, tiny_settings):
    """For each kind of statistics: ours and PyTorch's scores of the clip and of its mirror image; and the gradient."""
    with jax.enable_x64(True):
        segmenter, config = patch_network(), tiny_settings.copy_and_resolve_references()
        variables, data = drawn_variables(segmenter), clips(2, seed=4, size=(16, 32))
        stats = {"norm": {"mean": np.linspace(90, 150, 48), "var": np.linspace(2000, 5000, 48)}}

        def score(params, statistics):
            clip = (data["frames"], data["flow"])
            return label_scores(config, segmenter, params, stats, *clip, statistics)

        def total(params):
            return sum(view.main.sum() for view in score(params, "running"))

        ours = {statistics: score(variables["params"], statistics) for statistics in ("running", "batch")}
        gradient = jax.grad(total)(variables["params"])
        expected = {}
        for statistics, averages in (("running", stats), ("batch", None)):
            frames, flow = data["frames"], data["flow"][:, 0]
            turned = np.flip(frames, 3), np.flip(flow, 2) * np.array([-1, 1], np.int16)
            params = torch_patch.detached(torch_patch.trainable(variables["params"]))
            views = [torch_patch.scores(params, f[:, 0], f[:, 1], o, averages) for f, o in ((frames, flow), turned)]
            expected[statistics] = views[0][:2], [x.flip(2) for x in views[1][:2]]
        return ours, expected, gradient


@pytest.mark.parametrize("statistics", ["running", "batch"])
def test_label_scores_are_those_of_the_clip_and_of_its_mirror_image(scored, statistics):
    ours, expected, _ = scored
    for view, (auxiliary, main) in zip(ours[statistics], expected[statistics], strict=True):
        np.testing.assert_allclose(view.main, main, rtol=1e-8, atol=1e-10)
        np.testing.assert_allclose(view.auxiliary, auxiliary, rtol=1e-8, atol=1e-10)


def test_label_scores_differ_by_statistics_and_have_no_gradient(scored):
    ours, _, gradient = scored
    assert np.abs(ours["running"][0].main - ours["batch"][0].main).max() > 1e-2
    assert np.abs(ours["running"][0].main - ours["running"][1].main).max() > 1e-2
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(gradient))
