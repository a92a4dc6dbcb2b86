"""ACCEL at full depth against PyTorch: weights through the converter, two frames and flow in, fused scores out."""

import copy

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from torch_reference.torch_accel import TorchAccel, draw_weights, normalise
from torch_reference.torch_names import read

from configs import viper
from stpl_jax.convert.segmentation import convert_accel
from stpl_jax.convert.torch_files import read_state_dict
from stpl_jax.forward import extract, flow_on_grid, frames_first
from stpl_jax.models.accel import accel_module, as_network

SIZE = (64, 128)  # features are 9×17
TOLERANCE = {"float32": 1e-4, "float64": 1e-9}


@pytest.fixture(scope="module", autouse=True)
def fast():
    """One run of each program: less time for the compiler, and no threads that wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    """PyTorch's network, and our variables out of its file."""
    module = draw_weights(TorchAccel())
    path = tmp_path_factory.mktemp("weights") / "accel.pth"
    torch.save(module.state_dict(), path)
    converted = convert_accel(read_state_dict(path), "viper", lambda setting: viper.get_config())
    path.unlink()
    return module, converted.variables


@pytest.fixture(scope="module")
def clip(clips):
    """Two frames `[1, 2, H, W, 3]` and flow `[1, H, W, 2]` of up to 20 pixels."""
    frames = clips(1, size=SIZE)["frames"]
    # In halves of a pixel: float32 holds them, and PyTorch's weights of this resize, exactly.
    return frames, (np.random.default_rng(0).integers(-40, 41, (1, *SIZE, 2)) * 5).astype(np.int16)


def of_torch(module, clip, dtype, mode):
    """Fused scores, all features, and the network after the pass."""
    module = copy.deepcopy(module).to(getattr(torch, dtype)).train(mode == "batch")
    frames, flow = clip
    current, earlier = (normalise(frames[:, t], getattr(torch, dtype)) for t in range(2))
    deviations = []
    for layer in module.modules():
        if isinstance(layer, type(module.layer1[0])):
            layer.register_forward_hook(lambda layer, inputs, output: deviations.append(output.std().item()))
    with torch.no_grad():
        scores = module(current, earlier, torch.from_numpy(flow).to(getattr(torch, dtype)).permute(0, 3, 1, 2) / 10)
    return scores, deviations, module


def of_ours(variables, clip, dtype, mode):
    """Fused scores and running averages after the pass."""
    config = viper.get_config()
    config.batch_norm.mode = mode
    frames, flow = clip
    with jax.enable_x64(dtype == "float64"):
        module = accel_module(config.model, 15).clone(dtype=jnp.dtype(dtype), param_dtype=jnp.dtype(dtype))
        model = as_network(module)

        @jax.jit
        def run(params, batch_stats, frames, flow):
            features, batch_stats = extract(model, params, batch_stats, frames_first(frames), config.batch_norm)
            pair = [jax.tree.map(lambda f, t=t: f[t], features) for t in range(2)]
            grid = flow_on_grid(flow, features.main.shape[2:4], config.flow.scale)
            return model.fuse(params, *(model.classify(params, frame) for frame in pair), grid), batch_stats

        params, batch_stats = (
            jax.tree.map(lambda x: jnp.asarray(x, dtype), variables[name]) for name in ("params", "batch_stats")
        )
        return jax.tree.map(np.asarray, run(params, batch_stats, frames, flow))


@pytest.mark.parametrize("mode", ["batch", "running"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_full_depth(network, clip, dtype, mode):
    module, variables = network
    expected, deviations, after = of_torch(module, clip, dtype, mode)
    assert len(deviations) == 2 * (3 + 4 + 23 + 3)
    assert min(deviations) > 0.1 and max(deviations) < 100, "activations die or explode"
    found, batch_stats = of_ours(variables, clip, dtype, mode)
    errors = {}
    for name in ("main", "auxiliary"):
        theirs = getattr(expected, name).permute(0, 2, 3, 1).numpy()
        ours = getattr(found, name)
        assert ours.shape == theirs.shape == (1, 9, 17, 15) and ours.dtype == theirs.dtype == dtype
        errors[name] = np.abs(ours - theirs).max() / np.abs(theirs).max()
    moved = jax.tree.map(lambda a, b: np.abs(a - b).max() / np.abs(b).max(), batch_stats, read(after, batch_stats))
    errors["running averages"] = np.max(jax.tree.leaves(moved))
    print(f"\nACCEL {dtype}, {mode}: " + ", ".join(f"{name} {error:.1e}" for name, error in errors.items()), end="")
    assert all(error <= TOLERANCE[dtype] for error in errors.values())
