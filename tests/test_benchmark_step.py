"""The step in PyTorch is the step that ours is, the stages make up ours, and the benchmark says what it measured."""

import dataclasses
import json
import os
import random
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from torch import nn

from benchmarks import step, step_forms, step_stages, torch_augment
from benchmarks.program_cost import products_flop
from benchmarks.torch_network import FrameBatchNorm, load_weights
from benchmarks.torch_step import FORMS, Form, TorchStep
from stpl_jax import parallel
from stpl_jax.methods import make_method
from stpl_jax.models.accel import accel_module, as_network
from stpl_jax.ops import augment as our_augment
from stpl_jax.train_state import create_state, make_train_step

ROOT = Path(__file__).parents[1]
CLASSES = 5
SIZE = (32, 64)  # features are 8×16
# What a GPU machine for benchmarks does not have, and what it need not have.
ABSENT = (
    "tensorflow_datasets",
    "grain",
    "tensorflow",
    "array_record",
    "cv2",
    "matplotlib",
    "orbax",
    "PIL",
    "sklearn",
    "tensorboardX",
    "threadpoolctl",
)
# Readings of STPL that the two configurations ask for.
READINGS = {
    "paper": {"average_over": "all", "per_class": False, "class_power": 0.0, "clip_norm": 0.0, "head": 1.0},
    "embedded": {
        "average_over": "clean",
        "per_class": True,
        "class_power": -0.5,
        "clip_norm": 0.05,
        "head": 3.0,
    },
}


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """For tensors this small, PyTorch's threads cost more than they bring."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def test_needs_none_of_the_libraries_that_read_data():
    program = f"""
import sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {ABSENT}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Absent())
from benchmarks import step
for module in (step.viper, step.synthetic):
    assert module.get_config().data.classes == "viper", "of 15 classes"
