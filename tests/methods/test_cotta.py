"""CoTTA: two steps against PyTorch's autograd and Adam in float64; what is restored, and what predicts."""

import jax
import numpy as np
import pytest
import torch
from patch_network import patch_network
from torch.nn import functional as F
from torch_reference import torch_patch

from stpl_jax import models, parallel, validation
from stpl_jax.methods import make_method
from stpl_jax.train_state import create_state, make_train_step

SCALES, SURE, DECAY = (0.5, 1.0, 1.5), 0.4, 0.9


def scores(params, frame):
    """Main scores `[h, w, K]` of one frame `[H, W, 3]`."""
    return torch_patch.dense(params["layer6"], torch_patch.features(params, frame[None])[1])[0]


def resized(x, size):
    """`[h, w, C]` to another grid, corners on corners."""
    x = F.interpolate(x.permute(2, 0, 1)[None], size=size, mode="bilinear", align_corners=True)
    return x[0].permute(1, 2, 0)


def pseudo_labels(teacher, source, frame):
    """The teacher's probabilities of a frame, averaged where the source model is not sure; and where it is."""
    with torch.no_grad():
        direct, total, count = scores(teacher, frame).softmax(-1), 0, 0
        for scale in SCALES:
            copy = resized(frame, [int(scale * side) for side in frame.shape[:2]])
            total = total + resized(scores(teacher, copy).softmax(-1), direct.shape[:2])
            total = total + resized(scores(teacher, copy.flip(1)).softmax(-1).flip(1), direct.shape[:2])
            count += 2
        sure = scores(source, frame).softmax(-1).max(-1, keepdim=True).values > SURE
        return torch.where(sure, direct, total / count), sure


@pytest.fixture
def made(tiny_config, drawn_variables):
    """The method, its optimisers and first state, as a function of changed settings."""

    def make(**settings):
        tiny_config.method = "cotta"
        tiny_config.methods.cotta.update(
            dict(scales=SCALES, confidence=SURE, teacher_decay=DECAY, learning_rate=0.01) | settings
        )
        segmenter = models.with_frame_statistics(patch_network(), models.frame_statistics(tiny_config))
        method = make_method(tiny_config, segmenter)
        optimisers = method.optimisers(tiny_config.optim)
        state = create_state(method, optimisers, drawn_variables(segmenter), jax.random.key(0))
        return method, optimisers, jax.tree.map(np.asarray, state)

    return make


@pytest.mark.usefixtures("x64")
def test_two_steps_against_pytorch(made, tiny_config, clips):
    torch.set_num_threads(1)
    method, optimisers, before = made(restored=0.0)
    assert method.online and list(method.needs) == ["target"] and not method.needs["target"].labels
    state, step = parallel.replicate(before), parallel.pmap(make_train_step(method, optimisers, 0), donate_state=True)
    source = torch_patch.trainable(before.params["network"]["segmenter"])
    student, teacher = torch_patch.trainable(before.params["network"]["segmenter"]), torch_patch.detached(source)
    leaves, shares = jax.tree.leaves(student), []
    adam = torch.optim.Adam(leaves, betas=(0.9, 0.999))
    for number in range(2):
        batch = clips(8, seed=number, frames=1, pairs=(), size=(16, 32))
        state, metrics = step(state, {"target": parallel.split_over_devices(batch)})
        adam.zero_grad()
        total = 0
        for frames in batch["frames"]:
            frame = torch.tensor(frames[0]).double()
            labels, sure = pseudo_labels(teacher, source, frame)
            loss = -(labels * scores(student, frame).log_softmax(-1)).sum(-1).mean() / 8
            loss.backward()
            total += loss.item()
            shares.append(sure.double().mean().item())
        adam.param_groups[0]["lr"] = 0.01 * (1 - number / 10) ** 0.9
        adam.step()
        teacher = jax.tree.map(lambda t, s: DECAY * t + (1 - DECAY) * s.detach(), teacher, student)

        np.testing.assert_allclose(parallel.unreplicate(metrics)["loss/network"], total, rtol=1e-8)
        found = parallel.unreplicate(state)

        def close(a, b):
            np.testing.assert_allclose(a, b.detach(), rtol=1e-6, atol=1e-8)

        jax.tree.map(close, found.params["network"]["segmenter"], student)
        jax.tree.map(close, found.extra["teacher"], teacher)
        jax.tree.map(np.testing.assert_array_equal, found.extra["source"], before.extra["source"])
    assert 0.05 < np.mean(shares) < 0.95, "the threshold would not be noticed"
    assert validation.model_of(found, method)[0] is found.extra["teacher"]


@pytest.mark.usefixtures("x64")
def test_parameters_are_restored_at_random_by_the_step_alone(made):
    method, _, before = made(restored=0.25)
    source = before.params["network"]["segmenter"]
    moved = jax.tree.map(lambda x: x + 1, source)
    after = before.replace(step=np.int32(1), params={"network": {"segmenter": moved}})
    draws = []
    for step in (1, 1, 2):
        found = method.after_update(after.replace(step=np.int32(step)), None)
        back = jax.tree.map(lambda a, b: np.asarray(a == b), found.params["network"]["segmenter"], source)
        kept = jax.tree.map(lambda a, b: np.asarray(a == b), found.params["network"]["segmenter"], moved)
        jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, ~b), back, kept)
        # The teacher follows what the student was before.
        jax.tree.map(
            lambda t, s: np.testing.assert_allclose(t, s + (1 - DECAY), rtol=1e-9), found.extra["teacher"], source
        )
        draws.append(np.concatenate([leaf.ravel() for leaf in jax.tree.leaves(back)]))
    assert 0.2 < draws[0].mean() < 0.3
    np.testing.assert_array_equal(draws[0], draws[1])
    assert (draws[0] != draws[2]).any()
