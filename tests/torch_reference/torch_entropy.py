"""Entropy minimisation of scale and bias on `torch_patch`'s network, by PyTorch's autograd and SGD."""

import jax
import torch
from torch_reference import torch_patch


def pixel_entropy(params, frame):
    """Nats of each pixel of one frame `[H, W, 3]`, normalised by its own statistics."""
    p = torch_patch.dense(params["layer6"], torch_patch.features(params, frame[None])[1]).softmax(-1)
    return -(p * p.log()).sum(-1)


def sgd_steps(params, config, batches, loss_of):
    """Parameters after each batch: one clip on each device, gradients averaged, SGD on scale and bias."""
    params, after = torch_patch.trainable(params), []
    trained = list(params["norm"].values())
    sgd = torch.optim.SGD(trained, lr=1.0, momentum=config.momentum, weight_decay=config.weight_decay)
    for step, batch in enumerate(batches):
        sgd.param_groups[0]["lr"] = config.learning_rate * (1 - step / config.decay_steps) ** config.power
        sgd.zero_grad()
        for frames in batch["frames"]:
            (loss_of(params, frames[0]) / len(batch["frames"])).backward()
        sgd.step()
        after.append(jax.tree.map(lambda x: x.detach().numpy().copy(), params))
    return after
