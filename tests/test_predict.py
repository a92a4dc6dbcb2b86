import dataclasses
import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import raw_trees
import video_files
from PIL import Image

import stpl_jax
from input_pipeline.errors import Incomplete, UserError
from input_pipeline.labels import CLASSES, colour_table
from input_pipeline.optical_flow import dis_flow
from input_pipeline.video_packets import SourceError
from stpl_jax import checkpoint, predict
from stpl_jax.checkpoint import CheckpointMeta
from stpl_jax.models.accel import Accel
from stpl_jax.ops.resize import resize_align_corners, resize_flow
from stpl_jax.ops.warp import warp
from stpl_jax.run_lock import run_lock

TRAIN_SIZE = (32, 64)
SIZE = (48, 80)
NAMES = list(CLASSES["viper"][:5])


def make_meta(config, names=NAMES):
    with config.unlocked():
        config.data.target.size = TRAIN_SIZE
    stored = json.loads(config.to_json_best_effort())
    return CheckpointMeta(config=stored, label_setting="viper", classes=tuple(names), method=config.method)


@pytest.fixture
def model(tmp_path, tiny_config, tiny_variables):
    checkpoint.save_model(tmp_path / "row", tiny_variables, make_meta(tiny_config))
    return stpl_jax.load(tmp_path / "row")


def make_frames(count, size=SIZE):
    """A street that moves to the right by two pixels a frame."""
    wide = raw_trees.frame_pixels(7, (size[0], size[1] + 2 * count))
    return np.stack([wide[:, 2 * t : 2 * t + size[1]] for t in range(count)])


def reference(segmenter, variables, frames, flow=None, size=None):
    """Two whole passes for each frame, full-size scores: nothing is kept, and nothing is streamed."""
    resized = [np.asarray(Image.fromarray(f).resize(TRAIN_SIZE[::-1], Image.Resampling.BICUBIC)) for f in frames]

    def scores(t):
        features, _ = segmenter.features(variables, jnp.asarray(resized[t])[None, None])
        return segmenter.main_classifier(variables["params"], features.main[0])

    out = []
    for t in range(len(frames)):
        now, before = scores(t), scores(max(t - 1, 0))
        if t == 0:
            field = np.zeros((*TRAIN_SIZE, 2), np.float32)
        else:
            field = dis_flow(resized[t], resized[t - 1]) if flow is None else flow[t - 1]
        field = resize_flow(resize_flow(jnp.asarray(field), TRAIN_SIZE), now.shape[1:3])
        fused = segmenter.fusion(variables["params"], now, warp(before, field[None]))
        out.append(np.asarray(resize_align_corners(fused[0], size or frames.shape[1:3])))
    return np.stack(out)


def assert_same_classes(found, scores):
    """Compares where the two best scores are further apart than rounding can bring them."""
    best = np.sort(scores, -1)
    clear = best[..., -1] - best[..., -2] > 1e-3 * np.abs(scores).max()
    assert clear.mean() > 0.95
    np.testing.assert_array_equal(found[clear], scores.argmax(-1)[clear])


@pytest.mark.parametrize("given_flow", [False, True])
def test_segment_is_a_plain_computation_for_each_frame(model, tiny_segmenter, tiny_variables, given_flow):
    frames = make_frames(4)
    flow = np.random.default_rng(0).uniform(-6, 6, (3, *SIZE, 2)).astype(np.float32) if given_flow else None
    classes = model.segment(frames, flow)
    assert classes.dtype == np.uint8 and classes.shape == (4, *SIZE)
    expected = reference(tiny_segmenter, tiny_variables, frames, flow)
    assert_same_classes(classes, expected)
    assert len(np.unique(classes)) > 1
    # The fusion is not idle: frames taken one by one give something else.
    alone = np.concatenate([model.segment(f[None]) for f in frames])
    np.testing.assert_array_equal(alone[0], classes[0])
    assert (alone[1:] != classes[1:]).any()


