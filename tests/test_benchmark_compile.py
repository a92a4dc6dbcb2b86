"""What benchmarks.compile_for reads from a compiled program, finds by trying, and says; none of it needs libtpu."""

import importlib.util
import json
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import compile_for, program_cost, scaling
from stpl_jax.rows import row_config

HLO = """\
%region (a: f32[], b: f32[]) -> f32[] {
  ROOT %add.1 = f32[]{:T(128)} add(%a, %b), metadata={op_name="all-reduce(of nothing)"}
}
ENTRY %main (p: f32[1,2,3]) -> f32[2,3] {
  %psum.7 = f32[1024,256]{1,0:T(8,128)S(1)} all-reduce(%bitcast.3), channel_id=1, to_apply=%region
  %pair = (f32[10]{0:T(128)}, bf16[4,5]{1,0:T(8,128)(2,1)}, /*index=2*/f32[]{:T(128)}) all-reduce(%x, %y, %z)
  %begun = f32[7]{0} all-reduce-start(%w), channel_id=3
  %ended = f32[7]{0} all-reduce-done(%begun)
  %other = f32[99]{0} all-gather(%w), channel_id=4
  ROOT %used = f32[1024,256]{1,0} add(%psum.7, %all-reduce.1)
}
"""


def test_all_reduced_bytes_count_tuples_and_started_ones_once():
    assert scaling.all_reduced_bytes(HLO) == 4 * 1024 * 256 + (40 + 40 + 4) + 28
    assert scaling.all_reduced_bytes("ENTRY %main { ROOT %x = f32[3]{0} add(%a, %b) }") == 0


def test_all_reduced_bytes_of_a_program_compiled_here():
    def step(x):
        return jax.tree.map(lambda leaf: jax.lax.psum(leaf, "devices"), x)

    shapes = {"a": jax.ShapeDtypeStruct((8, 6, 5), jnp.float32), "b": jax.ShapeDtypeStruct((8, 11), jnp.float32)}
    program = jax.pmap(step, axis_name="devices").lower(shapes).compile()
    assert scaling.all_reduced_bytes(program.as_text()) == 4 * (30 + 11)


@pytest.mark.parametrize(
    "text, expected",
    [
        ("f32[8,128]{1,0:T(8,128)}", 4096),
        ("pred[7]", 7),
        ("bf16[3,2]{1,0}", 12),
        ("s8[5]{0}", 5),
        ("f64[]", 8),
        ("(u32[2]{0}, c64[3]{0})", 32),
        ("(token[], f32[2])", 8),
    ],
)
def test_shape_bytes(text, expected):
    assert program_cost.shape_bytes(text) == expected


def ring_by_hand(size, devices, bandwidth):
    """Sends `devices` parts round a ring: each once to be summed and once more as a sum, all devices at a time."""
    rounds = (devices - 1) + (devices - 1)
    return sum(size / devices / bandwidth for _ in range(rounds))


@pytest.mark.parametrize("devices", [1, 2, 4, 256])
def test_ring_seconds(devices):
    assert scaling.ring_seconds(212e6, devices, 200e9) == pytest.approx(ring_by_hand(212e6, devices, 200e9), rel=1e-12)


@pytest.mark.parametrize(
    "sides, links", [((1, 1), 0), ((2, 2), 2), ((8, 8), 2), ((1, 4), 1), ((8, 16), 3), ((16, 16), 4)]
)
def test_links_of_a_corner(sides, links):
    assert scaling.usable_links(sides) == links


def test_scaling_is_arithmetic_beside_a_ring():
    chip = scaling.Chip(100e12, 2**34, 1e12, 400e9, 4, "made up")
    found = scaling.scaling(chip, (2, 2), 7e12, 200e6)
    assert found["step_seconds"] == pytest.approx(7 / 35)
    # Three of four parts are sent twice; a corner has two of the four links.
    assert found["all_links"]["all_reduce_seconds"] == pytest.approx(1.5 * 200e6 / 400e9)
    assert found["corner_links"]["all_reduce_seconds"] == pytest.approx(1.5 * 200e6 / 200e9)
    assert found["corner_links"]["share_of_step"] == pytest.approx(0.0015 / 0.2015)
    alone = scaling.scaling(chip, (1, 1), 7e12, 200e6)
    assert alone["corner_links"] == alone["all_links"] == {"all_reduce_seconds": 0.0, "share_of_step": 0.0}


@pytest.mark.parametrize("limit", [1, 3, 8, 32])
def test_largest_fitting_equals_a_walk_from_one(limit):
    for most in range(40):
        asked = []

        def fits(count, most=most, asked=asked):
            asked.append(count)
            return count <= most

        assert scaling.largest_fitting(fits, limit) == max((n for n in range(1, limit + 1) if n <= most), default=0)
        assert len(asked) == len(set(asked)) <= 11 and max(asked) <= limit and asked[0] == 1


