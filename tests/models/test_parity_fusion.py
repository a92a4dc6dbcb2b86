"""The four fusions and the projection head against PyTorch, and STAM by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from torch.nn import functional as F
from torch_reference import torch_names, torch_stpl

from stpl_jax.models.fusion import make_fusion
from stpl_jax.models.projection import Projection

pytestmark = pytest.mark.usefixtures("x64")


def test_stam_by_hand():
    # z'_{t-1} has mean 3 and largest 6, z_t has mean 2 and largest 4.
    features = jnp.asarray([[[1.0, 2], [3, 6]], [[0, 4], [2, 2]]]).reshape(1, 2, 2, 2, 1)
    # FC(avg) + FC(max), the bias counted twice:
    #   earlier: 1·(3 + 6) - 1·(2 + 4) + 2·(ln 3 - 3)/2 = ln 3, sigmoid 3/4
    #   current: 0·(3 + 6) + ½·(2 + 4) - 2·(ln 3 + 3)/2 = -ln 3, sigmoid 1/4
    log3 = np.log(3)
    temporal = {
        "kernel": jnp.asarray([[1.0, 0.0], [-1.0, 0.5]]),  # [from, to]
        "bias": jnp.asarray([(log3 - 3) / 2, -(log3 + 3) / 2]),
    }
    # A_tem ⊗ z': [[0.75, 1.5], [2.25, 4.5]] and [[0, 1], [0.5, 0.5]]
    # over both: average [[0.375, 1.25], [1.375, 2.5]], largest [[0.75, 1.5], [2.25, 4.5]]
    # At each pixel 4·average - 2·largest = [[0, 2], [1, 1]]; 0.8·average of the pixel to the right, nothing beyond the
    # border, adds [[1, 0], [2, 0]]; bias -1: [[0, 1], [2, 0]]; sigmoids [[0.5, 0.7310585786], [0.8807970780, 0.5]].
    kernel = np.zeros((7, 7, 2, 1))
    kernel[3, 3, :, 0] = 4, -2
    kernel[3, 4, 0, 0] = 0.8
    spatial = {"kernel": jnp.asarray(kernel), "bias": jnp.asarray([-1.0])}
    params = {"temporal": temporal, "spatial": spatial}
    out = jax.jit(make_fusion("stam", param_dtype=jnp.float64).apply)({"params": params}, turned(features))
    # A_spa ⊗ A_tem ⊗ z' + z':
    #   earlier: 0.5·0.75 + 1, 0.7310585786·1.5 + 2, 0.8807970780·2.25 + 3, 0.5·4.5 + 6
    #   current: 0.5·0 + 0, 0.7310585786·1 + 4, 0.8807970780·0.5 + 2, 0.5·0.5 + 2
    earlier = [[1.375, 3.0965878679], [4.9817934255, 8.25]]
    current = [[0, 4.7310585786], [2.4403985390, 2.25]]
    np.testing.assert_allclose(out[0, ..., 0], earlier, rtol=1e-10)
    np.testing.assert_allclose(out[0, ..., 1], current, rtol=1e-10)


def turned(features):
    """`[B, T, h, w, C]`, earliest frame first, to what fusions take: `[T, B, ...]`, newest first."""
    return features.swapaxes(0, 1)[::-1]


def random_params(module, *inputs):
    shapes = jax.eval_shape(module.init, jax.random.key(0), *inputs).get("params", {})
    random = np.random.default_rng(1)
    return jax.tree.map(lambda leaf: random.normal(0, 0.3, leaf.shape), shapes)


def compare(name, module, reference, features, theirs):
    """Values, and gradients with respect to features and parameters; `theirs` applies the reference to a leaf."""
    params = random_params(module, jnp.asarray(features))
    torch_names.load(reference.double(), params)
    leaf = torch.tensor(features, requires_grad=True)
    expected = theirs(leaf)
    weights = np.random.default_rng(2).normal(size=expected.shape)
    expected.backward(torch.tensor(weights))

    @jax.jit
    def ours(params, features, weights):
        out, backward = jax.vjp(lambda p, x: module.apply({"params": p}, x), params, features)
        return out, backward(weights)

    found, (by_params, by_features) = ours(params, jnp.asarray(features), jnp.asarray(weights))
    named = dict(reference.named_parameters())
    pairs = [(found, expected), (by_features, leaf.grad)]
    for path, gradient in jax.tree_util.tree_leaves_with_path(by_params):
        pairs.append((torch_names.as_torch(gradient), named.pop(torch_names.torch_name(path)).grad))
    assert not named
    errors = [np.abs(np.asarray(a) - b.detach().numpy()).max() / b.abs().max().item() for a, b in pairs]
    print(f"\n{name}: value {errors[0]:.1e}, gradients {', '.join(f'{e:.1e}' for e in errors[1:])}", end="")
    assert all(error <= 1e-11 for error in errors)


@pytest.mark.parametrize("name", ["add", "concat", "conv1x1", "stam"])
def test_fusions(name):
    features = np.random.default_rng(0).normal(size=(2, 2, 5, 9, 3))  # [B, T, h, w, C], earliest first
    compare(
        name,
        make_fusion(name, param_dtype=jnp.float64),
        reference := torch_stpl.FUSIONS[name](3),
        np.ascontiguousarray(turned(features)),
        lambda leaf: reference(leaf.flip(0).permute(1, 0, 4, 2, 3)).permute(0, 2, 3, 1),
    )


def test_projection():
    features = np.random.default_rng(0).normal(size=(2, 5, 9, 3))
    compare(
        "projection",
        Projection(7, 4, param_dtype=jnp.float64),
        reference := torch_stpl.Projection(3, 7, 4),
        features,
        lambda leaf: F.normalize(reference(leaf.permute(0, 3, 1, 2)), dim=1).permute(0, 2, 3, 1),
    )