def test_class_maps_of_another_size_come_from_the_scores(model, tiny_segmenter, tiny_variables):
    frames = make_frames(2)
    classes = model.segment(frames, size=(70, 50))
    assert classes.shape == (2, 70, 50)
    assert_same_classes(classes, reference(tiny_segmenter, tiny_variables, frames, size=(70, 50)))


def test_classes_that_count_as_others_are_added_up(model, tiny_segmenter, tiny_variables):
    frames = make_frames(2)
    scores = reference(tiny_segmenter, tiny_variables, frames)
    grouped = dataclasses.replace(model, groups=(1, 0, 1, 0, 0)).segment(frames)
    # Logarithms of the sums of probabilities, but for what both have.
    sums = [np.logaddexp.reduce(scores[..., members], -1) for members in ([1, 3, 4], [0, 2])]
    assert_same_classes(grouped, np.stack(sums, -1))
    assert len(np.unique(grouped)) == 2


def test_each_frame_passes_the_backbone_once(model, monkeypatch):
    images = []
    features = Accel.features

    def counting(self, rgb, *args, **kwargs):
        images.append(rgb.shape[0])
        return features(self, rgb, *args, **kwargs)

    monkeypatch.setattr(Accel, "features", counting)
    with jax.disable_jit():
        model.segment(make_frames(3, (32, 64)))
    assert images == [1, 1, 1]


def test_streaming_gives_the_same_and_reads_no_further_than_it_must(model):
    frames = make_frames(5)
    drawn = []

    def watched():
        for i, frame in enumerate(frames):
            drawn.append(i)
            yield frame

    stream = model.segment_stream(watched())
    first = next(stream)
    assert drawn == [0, 1]
    np.testing.assert_array_equal(np.stack([first, *stream]), model.segment(frames))
    assert list(model.segment_stream(iter(()))) == []


def test_one_compilation_serves_all_frames_of_a_size(model):
    model.segment(make_frames(1))
    scores, fuses = predict._score._cache_size(), predict._fuse._cache_size()
    model.segment(make_frames(4))
    model.segment(make_frames(3), np.zeros((2, *SIZE, 2), np.float32))
    assert (predict._score._cache_size(), predict._fuse._cache_size()) == (scores, fuses)


def test_what_a_model_says_of_itself(model, tmp_path):
    assert model.classes == tuple(NAMES) and model.size == TRAIN_SIZE
    assert model.path == tmp_path / "row" / "checkpoints" / "0"
    np.testing.assert_array_equal(model.palette, colour_table(NAMES, "viper"))


def test_loading_a_row_of_a_working_directory(tmp_path, tiny_config, tiny_variables):
    (tmp_path / "config.json").write_text(tiny_config.to_json_best_effort())
    other = jax.tree.map(lambda x: 2 * x, tiny_variables)
    checkpoint.save_model(tmp_path / "stpl", tiny_variables, make_meta(tiny_config))
    checkpoint.save_model(tmp_path / "source_only", other, make_meta(tiny_config))
    for path, row, expected in (
        (tmp_path, None, tiny_variables),
        (tmp_path, "source_only", other),
        (tmp_path / "source_only" / "checkpoints" / "0", None, other),
    ):
        loaded = jax.device_get(stpl_jax.load(path, row).variables)
        jax.tree.map(np.testing.assert_array_equal, loaded, expected)
    with pytest.raises(checkpoint.CheckpointError, match="No checkpoint in .*nothing"):
        stpl_jax.load(tmp_path / "nothing")