"""
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def make_case(config, reading):
    """Changes a small configuration: one of `READINGS`, and no augmentation, which either side draws by itself."""
    chosen = READINGS[reading]
    config.data.target.size = SIZE
    config.batch_norm.average_over = chosen["average_over"]
    config.methods.stpl.topk.per_class = chosen["per_class"]
    config.methods.stpl.contrast.class_power = chosen["class_power"]
    config.methods.stpl.augment.update({"blur_probability": 0.0, "jitter_probability": 0.0})
    config.optim.update({"clip_norm": chosen["clip_norm"], "learning_rate": 0.02, "decay_steps": 7})
    config.methods.stpl.head_multiplier = chosen["head"]
    return config


def first_state(config, segmenter, variables):
    method = make_method(config, segmenter)
    optimisers = method.optimisers(config.optim)
    state = jax.jit(lambda v: create_state(method, optimisers, v, jax.random.key(1)))(variables)
    return method, optimisers, state


def as_tensors(clips):
    return {name: torch.from_numpy(clips[name]) for name in ("frames", "flow")}


def load(network, state):
    return load_weights(network, *jax.tree.map(np.asarray, (state.params["network"], state.batch_stats)))


@pytest.mark.parametrize("reading", READINGS)
def test_two_steps_as_ours(reading, small_config, small_variables, to_float64, x64):
    config = make_case(small_config, reading)
    module = accel_module(config.model, CLASSES).clone(dtype=jnp.float64, param_dtype=jnp.float64)
    segmenter = as_network(module)
    method, optimisers, state = first_state(config, segmenter, to_float64(small_variables))
    forms = {"plain": Form(), "batched": Form(batched=True, channels_last=True, fused=True)}
    theirs = {name: TorchStep(config, CLASSES, form, "cpu", torch.float64) for name, form in forms.items()}
    for one in theirs.values():
        load(one.network, state)
    # One device: the axis over which the step takes means has one entry.
    train_step = jax.jit(jax.vmap(make_train_step(method, optimisers, config.seed), axis_name=parallel.AXIS))
    state = jax.tree.map(lambda x: x[None], state)
    for seed in range(2):
        clips = step_forms.make_clips(config, 2, seed)
        state, metrics = train_step(state, {"target": jax.tree.map(lambda x: jnp.asarray(x)[None], clips)})
        for name, one in theirs.items():
            loss = one(as_tensors(clips))
            assert float(loss) > 1, "the clips have several classes"
            # Our learning rate is a float32.
            np.testing.assert_allclose(float(loss), float(metrics["loss/network"][0]), rtol=1e-9, err_msg=name)
    expected = TorchStep(config, CLASSES, Form(), "cpu", torch.float64).network
    load(expected, jax.tree.map(lambda x: x[0], state))
    for form, one in theirs.items():
        found = one.network.state_dict()
        for name, value in expected.state_dict().items():
            if not name.endswith("num_batches_tracked"):
                torch.testing.assert_close(found[name], value, rtol=1e-8, atol=1e-10, msg=f"{form}: {name}")


def keep_outputs(one):
    """Has a step keep the features that it computes in the list that is returned."""
    compute, outputs = one.features, []

    def features(images):
        computed = compute(images)
        outputs.append(computed.detach())
        return computed

    one.features = features
    return outputs


@pytest.mark.parametrize(("form", "count"), [("best", 3), ("best, frame by frame", 4)])
def test_best_is_near_plain_and_compiles_once(form, count, small_config, monkeypatch):
    config, graphs, compiler = make_case(small_config, "embedded"), [], torch.compile
    config.methods.stpl.augment.update({"blur_probability": 0.5, "jitter_probability": 0.5})

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    def compile_eagerly(function, mode, dynamic):
        return compiler(function, backend=backend, fullgraph=True, dynamic=dynamic)

    torch.compiler.reset()
    monkeypatch.setattr(torch, "compile", compile_eagerly)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        plain, best = (TorchStep(config, CLASSES, FORMS[name], "cpu") for name in ("plain", form))
    best.network.load_state_dict(plain.network.state_dict())
    outputs = {one: keep_outputs(one) for one in (plain, best)}
    batches = [as_tensors(step_forms.make_clips(config, 2, number)) for number in range(6)]
    for one in (plain, best):
        one(batches[0])
    assert (len(outputs[plain]), len(outputs[best])) == (4, 1 if best.form.batched else 4)
    assert all(x.dtype == torch.bfloat16 for x in outputs[best])
    assert all(x.is_contiguous(memory_format=torch.channels_last) for x in outputs[best])
    # Each number is rounded to 8 bits, seven layers deep. The loss says less: rounding moves pixels across the cut.
    expected, found = (torch.cat(outputs[one]).double() for one in (plain, best))
    error = ((found - expected).norm() / expected.norm()).item()
    assert 1e-4 < error < 0.03  # 0.011 to 0.013 by the weights' seed
    for batch in batches[1:]:
        best(batch)
    assert len(graphs) == count, "features, for the running averages' sake twice frame by frame; head; jitter"
    assert all(p.dtype == torch.float32 and p.isfinite().all() for p in best.network.parameters())


def test_settings_that_are_not_followed_are_refused(small_config):
    small_config.methods.stpl.contrast.scope = "device"
    small_config.num_frames = 3
    with pytest.raises(ValueError, match=r"num_frames=3, not 2; methods.stpl.contrast.scope='device', not 'clip'"):
        TorchStep(small_config, CLASSES, Form(), "cpu")


@pytest.mark.parametrize("averaged", [2, 4])
def test_frames_in_one_batch_are_normalised_as_frames_one_by_one(averaged):
    x = torch.randn(8, 3, 5, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0), requires_grad=True)
    together, apart = FrameBatchNorm(3).double(), nn.BatchNorm2d(3).double()
    together.groups, together.averaged = 4, averaged
    with torch.no_grad():
        for norm in (together, apart):
            norm.weight.copy_(torch.tensor([0.5, 1.0, 2.0]))
            norm.bias.copy_(torch.tensor([0.1, 0.2, 0.3]))
    outputs = []
    for number, frame in enumerate(x.chunk(4)):
        apart.momentum = 0.1 if number < averaged else 0.0
        outputs.append(apart(frame))
    found, expected = together(x), torch.cat(outputs)
    weights = torch.linspace(-1, 1, x.numel(), dtype=torch.float64).view_as(x)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(*(torch.autograd.grad((y * weights).sum(), x)[0] for y in (found, expected)))
    torch.testing.assert_close(together.running_mean, apart.running_mean)
    torch.testing.assert_close(together.running_var, apart.running_var)


@pytest.mark.parametrize("seed", range(3))
def test_augmentation_as_ours_by_the_same_draw(seed, small_config):
    numbers = random.Random(seed)
    draw = torch_augment.sample(numbers, 64, small_config.methods.stpl.augment)
    frames = np.random.default_rng(seed).uniform(0, 255, (2, 64, 48, 3)).astype(np.float32)

    def one_frame(frame):
        frame = our_augment.gaussian_blur(frame, jnp.float32(draw.sigma), 2.0)
        frame = our_augment.adjust_contrast(our_augment.adjust_brightness(frame, draw.brightness), draw.contrast)
        return our_augment.adjust_hue(our_augment.adjust_saturation(frame, draw.saturation), draw.hue)

    expected = jax.vmap(one_frame)(jnp.asarray(frames))
    both = dataclasses.replace(draw, blur=True, jitter=True)
    found = torch_augment.augment(torch.from_numpy(frames).movedim(-1, 1), both).movedim(1, -1)
    np.testing.assert_allclose(found.numpy(), expected, atol=5e-3)
    neither = dataclasses.replace(draw, blur=False, jitter=False)
    assert torch.equal(torch_augment.augment(torch.from_numpy(frames), neither), torch.from_numpy(frames))


def test_draws_follow_the_settings(small_config):
    settings, numbers = small_config.methods.stpl.augment, random.Random(0)
    draws = [torch_augment.sample(numbers, 256, settings) for _ in range(4000)]
    assert abs(np.mean([draw.blur for draw in draws]) - 0.6) < 0.03
    assert abs(np.mean([draw.jitter for draw in draws]) - 0.8) < 0.03
    assert {draw.sigma for draw in draws} == {2.5, 3.5, 4.5}
    for name, low, high in (
        ("brightness", 0.2, 1.8),
        ("contrast", 0.2, 1.8),
        ("saturation", 0.2, 1.8),
        ("hue", -0.2, 0.2),
    ):
        values = [getattr(draw, name) for draw in draws]
        np.testing.assert_allclose([min(values), max(values)], [low, high], atol=0.01)


@pytest.mark.parametrize("block", [1024, 40], ids=["one block", "nine blocks"])
def test_our_step_does_what_pytorch_counts(block, tiny_config, tiny_segmenter, tiny_variables):
    config = make_case(tiny_config, "paper")
    config.methods.stpl.contrast.block = block
    method, optimisers, state = first_state(config, tiny_segmenter, tiny_variables)
    batch = {"target": step_forms.make_clips(config, 1)}
    step = make_train_step(method, optimisers, 0)
    found = products_flop(jax.make_jaxpr(step, axis_env=[(parallel.AXIS, 1)])(state, batch))
    augmentation = jax.make_jaxpr(lambda d: method.augment(d, jax.random.key(0)))
    found -= products_flop(augmentation(batch["target"]))  # blurs by matrix products
    expected = step_forms.needed_flop(config, CLASSES)
    # Ours resizes flow by products, and may compute similarities again in the backward pass.
    similarities = 2 * 89**2 * config.methods.stpl.projection.dim
    assert expected <= found <= expected + 3 * similarities + 0.02 * expected


def test_stages_make_up_the_step(small_config, small_segmenter, small_variables):
    config = make_case(small_config, "embedded")
    method, optimisers, state = first_state(config, small_segmenter, small_variables)
    data = jax.tree.map(jnp.asarray, step_forms.make_clips(config, 2))
    parts = step_stages.stages(method, optimisers, state, data)
    assert set(step_stages.WHOLE) < set(parts)

    def run(name, *args):
        function, own = parts[name]
        return jax.jit(function)(*(args or own))

    head_gradients, cotangent = run("fusion to loss, both ways")
    backbone_args = parts["backbone, forward and backward"][1]
    _, by_backbone = run("backbone, forward and backward", *backbone_args[:-1], cotangent)
    key = jax.random.key(0)
    losses = lambda params: method.loss({"network": params}, state, {"target": data}, key)[0]["network"]  # noqa: E731
    expected = jax.jit(jax.grad(losses))(state.params["network"])
    found = {"segmenter": by_backbone, **head_gradients}
    largest = max(float(jnp.abs(x).max()) for x in jax.tree.leaves(expected))
    assert largest > 1e-3
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4 * largest), found, expected)


def test_a_run_prints_and_writes(small_config, tmp_path, monkeypatch, capsys):
    config = make_case(small_config, "paper")
    monkeypatch.setattr(sys, "argv", ["step", "--rounds=2", "--steps=1", "--forms", "plain", f"--out={tmp_path}"])
    monkeypatch.setattr(step, "set_up", lambda options, parser: ("cpu", False, config))
    monkeypatch.setattr(step, "memory_in_own_process", lambda name: {"ours": 2**30, "plain": None}[name])
    monkeypatch.setitem(step.RATES, "cpu", (64, 1024, 2))
    step.main()
    printed = capsys.readouterr().out
    assert "GPU: not measured" in printed and "plain / ours" in printed and "sum of the stages" in printed
    content = json.loads((tmp_path / "step_cpu.json").read_text())
    assert content["gpu"] == "not measured" and content["machine"]["device"] == "cpu"
    clips = jax.local_device_count()
    for row in content["forms"].values():
        speed = clips / np.median(row["seconds"])
        np.testing.assert_allclose(row["clips_per_second"], speed)
        np.testing.assert_allclose(row["share"], speed * content["flop_per_clip"] / content["rates"]["flop"])
        assert len(row["seconds"]) == 2 and np.isfinite(row["loss"])
    times = [content["forms"][name]["seconds"] for name in ("plain", "ours")]
    np.testing.assert_allclose(content["ratios"]["plain / ours"], np.median(np.divide(*times)))
    stages = {row["stage"]: row for row in content["roofline"]}
    assert set(step_stages.WHOLE) | {"step"} < set(stages)
    assert stages["step"]["flop"] > stages["backbone, forward and backward"]["flop"] > 0
    assert all(row["bytes"] > 0 and row["seconds"] > 0 for row in stages.values())


def test_a_form_that_fails_is_named_and_costs_no_other(monkeypatch, capsys):
    class Runs:
        steps = 0

        def run(self, steps):
            self.steps += steps

    def build(name, *arguments):
        assert arguments == (1, 2)
        if name != "plain":
            raise RuntimeError(f"{name}: no compiler\nand more")
        return Runs()

    monkeypatch.setattr(step, "build", build)
    forms, failed = step.build_running(["plain", "best"], 1, 2)
    assert list(forms) == ["plain"] and forms["plain"].steps == 1
    assert failed == {"best": "RuntimeError: best: no compiler"}
    assert "best does not run: RuntimeError: best: no compiler\n" in capsys.readouterr().out
    with pytest.raises(RuntimeError, match="no compiler"):
        step.build_running(["ours"], 1, 2)


def test_forms_are_what_their_names_say():
    assert FORMS["plain"] == Form() and set(FORMS) == {*step.COMPETE["cpu"], *step.COMPETE["gpu"]}
    best = FORMS["best"]
    assert all(getattr(best, field.name) for field in dataclasses.fields(Form))