def test_topology_names():
    assert compile_for.parse_topology("v5e:2x2") == ("v5e", (2, 2))
    assert compile_for.parse_topology("v6e:16x16") == ("v6e", (16, 16))
    for name in ("v5e", "v5e:", "h100:2x2", "v5e:2x2x", "v5e-4"):
        with pytest.raises(ValueError, match="v5e, v6e.*found"):
            compile_for.parse_topology(name)


@pytest.fixture
def no_libtpu(monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "libtpu" else find(name))


def test_without_libtpu_it_says_how_to_install(no_libtpu, tmp_path):
    with pytest.raises(SystemExit, match=r"pip install -r requirements-tpu-compile\.txt"):
        compile_for.main(["compile_for", "--topology=v5e:2x2", f"--out={tmp_path}"])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--topology=v4:2x2"], "v5e, v6e"),
        (["--topologie=v5e:2x2"], "topologie"),
        (["--topology=v5e:2x2", "more"], "more"),
        ([], "--topology is missing"),
        (["--topology=v5e:2x2", "--clips=one"], "one"),
        (["--topology=v5e:2x2", "--config.no_such_key=1"], "no_such_key"),
    ],
)
def test_wrong_flags(arguments, message, no_libtpu):
    with pytest.raises(SystemExit, match=message):
        compile_for.main(["compile_for", *arguments])


def test_help_lists_the_flags(capsys):
    compile_for.main(["compile_for", "--help"])
    printed = capsys.readouterr().out
    assert "python -m benchmarks.compile_for" in printed and "--topology" in printed


def test_batch_shapes_are_what_the_loader_gives(tiny_config, clips):
    tiny_config.data.target.size, tiny_config.clips_per_device, tiny_config.optim.accumulate = (32, 64), 2, 3
    needs = {"target": types.SimpleNamespace(offsets=(0, 1, 2), flow_pairs=((0, 1), (0, 2)), labels=True)}
    expected = clips(6, frames=3, pairs=((0, 1), (0, 2)), label=True)
    found = compile_for.batch_shapes(tiny_config, needs)["target"]
    assert {k: (x.shape, x.dtype) for k, x in found.items()} == {k: (x.shape, x.dtype) for k, x in expected.items()}
    tiny_config.data.crop = (16, 24)
    assert compile_for.batch_shapes(tiny_config, needs)["target"]["label"].shape == (6, 16, 24)


@pytest.fixture
def small(tiny_config):
    """A step that compiles in seconds, for the CPU devices of the tests."""
    tiny_config.data.target.size = (32, 64)
    tiny_config.method = "supervised_on_target"
    tiny_config.rows.supervised_on_target = {"method": "oracle"}
    return tiny_config


def test_the_real_step_is_lowered_and_measured(small, optimised):
    settings = row_config(small, small.method)
    found = compile_for.measure_program(compile_for.lower_step(settings, jax.devices()[:4]), 1)
    segmenter = compile_for.build_segmenter(settings)
    variables = jax.eval_shape(lambda: compile_for.initial_variables(segmenter, jax.random.key(0)))
    sizes = {name: sum(4 * np.prod(x.shape) for x in jax.tree.leaves(tree)) for name, tree in variables.items()}
    # The gradients of what is trained, and the running averages; BatchNorm's scale and bias, as large as these, are not
    # trained. Biases of one classifier share a gradient, which the compiler reduces once.
    frozen = sizes["batch_stats"]
    assert found["bytes_all_reduced"] == pytest.approx(sizes["params"] - frozen + sizes["batch_stats"], rel=0.01)
    # The state, given and returned, is the weights, their momentum and the running averages.
    state = 2 * sizes["params"] - frozen + sizes["batch_stats"]
    assert 0.99 * state < found["outputs"] < 1.02 * state < found["arguments"] < 1.02 * state + 4 * 32 * 64 * 12
    assert found["flops"] == found["flops_per_clip"] > 0


class FakeLowered:
    """Compiles to a program that fits with three clips or fewer."""

    def __init__(self, clips):
        self.clips = clips

    def compile(self):
        if self.clips > 3:
            raise jax.errors.JaxRuntimeError(
                "RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 17.61G of 15.75G hbm. Exceeded."
            )
        return self

    def memory_analysis(self):
        return types.SimpleNamespace(
            temp_size_in_bytes=2**30 * self.clips,
            argument_size_in_bytes=2**29,
            output_size_in_bytes=2**28,
            alias_size_in_bytes=2**28,
            generated_code_size_in_bytes=2**20,
        )

    def cost_analysis(self):
        return {"flops": 8e12 * self.clips}

    def as_text(self):
        return "  %psum = f32[50000000]{0} all-reduce(%x)\n"