def test_importing_the_package_starts_nothing():
    code = "import sys, stpl_jax; assert 'jax' not in sys.modules and 'cv2' not in sys.modules; assert stpl_jax.load"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    ("frames", "flow", "message"),
    [
        (np.zeros((2, 32, 64, 3), np.float32), None, r"\[T, H, W, 3\] uint8 RGB, found float32 \[2, 32, 64, 3\]"),
        (np.zeros((32, 64, 3), np.uint8), None, r"\[T, H, W, 3\] uint8 RGB, found uint8 \[32, 64, 3\]"),
        (np.zeros((0, 32, 64, 3), np.uint8), None, r"found uint8 \[0, 32, 64, 3\]"),
        ([np.zeros((32, 64, 3), np.uint8), np.zeros((30, 64, 3), np.uint8)], None, "its parts differ in shape"),
        (
            np.zeros((3, 32, 64, 3), np.uint8),
            np.zeros((3, 32, 64, 2), np.float32),
            r"\[2, 32, 64, 2\].*found .*\[3, 32",
        ),
        (np.zeros((2, 32, 64, 3), np.uint8), np.zeros((1, 32, 64, 2), np.int16), "found int16.*divide by 10"),
        (np.zeros((2, 32, 64, 3), np.uint8), np.full((1, 32, 64, 2), np.nan, np.float32), "frame 1 .*not finite"),
        (np.zeros((2, 32, 64, 3), np.uint8), (16, 32), r"write size=\(height, width\)"),
    ],
)
def test_arrays_that_are_not_frames_or_flow(model, frames, flow, message):
    with pytest.raises(ValueError, match=message):
        model.segment(frames, flow)


def test_a_size_that_is_none(model):
    with pytest.raises(UserError, match=r"Expected size=\(height, width\).*found size=64"):
        model.segment(make_frames(1), size=64)


def test_streams_that_change_or_end_early(model):
    frames = make_frames(3)
    with pytest.raises(ValueError, match=r"Frame 1 is \[30, 80, 3\], and frame 0 is \[48, 80, 3\]"):
        list(model.segment_stream([frames[0], frames[1][:30]]))
    with pytest.raises(ValueError, match=r"Frame 1: expected \[H, W, 3\] uint8"):
        list(model.segment_stream([frames[0], frames[1][..., 0]]))
    with pytest.raises(ValueError, match="No flow for frame 2"):
        list(model.segment_stream(frames, [np.zeros((*SIZE, 2), np.float32)]))


def write_folder(folder, frames):
    folder.mkdir()
    for i, frame in enumerate(frames):
        Image.fromarray(frame).save(folder / f"street_{i}.png")


def read_all(folder):
    return np.stack([np.asarray(Image.open(path)) for path in sorted(folder.iterdir())])


def names(folder):
    return sorted(path.name for path in folder.iterdir() if path.name != ".lock")


def test_a_folder_end_to_end(model, tmp_path):
    frames, lines = make_frames(3), []
    write_folder(tmp_path / "in", frames)
    assert predict.predict_files(model, tmp_path / "in", tmp_path / "out", lines.append) == 3
    assert names(tmp_path / "out") == ["classes", "overlays", "predict.json"]
    for folder in ("classes", "overlays"):
        assert names(tmp_path / "out" / folder) == [f"street_{i}.png" for i in range(3)]
    expected = model.segment(frames)
    np.testing.assert_array_equal(read_all(tmp_path / "out" / "classes"), expected)
    mixed = frames / 2 + colour_table(CLASSES["viper"])[expected] / 2
    assert np.abs(read_all(tmp_path / "out" / "overlays") - mixed).max() <= 0.5
    assert "3 frames written" in lines[-1] and lines[-1].endswith(" s")


def test_frames_that_are_no_neighbours_are_not_fused(model, tmp_path):
    frames = make_frames(12)
    (tmp_path / "in").mkdir()
    # Frame 6 is missing; 7 to 11 are in natural order; another sequence ends the folder.
    numbered = {n: frames[n - 1] for n in (1, 2, 3, 4, 5, 7, 8, 9, 10, 11)}
    for n, frame in numbered.items():
        Image.fromarray(frame).save(tmp_path / "in" / f"{n}.png")
    Image.fromarray(frames[11][:32, :64]).save(tmp_path / "in" / "other_0.png")
    lines = []
    assert predict.predict_files(model, tmp_path / "in", tmp_path / "out", lines.append) == 11
    expected = [*model.segment(frames[:5]), *model.segment(frames[6:11])]
    for n, classes in zip(numbered, expected, strict=True):
        np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "out" / "classes" / f"{n}.png")), classes)
    alone = model.segment(frames[11:, :32, :64])[0]
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "out" / "classes" / "other_0.png")), alone)
    assert any("7.png starts a new video of 5: a step of 2 from 5.png" in line for line in lines)
    # The fusion is not idle.
    assert (model.segment(frames[4:7])[2] != expected[5]).any()


