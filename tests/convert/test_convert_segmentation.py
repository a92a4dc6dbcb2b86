"""Files of segmentation networks, converted: what comes out is the same network, and everything here accepts it."""

import json
import shutil

import jax
import numpy as np
import pytest
import torch
from flax import traverse_util
from PIL import Image
from tiny_run import tiny_run_config
from torch.nn import functional as F
from torch_reference.torch_accel import TorchAccel, draw_weights, normalise

import stpl_jax
from configs import base, viper
from input_pipeline.labels import CLASSES, PALETTE, colour_table
from input_pipeline.optical_flow import dis_flow
from stpl_jax import checkpoint, modes
from stpl_jax.checkpoint import CheckpointError
from stpl_jax.convert import ConvertError, segmentation
from stpl_jax.convert.__main__ import main
from stpl_jax.models import make_segmenter
from stpl_jax.models.network import initial_variables
from stpl_jax.rows import row_config
from stpl_jax.starting_point import starting_variables
from stpl_jax.train import build_segmenter

FRAMES = (48, 80)  # what a video has
INSIDE = (32, 64)  # what the network sees, see CONFIG


def convert(command, source, target, *flags):
    main([command, str(source), str(target), *flags])
    return target


def make_video(count, seed=0):
    """Blurred noise that drifts."""
    random = np.random.default_rng(seed)
    coarse = random.integers(0, 256, (FRAMES[0] // 4, (FRAMES[1] + 4 * count) // 4, 3), np.uint8)
    wide = Image.fromarray(coarse).resize((FRAMES[1] + 4 * count, FRAMES[0]), Image.Resampling.BICUBIC)
    return np.stack([np.asarray(wide)[:, 3 * t : 3 * t + FRAMES[1]] for t in range(count)])


def scores_of_torch(network, frames):
    """Full-size scores `[T, H, W, K]`: PyTorch's network on resized frames, DIS between them, align-corners resizes."""
    small = [np.asarray(Image.fromarray(f).resize(INSIDE[::-1], Image.Resampling.BICUBIC)) for f in frames]
    out = []
    with torch.no_grad():
        for t, frame in enumerate(small):
            flow = dis_flow(frame, small[t - 1]) if t else np.zeros((*INSIDE, 2), np.float32)
            field = torch.from_numpy(flow).permute(2, 0, 1)[None]
            fused = network(normalise(frame[None].copy()), normalise(small[max(t - 1, 0)][None].copy()), field).main
            full = F.interpolate(fused, size=FRAMES, mode="bilinear", align_corners=True)
            out.append(full[0].permute(1, 2, 0).numpy())
    return np.stack(out)


def assert_same_classes(found, scores):
    """All pixels but ties: those whose two best scores differ by no more than rounding."""
    differ = found != scores.argmax(-1)
    ordered = np.sort(scores, -1)
    margin = ordered[..., -1] - ordered[..., -2]
    print(f"{differ.sum()} of {differ.size} pixels differ; largest margin there {margin[differ].max(initial=0):.1e}")
    assert (margin[differ] <= 1e-6 * np.abs(scores).max()).all()
    assert len(np.unique(found)) > 2


def test_the_number_of_classes_tells_the_setting_where_one_has_as_many(monkeypatch):
    assert segmentation.class_names(None, 19) == ("cityscapes_seq", CLASSES["cityscapes_seq"])
    assert segmentation.class_names(None, 0)[0] == "viper"
    monkeypatch.setitem(CLASSES, "other", tuple("abcdefghijkl"))
    assert segmentation.class_names("other", 12) == ("other", tuple("abcdefghijkl"))
    with pytest.raises(ConvertError, match="12 classes may be those of synthia_seq or other: --classes="):
        segmentation.class_names(None, 12)


@pytest.mark.parametrize(
    "count, flags, setting, first",
    [
        (15, (), "viper", "road"),
        (12, (), "synthia_seq", "road"),
        (7, (), None, "class_00"),
        (4, ("--classes=sky,road, cat,dog",), None, "sky"),
        (15, ("--classes=viper",), "viper", "road"),
    ],
)
def test_accel_gives_the_class_maps_of_pytorch(
    saved, tmp_path, small_network, small_config, count, flags, setting, first
):
    network = small_network(count)
    out = convert("accel", saved(network.state_dict()), tmp_path / "out", small_config, *flags)
    model = stpl_jax.load(out)
    frames = make_video(3)
    assert_same_classes(model.segment(frames), scores_of_torch(network, frames))

    assert model.classes[0] == first and len(model.classes) == count and model.size == INSIDE
    meta = checkpoint.load_model(out).meta
    assert meta.label_setting == setting
    assert meta.source == "accel input.pth" and meta.versions["torch"] == torch.__version__
    if setting:
        assert model.classes == CLASSES[setting] and (model.palette == colour_table(CLASSES[setting], setting)).all()
    else:
        assert len(np.unique(model.palette[:count], axis=0)) == count
        for i, name in enumerate(model.classes):
            assert name not in PALETTE or tuple(model.palette[i]) == PALETTE[name]


def stored(folder):
    return traverse_util.flatten_dict(checkpoint.load_model(folder).variables, sep="/")


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("dressed", [False, True])
def test_prefix_wrapper_counters_and_container_change_nothing(
    saved, tmp_path, small_network, small_config, capsys, dressed, legacy
):
    state = small_network().state_dict()
    if dressed:
        content = {f"module.{name}": x for name, x in state.items()}
        content = {"epoch": 3, "state_dict": content, "optimizer": {"state": {}, "param_groups": [{"lr": 0.1}]}}
    else:
        content = {name: x for name, x in state.items() if not name.endswith("num_batches_tracked")}
    file = saved(content, _use_new_zipfile_serialization=not legacy)
    flat = stored(convert("accel", file, tmp_path / "out", small_config))
    printed = capsys.readouterr().out
    assert ("prefix module. taken off" in printed) == dressed == ("counters num_batches_tracked" in printed)
    # By hand, some of each kind.
    for name, path, axes in (
        ("conv1.weight", "params/backbone/conv1/kernel", (2, 3, 1, 0)),
        ("layer3.1.conv2.weight", "params/backbone/layer3_1/conv2/kernel", (2, 3, 1, 0)),
        ("layer2.0.downsample.0.weight", "params/backbone/layer2_0/downsample_0/kernel", (2, 3, 1, 0)),
        ("layer2.0.downsample.1.running_var", "batch_stats/backbone/layer2_0/downsample_1/var", (0,)),
        ("bn1.running_mean", "batch_stats/backbone/bn1/mean", (0,)),
        ("bn1.weight", "params/backbone/bn1/scale", (0,)),
        ("layer5.conv2d_list.1.bias", "params/layer5/conv2d_list_1/bias", (0,)),
        ("sf_layer.weight", "params/sf_layer/kernel", (2, 3, 1, 0)),
    ):
        np.testing.assert_array_equal(flat[path], state[name].numpy().transpose(axes))


def test_table_says_what_was_read(saved, tmp_path, small_network, small_config, capsys):
    network = small_network()
    file = saved(network.state_dict())
    convert("accel", file, tmp_path / "out", small_config)
    printed = capsys.readouterr().out
    print(printed)
    lines = {line.split()[0]: line.split() for line in printed.splitlines() if line.strip()}
    assert lines["layer3.1"][1] == "15" and lines["layer3.1"][-1] == "backbone/layer3_1"
    # 1×1 of 32 to 8, 3×3 of 8 to 8, 1×1 of 8 to 32; scale and bias of each; as many statistics.
    assert lines["layer3.1"][2:4] == [f"{8 * 32 + 9 * 64 + 8 * 32 + 2 * (8 + 8 + 32):,}", str(2 * (8 + 8 + 32))]
    assert lines["total"][2] == f"{sum(p.numel() for p in network.parameters()):,}"
    convert("accel", file, tmp_path / "every", small_config, "--every")
    assert "layer3.1.conv2.weight" in capsys.readouterr().out


def test_half_and_double_precision_are_read_as_float32(saved, tmp_path, small_network, small_config, capsys):
    state = small_network().state_dict()
    half = {name: x.bfloat16() if x.is_floating_point() else x for name, x in state.items()}
    flat = stored(convert("accel", saved(half), tmp_path / "half", small_config))
    np.testing.assert_array_equal(flat["params/backbone/bn1/scale"], half["bn1.weight"].float().numpy())
    double = {name: x.double() if x.is_floating_point() else x for name, x in state.items()}
    capsys.readouterr()
    flat = stored(convert("accel", saved(double), tmp_path / "double", small_config))
    assert "rounded from float64 to float32" in capsys.readouterr().out
    np.testing.assert_array_equal(flat["params/backbone/bn1/scale"], state["bn1.weight"].numpy())


def test_resnet_101_goes_in_and_out_bit_for_bit(saved, tmp_path, capsys):
    state = draw_weights(TorchAccel(num_classes=15)).state_dict()
    out = convert("accel", saved(state), tmp_path / "out")
    printed = capsys.readouterr().out
    assert "ResNet-101" in printed
    total = next(line.split() for line in printed.splitlines() if line.startswith("total"))
    assert total[1:] == ["537", "44,159,610", "105,344"]
    config = viper.get_config()
    assert starting_variables(config, build_segmenter(config), out)[1] == str(out / "checkpoints" / "0")
    convert("torch", out, tmp_path / "back.pth")
    back = torch.load(tmp_path / "back.pth", weights_only=True)
    TorchAccel(num_classes=15).load_state_dict(back, strict=True)
    assert back.keys() == state.keys()
    for name, x in state.items():
        assert x.dtype == back[name].dtype and torch.equal(x, back[name]), name


def test_way_back_with_a_prefix_and_of_one_row(tmp_path, drawn_variables, tiny_config, refused):
    segmenter = make_segmenter(tiny_config.model, 5)
    variables = drawn_variables(segmenter)
    meta = checkpoint.CheckpointMeta(config=json.loads(tiny_config.to_json_best_effort()), classes=tuple("abcde"))
    for row in ("stpl", "source_only"):
        checkpoint.save_model(tmp_path / "run" / row, variables, meta)
    (tmp_path / "run" / "config.json").write_text(json.dumps({"method": "stpl"}))
    convert("torch", tmp_path / "run", tmp_path / "new" / "a.pth", "--row=source_only", "--prefix=module.")
    back = torch.load(tmp_path / "new" / "a.pth", weights_only=True)
    np.testing.assert_array_equal(
        back["module.layer1.0.conv2.weight"],
        variables["params"]["backbone"]["layer1_0"]["conv2"]["kernel"].transpose(3, 2, 0, 1),
    )
    assert back["module.bn1.num_batches_tracked"] == 0
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["a.pth"]
    assert "is there already" in refused("torch", tmp_path / "run", target="new/a.pth")
    assert "No checkpoint in" in refused("torch", tmp_path / "nothing", target="b.pth")
    message = refused("torch", tmp_path / "run", "--row=stlp", target="b.pth")
    assert "source_only (step 0), stpl (step 0). Did you mean stpl?" in message

    meta.config["model"]["backbone"]["blocks"] = [1, 1, 2, 1]
    variables["batch_stats"]["backbone"]["bn1"]["mean"][:] = np.nan
    checkpoint.save_model(tmp_path / "other", variables, meta)
    assert "layer3_1/conv1/kernel: expected, found missing" in refused("torch", tmp_path / "other", target="b.pth")


def test_deeplab_starts_with_the_current_frame_alone(saved, tmp_path, small_network, small_config):
    network = small_network(12, with_fusion=False)
    flat = stored(convert("deeplab", saved(network.state_dict()), tmp_path / "out", small_config))
    np.testing.assert_array_equal(flat["params/sf_layer/kernel"][0, 0], np.eye(24, 12, dtype=np.float32))
    frames = make_video(2)
    fused = small_network(12)
    fused.load_state_dict(network.state_dict() | {"sf_layer.weight": torch.eye(12, 24)[:, :, None, None]})
    assert_same_classes(stpl_jax.load(tmp_path / "out").segment(frames), scores_of_torch(fused, frames))


def untrained_last(state, names):
    """As AdaptSegNet leaves them: never trained, normal with deviation 0.01."""
    generator = torch.Generator().manual_seed(0)
    return state | {name: 0.01 * torch.randn(state[name].shape, generator=generator) for name in names}


def test_deeplab_of_adaptsegnet_sums_two_convolutions(saved, tmp_path, small_network, small_config, refused):
    wide = dict(dilations=(1, 2, 3, 4), widths=(4, 4, 4, 250), with_fusion=False)
    network = small_network(12, **wide)
    flags = (small_config, "--config.model.classifier_dilations=(1,2,3,4)")
    names = [f"layer6.conv2d_list.{i}.weight" for i in (2, 3)]
    file = saved(untrained_last(network.state_dict(), names))
    message = refused("deeplab", file, *flags)
    assert "--branches=2" in message and "--branches=4" in message and "layer6.conv2d_list.2" in message
    assert "expected 1 to 4" in refused("deeplab", file, *flags, "--branches=5")
    flat = stored(convert("deeplab", file, tmp_path / "two", *flags, "--branches=2"))
    for layer in ("layer5", "layer6"):
        for i in range(4):
            for leaf in ("kernel", "bias"):
                assert flat[f"params/{layer}/conv2d_list_{i}/{leaf}"].any() == (i < 2)
    flat = stored(convert("deeplab", file, tmp_path / "four", *flags, "--branches=4"))
    assert flat["params/layer6/conv2d_list_3/kernel"].any()
    # Nothing looks untrained where all of them do: a network before its training.
    every = [f"layer6.conv2d_list.{i}.weight" for i in range(4)]
    convert("deeplab", saved(untrained_last(network.state_dict(), every)), tmp_path / "fresh", *flags)


@pytest.mark.parametrize("name", ["layer5", "layer6"])
def test_deeplab_of_one_level(saved, tmp_path, small_network, small_config, refused, name):
    state = small_network(12, with_fusion=False).state_dict()
    main_layer = {f"{name}.{k.removeprefix('layer6.')}": x for k, x in state.items() if k.startswith("layer6.")}
    file = saved({k: x for k, x in state.items() if k[:6] not in ("layer5", "layer6")} | main_layer)
    message = refused("deeplab", file, small_config)
    assert "single-level" in message and name in message and "--single_level" in message
    assert "and one is expected" in refused("deeplab", saved(state, "both.pth"), small_config, "--single_level")
    flats = [
        stored(convert("deeplab", file, tmp_path / str(i), small_config, "--single_level", f"--seed={seed}"))
        for i, seed in enumerate((0, 0, 1))
    ]
    np.testing.assert_array_equal(
        flats[0]["params/layer6/conv2d_list_1/kernel"],
        state["layer6.conv2d_list.1.weight"].numpy().transpose(2, 3, 1, 0),
    )
    auxiliary = [flat["params/layer5/conv2d_list_1/kernel"] for flat in flats]
    assert auxiliary[0].shape == (3, 3, 32, 12)
    np.testing.assert_array_equal(auxiliary[0], auxiliary[1])
    assert (auxiliary[0] != auxiliary[2]).any()


def caffe(network, top=True):
    """A state_dict as the Caffe-layout ResNet has it: a prefix, and a classifier of other classes."""
    state = {
        f"Scale.{k}": x for k, x in network.state_dict().items() if k.split(".")[0][:6] not in ("layer5", "layer6")
    }
    state.pop("Scale.sf_layer.weight", None)
    tops = {f"Scale.layer5.conv2d_list.{i}.{leaf}": torch.ones(21) for i in range(4) for leaf in ("weight", "bias")}
    return state | (tops if top else {"Scale.fc.weight": torch.ones(1000, 8), "Scale.fc.bias": torch.ones(1000)})


@pytest.mark.parametrize("top", [True, False])
def test_imagenet_backbone_with_drawn_classifiers(saved, tmp_path, small_network, small_config, capsys, top):
    network = small_network()
    file = saved(caffe(network, top))
    out = convert("imagenet", file, tmp_path / "out", small_config, "--classes=synthia_seq", "--seed=3")
    printed = capsys.readouterr().out
    assert ("Scale.layer5: 8 tensors dropped" in printed) == top
    assert ("Scale.fc: 2 tensors dropped" in printed) != top
    flat = stored(out)
    np.testing.assert_array_equal(
        flat["params/backbone/layer4_0/conv3/kernel"],
        network.layer4[0].conv3.weight.detach().numpy().transpose(2, 3, 1, 0),
    )
    kernel = flat["params/layer6/conv2d_list_0/kernel"]
    assert kernel.shape == (3, 3, 16, 12) and 0.008 < kernel.std() < 0.012
    assert not flat["params/layer6/conv2d_list_0/bias"].any()
    again = stored(convert("imagenet", file, tmp_path / "again", small_config, "--classes=synthia_seq", "--seed=3"))
    assert all(np.array_equal(flat[name], x) for name, x in again.items())
    other = stored(convert("imagenet", file, tmp_path / "other", small_config, "--classes=synthia_seq"))
    assert (other["params/layer6/conv2d_list_0/kernel"] != kernel).any()


@pytest.fixture
def fast_compilation():
    """Two steps are run: most of their time would be the compiler's."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture(scope="module")
def tiny_file(tmp_path_factory):
    """A PyTorch file of the network of `tiny_run_config`, and the flags that convert it."""
    config = tiny_run_config()
    backbone = config.model.backbone
    network = TorchAccel(
        blocks=backbone.blocks,
        widths=backbone.widths,
        dilations=config.model.classifier_dilations,
        stem_width=backbone.stem_width,
        stem_kernel=backbone.stem_kernel,
        stem_pool=False,
    )
    folder = tmp_path_factory.mktemp("tiny")
    torch.save(draw_weights(network).state_dict(), folder / "tiny.pth")
    torch.save(caffe(network), folder / "imagenet.pth")
    settings = folder / "config.py"
    settings.write_text("from tiny_run import tiny_run_config as get_config\n")
    return folder, f"--config={settings}"


def test_adaptation_starts_from_a_converted_model(tiny_file, tmp_path, fast_compilation):
    folder, config_flag = tiny_file
    out = convert("accel", folder / "tiny.pth", tmp_path / "source", config_flag)
    before = checkpoint.load_model(out).variables
    config = tiny_run_config(steps=2)
    config.init_from = str(out)
    lines = []
    modes.adapt(config, tmp_path / "run", lines.append)
    assert any("step 2/2" in line for line in lines)
    after = checkpoint.load_model(tmp_path / "run" / "stpl")
    assert after.meta.source.startswith(str(out)) and after.path.name == "2"
    changed = jax.tree.map(lambda a, b: bool((a != b).any()), before, after.variables)
    assert (
        changed["params"]["backbone"]["layer4_0"]["conv1"]["kernel"]
        and not changed["params"]["layer6"]["conv2d_list_0"]["kernel"]
    )
    # And out again, as PyTorch's code takes it.
    convert("torch", tmp_path / "run" / "stpl", tmp_path / "adapted.pth")
    adapted = torch.load(tmp_path / "adapted.pth", weights_only=True)
    original = torch.load(folder / "tiny.pth", weights_only=True)
    assert {k: x.shape for k, x in adapted.items()} == {k: x.shape for k, x in original.items()}


def test_source_training_starts_from_a_converted_backbone(tiny_file, tmp_path):
    folder, config_flag = tiny_file
    out = convert("imagenet", folder / "imagenet.pth", tmp_path / "imagenet", config_flag, "--classes=viper")
    config = row_config(tiny_run_config(), "source_only")
    variables, origin = starting_variables(config, build_segmenter(config), out)
    assert origin.startswith(str(out))
    expected = checkpoint.load_model(out).variables
    jax.tree.map(np.testing.assert_array_equal, dict(variables), expected)


def test_a_model_of_other_classes_is_not_taken(tiny_file, tmp_path):
    folder, config_flag = tiny_file
    names = ",".join(f"thing{i}" for i in range(15))
    out = convert("accel", folder / "tiny.pth", tmp_path / "source", config_flag, f"--classes={names}")
    config = row_config(tiny_run_config(), "stpl")
    with pytest.raises(CheckpointError, match="thing14.*data.classes=viper has"):
        starting_variables(config, build_segmenter(config), out)
    shutil.rmtree(out)
    out = convert("accel", folder / "tiny.pth", tmp_path / "source", config_flag)
    deeper = row_config(tiny_run_config(), "stpl")
    deeper.model.backbone.blocks = (1, 1, 2, 1)
    with pytest.raises(CheckpointError, match=r"layer3_1.*found missing"):
        starting_variables(deeper, build_segmenter(deeper), out)


def test_settings_are_given_as_main_py_takes_them(saved, tmp_path, small_network, small_config, refused):
    file = saved(small_network().state_dict())
    of_davsn = ("--config.flow.scale=public", "--config.model.fusion.propagation=splat")
    out = convert("accel", file, tmp_path / "out", small_config, *of_davsn, "--config.data.target.size=(16,24)")
    model = stpl_jax.load(out)
    assert model.flow_scale == "public" and model.segmenter.propagation == "splat" and model.size == (16, 24)
    assert checkpoint.load_model(out).meta.config["model"]["backbone"]["blocks"] == [1, 1, 2, 1]
    throw = refused("accel", file, small_config, "--config.model.fusion.propagation=throw", target="b")
    assert "model.fusion.propagation" in throw and "warp, splat" in throw
    assert "flow.scal" in refused("accel", file, small_config, "--config.flow.scal=public", target="b")
    assert "KEY=VALUE" in refused("accel", file, small_config, "--config.flow.scale", target="b")
    assert "get_config" in refused("accel", file, f"--config={stpl_jax.__file__}", target="b")


def test_configuration_is_that_of_the_label_setting(saved, tmp_path, small_network):
    state = small_network(12, dilations=(6, 12, 18, 24), stem_kernel=7).state_dict()
    meta = checkpoint.load_model(convert("accel", saved(state), tmp_path / "out")).meta
    assert meta.config["data"]["source"]["name"] == "synthia_seq" and meta.config["data"]["classes"] == "synthia_seq"
    assert meta.config["model"]["backbone"]["widths"] == [4, 8, 8, 4]
    config = base.get_config()
    config.model.backbone.update(blocks=(1, 1, 2, 1), widths=(4, 8, 8, 4), stem_width=8)
    segmenter = make_segmenter(config.model, 12)
    template = jax.eval_shape(lambda: initial_variables(segmenter, jax.random.key(0)))
    checkpoint.load_model(tmp_path / "out", template=template)