@pytest.fixture
def fake_chips(monkeypatch):
    """Four chips, for which every step compiles to a `FakeLowered`."""
    device = types.SimpleNamespace(device_kind="TPU v5 lite")
    monkeypatch.setattr(compile_for, "topology_devices", lambda name: [device] * 4)
    monkeypatch.setattr(compile_for, "lower_step", lambda config, devices: FakeLowered(config.clips_per_device))


def test_table_and_json(fake_chips, tmp_path, capsys):
    compile_for.main(["x", "--topology=v5e:2x2", "--dtype=float32,bfloat16", "--remat=none", f"--out={tmp_path}"])
    content = json.loads((tmp_path / "compile_v5e_2x2.json").read_text())
    assert (content["chips"], content["method"], content["size"]) == (4, "stpl", [512, 1024])
    assert content["machine"]["versions"]["jax"] == jax.__version__
    assert [(x["dtype"], x["remat"], x["clips_per_device"]) for x in content["largest"]] == [
        ("float32", "none", 3),
        ("bfloat16", "none", 3),
    ]
    tried = [(x["clips"], "does_not_fit" in x) for x in content["programs"] if x["dtype"] == "bfloat16"]
    assert tried == [(1, False), (2, False), (4, True), (3, False)]
    one = content["programs"][0]
    assert one["total"] == 2**30 + 2**29 + 2**20 and one["bytes_all_reduced"] == 200_000_000
    assert one["scaling"]["all_links"]["all_reduce_seconds"] == pytest.approx(0.0015)
    printed = capsys.readouterr().out
    assert "Used 17.61G of 15.75G hbm" in printed and "bfloat16, remat none: 3 clips a chip fit" in printed
    assert "| v5e:2x2 (4) | bfloat16 | none | 1 | 8.00 | 1.00 | 1.50 | 191 | 3.00 |" in printed


@pytest.mark.parametrize(
    "message, expected",
    [
        ("RESOURCE_EXHAUSTED: No.\nUsed 17.61G of 15.75G hbm. Exceeded.", "Used 17.61G of 15.75G hbm"),
        (
            "RESOURCE_EXHAUSTED: the memory required for HLO temporaries (18.21G) exceeds available HBM (15.75G).",
            "Temporaries of 18.21G of 15.75G hbm",
        ),
        ("RESOURCE_EXHAUSTED: other words\nmore", "RESOURCE_EXHAUSTED: other words"),
    ],
)
def test_what_matters_when_memory_is_short(message, expected):
    assert compile_for.out_of_memory(message) == expected


def test_an_earlier_call_on_the_same_commit_is_not_forgotten(fake_chips, monkeypatch, tmp_path):
    commits = iter("aab")
    monkeypatch.setattr(compile_for.measure, "machine", lambda: {"commit": next(commits)})

    def counts(*clips):
        compile_for.main(["x", "--topology=v5e:2x2", f"--clips={','.join(map(str, clips))}", f"--out={tmp_path}"])
        return [x["clips"] for x in json.loads((tmp_path / "compile_v5e_2x2.json").read_text())["programs"]]

    assert counts(1, 2) == [1, 2]
    assert counts(2, 4) == [1, 2, 4]
    assert counts(3) == [3], "another commit"


def test_what_a_search_found_stays_after_a_call_for_counts(fake_chips, tmp_path):
    for flag in ("--limit=8", "--clips=2"):
        compile_for.main(["x", "--topology=v5e:2x2", flag, f"--out={tmp_path}"])
    content = json.loads((tmp_path / "compile_v5e_2x2.json").read_text())
    assert [found["clips_per_device"] for found in content["largest"]] == [3]
    assert [found["clips"] for found in content["programs"]] == [1, 4, 3, 2]


def test_accumulated_batches_lengthen_the_step_and_not_its_clip(fake_chips, monkeypatch, tmp_path):
    config = f"--config={compile_for.measure.ROOT / 'configs' / 'viper.py'}"
    flags = ["--topology=v5e:2x2", "--clips=2", config, "--config.optim.accumulate=4", f"--out={tmp_path}"]
    monkeypatch.setattr(sys, "argv", ["x", *flags])  # ml_collections looks for keys of the configuration there
    compile_for.main(sys.argv)
    (found,) = json.loads((tmp_path / "compile_v5e_2x2.json").read_text())["programs"]
    assert found["clips"] == 2 and found["flops_per_clip"] == 8e12
    assert found["scaling"]["step_seconds"] == pytest.approx(4 * 16e12 / (0.35 * 197e12))


def test_other_failures_of_the_compiler_are_not_called_a_lack_of_memory(monkeypatch):
    def fail(self):
        raise jax.errors.JaxRuntimeError("INTERNAL: out of ideas")

    monkeypatch.setattr(FakeLowered, "compile", fail)
    with pytest.raises(jax.errors.JaxRuntimeError, match="out of ideas"):
        compile_for.measure_program(FakeLowered(1), 1)