def test_a_video_end_to_end(model, tmp_path, monkeypatch):
    monkeypatch.setattr(predict, "_SECONDS_BETWEEN_LINES", -1)
    lines, times = [], [0, 100, 400, 500]
    path = video_files.write(tmp_path / "in.mkv", make_frames(4), times=times, b_frames=2)
    predict.predict_files(model, str(path), str(tmp_path / "out"), lines.append)
    decoded = np.stack(video_files.frames_by_opencv(path))
    np.testing.assert_array_equal(read_all(tmp_path / "out" / "classes"), model.segment(decoded))
    painted = read_all(tmp_path / "out" / "overlays")
    for shown, picture in zip(video_files.frames_by_opencv(tmp_path / "out" / "overlay.mp4"), painted, strict=True):
        # Compression blurs colours; the mean of the picture stays.
        assert np.abs(shown.mean((0, 1)) - picture.mean((0, 1))).max() < 3
    seconds, end = video_files.shown_times(tmp_path / "out" / "overlay.mp4")
    assert seconds == pytest.approx([t / 1000 for t in times]) and end == pytest.approx(0.6)
    assert "4 frames" in lines[-2] and "frames/s" in lines[-2] and not any("announce" in line for line in lines)
    predict.predict_files(model, video_files.write(tmp_path / "in.mp4", make_frames(4)), tmp_path / "out", lines.append)
    assert "4/4 frames" in lines[-2] and "s left" in lines[-2]


def test_a_damaged_video_gives_all_that_is_there_and_says_what_is_not(model, tmp_path):
    whole = video_files.write(tmp_path / "whole.mp4", make_frames(16))
    spoilt, lines = video_files.spoil(whole, tmp_path / "spoilt.mp4", [4, 5, 6, 7]), []
    with pytest.raises(Incomplete, match=r"spoilt.mp4 was not .*4 frames left out, 4-7 \(0.40-0.70 s\)") as error:
        predict.predict_files(model, spoilt, tmp_path / "out", lines.append)
    assert error.value.exit_code == 3
    decoded = np.stack(video_files.frames_by_opencv(whole))
    # The first frame after the gap is fused with itself.
    expected = [*model.segment(decoded[:4]), *model.segment(decoded[8:])]
    assert names(tmp_path / "out" / "classes") == [f"{n:06d}.png" for n in (*range(4), *range(8, 16))]
    np.testing.assert_array_equal(read_all(tmp_path / "out" / "classes"), np.stack(expected))
    seconds, end = video_files.shown_times(tmp_path / "out" / "overlay.mp4")
    assert seconds == pytest.approx([n / 10 for n in (*range(4), *range(8, 16))]) and end == pytest.approx(1.6)
    assert "12 frames written" in lines[-1] and "4 frames left out, 4-7 (0.40-0.70 s)" in lines[-1]


def test_a_video_that_changes_its_size(model, tmp_path):
    first = video_files.write(tmp_path / "1.ts", make_frames(3))
    second = video_files.write(tmp_path / "2.ts", make_frames(2, (32, 64)))
    (tmp_path / "joined.ts").write_bytes(first.read_bytes() + second.read_bytes())
    lines = []
    assert predict.predict_files(model, tmp_path / "joined.ts", tmp_path / "out", lines.append) == 5
    for i, path in enumerate((first, second)):
        decoded = np.stack(video_files.frames_by_opencv(path))
        for j, classes in enumerate(model.segment(decoded)):
            file = tmp_path / "out" / "classes" / f"{3 * i + j:06d}.png"
            np.testing.assert_array_equal(np.asarray(Image.open(file)), classes)
    assert {frame.shape[:2] for frame in video_files.frames_by_opencv(tmp_path / "out" / "overlay.mp4")} == {SIZE}
    assert any("size changes at frame 3" in line and "a new video starts there" in line for line in lines)
    assert any("frames as 000003 are brought from 32x64 pixels, to 48x80" in line for line in lines)


def test_pictures_that_are_not_read_are_part_of_the_input(model, tmp_path):
    write_folder(tmp_path / "in", make_frames(2))
    Image.fromarray(make_frames(1)[0]).save(tmp_path / "in" / "street_2.gif")
    lines = []
    with pytest.raises(Incomplete, match="left out: street_2.gif"):
        predict.predict_files(model, tmp_path / "in", tmp_path / "out", lines.append)
    assert "2 frames written" in lines[-1] and any("street_2.gif" in line for line in lines)


def test_bad_input_is_found_before_anything_is_written(model, tmp_path):
    write_folder(tmp_path / "in", make_frames(3))
    (tmp_path / "in" / "street_1.png").write_bytes(b"broken")
    (tmp_path / "empty").mkdir()
    for source, message in (
        ("in", "street_1.png: cannot be decoded"),
        ("empty", "no images"),
        ("no.mp4", "no such file"),
    ):
        with pytest.raises(SourceError, match=message):
            predict.predict_files(model, tmp_path / source, tmp_path / "out")
    assert not (tmp_path / "out").exists()


class Tablet(list):
    """Takes lines, and stops the run at one of them."""

    def __init__(self, monkeypatch, file, error):
        whole = predict.write_image

        def write(path, pixels):
            if path.name == file and path.parent.name == "overlays":
                raise error
            whole(path, pixels)

        monkeypatch.setattr(predict, "write_image", write)


@pytest.mark.parametrize("error", [OSError(28, "No space left on device", "000002.png"), KeyboardInterrupt()])
def test_a_run_that_is_stopped_keeps_what_is_written(model, tmp_path, monkeypatch, error):
    path = video_files.write(tmp_path / "in.mp4", make_frames(5))
    with monkeypatch.context() as patch:
        lines = Tablet(patch, "000002.png", error)
        with pytest.raises(type(error)):
            predict.predict_files(model, path, tmp_path / "out", lines.append)
    assert "stopped: 2 frames written" in lines[-1] and lines[-1].endswith("without overlay.mp4")
    assert names(tmp_path / "out") == ["classes", "overlays", "predict.json"]
    assert names(tmp_path / "out" / "overlays") == ["000000.png", "000001.png"]
    # All of it is known to be ours.
    lines = []
    assert predict.predict_files(model, path, tmp_path / "out", lines.append) == 5
    assert "removed the 5 results of an earlier predict" in lines[0]
    assert names(tmp_path / "out") == ["classes", "overlay.mp4", "overlays", "predict.json"]


def test_two_predicts_do_not_mix_their_results(model, tmp_path):
    frames = tmp_path / "in"
    frames.mkdir()
    for i, pixels in enumerate(make_frames(2)):
        Image.fromarray(pixels).save(frames / f"{i}.png")
    with run_lock(tmp_path / "out", name=".lock"), pytest.raises(UserError, match="in use by process.*--output"):
        predict.predict_files(model, frames, tmp_path / "out", lambda line: None)
    assert not (tmp_path / "out" / "predict.json").exists()
    assert predict.predict_files(model, frames, tmp_path / "out", lambda line: None) == 2


def test_a_stream_with_a_flow_field_too_many_is_told(model):
    flows = [np.zeros((*SIZE, 2), np.float32)] * 3
    with pytest.raises(UserError, match="More flow than 2 fields for 3 frames"):
        list(model.segment_stream(make_frames(3), flows))
