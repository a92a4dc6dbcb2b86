"""Extracting flow: which files are written, from which frames, once, and what a run makes of them."""

import dataclasses
import json
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
import raw_trees
from tiny_run import tiny_run_config

from configs import base as base_config
from input_pipeline import flow_files
from input_pipeline.builders import base
from input_pipeline.builders.checks import BadFilesError
from input_pipeline.clips import read_clip
from input_pipeline.domains import domain_spec, open_domain
from input_pipeline.errors import UserError
from input_pipeline.needs import DomainNeeds
from input_pipeline.optical_flow import HostEstimator, dis_flow
from stpl_jax import checkpoint, flow_estimators, flow_extraction, modes, predict
from stpl_jax.flow_estimators import DeviceEstimator, FlowError
from stpl_jax.flow_extraction import extract
from stpl_jax.methods import make_method

VIPER = ["001_0001000009", "001_0002000019"]
SIZES = {"source": (24, 40), "target": (32, 64)}


@pytest.fixture
def config(tmp_path):
    """VIPER at 24×40 (raw 36×64), Cityscapes-Seq at 32×64 (raw 32×64), flow by the network."""
    raw_trees.write_viper(tmp_path / "viper")
    raw_trees.write_cityscapes_seq(tmp_path / "city")
    raw_trees.write_cityscapes_seq(tmp_path / "city", split="val", clips=(("lindau", 0, 19),))
    config = base_config.get_config()
    config.data.source.raw_dir, config.data.target.raw_dir = str(tmp_path / "viper"), str(tmp_path / "city")
    config.data.source.size, config.data.target.size = SIZES["source"], SIZES["target"]
    config.data.threads = 2
    config.flow.estimator, config.flow.files, config.flow.batch = "toy", "write", 1
    config.flow.weights = "weights"
    return config


def toy_flow(params, frames, earlier):
    """An estimator that depends on both frames: u from the one's red, v from the other's green, in whole tenths."""
    frames, earlier = frames.astype(jnp.float32), earlier.astype(jnp.float32)
    return jnp.stack([frames[..., 0], -earlier[..., 1]], -1) * params["tenth"]


@pytest.fixture(autouse=True)
def toy(monkeypatch):
    """Adds `toy_flow` to the estimators, all that it takes; what is returned changes its parameters and their name."""
    weights = {"params": {"tenth": np.float32(0.1)}, "name": "simple"}
    entry = DeviceEstimator(toy_flow, lambda _: (weights["params"], weights["name"]), "Draw some.")
    monkeypatch.setitem(flow_estimators.ESTIMATORS, "toy", entry)
    return weights


@pytest.fixture
def estimates(monkeypatch):
    """Lists the pairs that are estimated, as file names."""
    seen = []
    read = flow_extraction._read_pair

    def watched(spec, size, raw_size, job):
        seen.append(job.file.name)
        return read(spec, size, raw_size, job)

    monkeypatch.setattr(flow_extraction, "_read_pair", watched)
    return seen


def run(config, workdir, domains=("source", "target", "val"), **options):
    lines = []
    written = extract(config, workdir, dict.fromkeys(domains), lines.append, **options)
    return written, lines


def names(folder):
    return sorted(path.name for path in folder.rglob("*.npy"))


def test_flow_files_of_every_domain(config, tmp_path, estimates):
    written, lines = run(config, tmp_path)
    folder = tmp_path / "flow"
    assert names(folder / "source") == [f"{name}_int16_x10.npy" for name in VIPER]
    assert names(folder / "target") == [
        "aachen_000000_000019_000018_int16_x10.npy",
        "aachen_000001_000019_000018_int16_x10.npy",
        "frankfurt_000000_000294_000293_int16_x10.npy",
    ]
    assert names(folder / "val") == [
        "lindau_000000_000018_000017_int16_x10.npy",
        "lindau_000000_000019_000018_int16_x10.npy",
    ]
    assert written == len(estimates) == 7
    text = "\n".join(lines)
    assert "viper/train: 2 of 2 files to write, by toy at 24x40" in text
    assert "cityscapes_seq/train: pairs: 3/3" in text and "s left" in text
    # Each file is what the estimator makes of this very pair, at the training size, in the right order.
    for domain, file, current, earlier in (
        ("source", f"{VIPER[1]}_int16_x10.npy", "img/001/001_00020.jpg", "img/001/001_00019.jpg"),
        ("val", "lindau_000000_000018_000017_int16_x10.npy", "lindau_000000_000018", "lindau_000000_000017"),
    ):
        spec = domain_spec(config, domain, workdir=tmp_path)
        if domain == "source":
            paths = [tmp_path / "viper/train" / name for name in (current, earlier)]
        else:
            images = tmp_path / "city/leftImg8bit_sequence/val/lindau"
            paths = [images / f"{name}_leftImg8bit.png" for name in (current, earlier)]
        frame, before = (base.read_frame(path, spec) for path in paths)
        stored = np.load(folder / domain / file)
        assert stored.dtype == np.int16 and stored.shape == (*spec.size, 2)
        np.testing.assert_array_equal(stored[..., 0], frame[..., 0])
        np.testing.assert_array_equal(stored[..., 1], -before[..., 1].astype(np.int16))


def test_a_run_goes_on_where_it_was(config, tmp_path, estimates):
    run(config, tmp_path)
    first = {path: path.read_bytes() for path in (tmp_path / "flow").rglob("*.npy")}
    times = {path: path.stat().st_mtime_ns for path in first}
    gone = sorted(first)[2]  # removed, and another one torn
    torn = sorted(first)[5]
    gone.unlink()
    torn.write_bytes(torn.read_bytes()[:-7])
    estimates.clear()
    written, lines = run(config, tmp_path)
    assert written == 2 and sorted(estimates) == sorted([gone.name, torn.name])
    assert "1 of them broken until now" in "\n".join(lines)
    for path, content in first.items():
        assert path.read_bytes() == content
        assert path in (gone, torn) or path.stat().st_mtime_ns == times[path]
    estimates.clear()
    # With all files there, neither weights nor raw frames are read.
    config.flow.weights = None
    for path in (tmp_path / "viper").rglob("*.jpg"):
        path.unlink()
    written, lines = run(config, tmp_path)
    assert written == 0 and not estimates and "all 3 files are in" in "\n".join(lines)


def test_a_killed_run_leaves_no_torn_file(config, tmp_path, monkeypatch):
    write, written, lock = Path.write_bytes, [], threading.Lock()

    def dying(path, content):
        with lock:  # several threads write
            written.append(path)
            dies = len(written) > 5  # two notes of the origin, and three files
        write(path, content[:100] if dies else content)
        if dies:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(Path, "write_bytes", dying)
        run(config, tmp_path)
    there = list((tmp_path / "flow").rglob("*.npy"))
    assert there and all(flow_files.flow_size(path) in SIZES.values() for path in there)
    # What SIGKILL would have left.
    left = tmp_path / "flow" / "val" / ".lindau_000000_000018_000017_int16_x10.abcd.partial.npy"
    left.parent.mkdir(parents=True, exist_ok=True)
    left.write_bytes(b"half")
    written, _ = run(config, tmp_path)
    assert written == 7 - len(there) and not left.exists()


def test_two_runs_into_one_folder_take_turns(config, tmp_path, monkeypatch):
    estimated, told = [], threading.Event()

    def slow(frames, earlier):
        estimated.append(frames)
        assert told.wait(60), "the second run did not say that it waits"
        return dis_flow(frames, earlier)

    def tell(line):
        if "waits for another run that writes into" in line:
            told.set()

    monkeypatch.setitem(flow_estimators.ESTIMATORS, "slow", HostEstimator(slow))
    config.flow.estimator, config.data.threads = "slow", 1
    with ThreadPoolExecutor(2) as pool:
        runs = [pool.submit(extract, config, tmp_path, {"source": None}, tell) for _ in range(2)]
        written = sorted(run.result(120) for run in runs)
    assert written == [0, len(names(tmp_path / "flow" / "source"))] and len(estimated) == written[1] > 0


@pytest.mark.parametrize("content", [b"", b'{"source": "dis"', b"\xff\xfe\x00", b'"dis"'])
def test_a_damaged_note_of_the_origin_names_file_and_remedy(config, tmp_path, content):
    note = tmp_path / "flow" / "source" / "estimated_with.json"
    note.parent.mkdir(parents=True)
    note.write_bytes(content)
    with pytest.raises(UserError, match="expected .* Delete it if you know") as caught:
        run(config, tmp_path)
    assert str(note) in str(caught.value) and note.read_bytes() == content


def test_the_last_batch_is_filled_up(config, tmp_path, monkeypatch):
    """More pairs than devices, and not a multiple of them: every pair once."""
    raw_trees.write_viper(tmp_path / "long", labelled=tuple(range(10, 210, 10)), size=(24, 40))
    config.data.source.raw_dir = str(tmp_path / "long")
    shapes = []

    def watched(params, frames, earlier):
        shapes.append(frames.shape)
        return toy_flow(params, frames, earlier)

    entry = dataclasses.replace(flow_estimators.ESTIMATORS["toy"], function=watched)
    monkeypatch.setitem(flow_estimators.ESTIMATORS, "toy", entry)
    run(config, tmp_path, ("source",))
    files = names(tmp_path / "flow" / "source")
    assert len(files) == 20 and set(shapes) == {(1, 24, 40, 3)}  # on each of eight devices; traced for one shape
    for number in range(10, 210, 10):
        stored = np.load(tmp_path / "flow/source" / f"001_{number:05}{number - 1:05}_int16_x10.npy")
        image = np.asarray(predict.Image.open(tmp_path / f"long/train/img/001/001_{number:05}.jpg"))
        np.testing.assert_array_equal(stored[..., 0], image[..., 0])


@pytest.mark.parametrize("size", ["training", "raw"])
def test_dis_files_are_what_preparing_estimates(config, tmp_path, size):
    """SYNTHIA-Seq: every frame labelled, so clips share pairs; the bottom of each frame is cut off."""
    raw_trees.write_synthia_seq(tmp_path / "synthia", size=(38, 64))
    config.data.classes = "synthia_seq"
    config.data.source.update(dict(name="synthia_seq", raw_dir=str(tmp_path / "synthia"), size=(32, 64)))
    config.flow.estimator, config.flow.size = "dis", size
    pairs = DomainNeeds((0, 1, 2), ((0, 1), (1, 2)))
    assert extract(config, tmp_path, {"source": pairs}, lambda line: None) == 3
    folder = tmp_path / "flow" / "source"
    assert names(folder) == [f"{n:06}_int16_x10.npy" for n in (1, 2, 3)]
    spec = domain_spec(config, "source", workdir=tmp_path)
    frames = [tmp_path / "synthia/SYNTHIA-SEQS-04-DAWN/RGB/Stereo_Left/Omni_F" / f"{n:06}.png" for n in (2, 1)]
    if size == "raw":
        frames = [np.asarray(predict.Image.open(path).convert("RGB")) for path in frames]
    else:
        frames = [base.read_frame(path, spec) for path in frames]
    np.testing.assert_array_equal(np.load(folder / "000002_int16_x10.npy"), flow_files.to_int16(dis_flow(*frames)))
    if size == "training":
        config.flow.files = "none"
        direct = open_domain(config, tmp_path / "direct", "source", progress=lambda line: None)
        config.flow.files, config.data.source.flow_dir = "read", str(folder)
        files = open_domain(config, tmp_path / "files", "source", progress=lambda line: None)
        assert len(files) == len(direct) == 3
        for i in range(3):
            a, b = (read_clip(source, i, (0,), ((0, 1),), False)["flow"] for source in (direct, files))
            np.testing.assert_array_equal(a, b)


def test_files_go_to_the_configured_folder_and_downloads_are_kept(config, tmp_path, estimates):
    config.data.target.flow_dir = config.data.target.val_flow_dir = str(tmp_path / "mine")
    downloaded = "aachen_000001_000019_000018_int16_x10.npy"
    flow_files.write_flow(tmp_path / "mine" / downloaded, np.full((32, 64, 2), 7.0))
    broken = tmp_path / "mine" / "frankfurt_000000_000294_000293.flo"
    broken.write_bytes(b"torn")
    written, _ = run(config, tmp_path, ("target", "val"))
    assert written == 4 and downloaded not in estimates
    assert np.load(tmp_path / "mine" / downloaded).max() == 70
    assert broken.read_bytes() == b"torn" and broken.with_name(f"{broken.stem}_int16_x10.npy").is_file()
    assert not (tmp_path / "flow").exists()
    # The set that is prepared from them holds both.
    clips = open_domain(config, tmp_path, "target", progress=lambda line: None)
    stored = [read_clip(clips, i, (0,), ((0, 1),), False) for i in range(3)]
    assert [clip["flow"].max() == 70 and clip["flow"].min() == 70 for clip in stored] == [False, True, False]
    np.testing.assert_array_equal(stored[0]["flow"][0, ..., 0], stored[0]["frames"][0, ..., 0])


def test_sets_that_are_prepared_need_no_files(config, tmp_path, estimates):
    run(config, tmp_path)
    open_domain(config, tmp_path, "val", progress=lambda line: None)
    for path in (tmp_path / "flow" / "val").glob("*.npy"):
        path.unlink()
    estimates.clear()
    assert run(config, tmp_path, unprepared_only=True)[0] == 0
    assert run(config, tmp_path)[0] == 2


def test_bad_raw_files_are_listed_before_the_work(config, tmp_path, estimates):
    image = tmp_path / "viper/train/img/001/001_00019.jpg"
    image.write_bytes(image.read_bytes()[:100])
    (tmp_path / "city/leftImg8bit_sequence/train/aachen/aachen_000000_000018_leftImg8bit.png").unlink()
    with pytest.raises(FlowError) as caught:
        run(config, tmp_path)
    assert "001_00019.jpg: expected an image" in str(caught.value)
    assert "aachen_000000_000018_leftImg8bit.png" in str(caught.value) and "skip_bad" in str(caught.value)
    with pytest.raises(BadFilesError, match="001_00019.jpg"):
        run(config, tmp_path, ("source",))
    assert not estimates and not (tmp_path / "flow").exists()
    config.data.skip_bad = True
    written, lines = run(config, tmp_path)
    assert written == 5 and "skip_bad leaves out 1 clips" in "\n".join(lines)
    config.data.source.raw_dir = str(tmp_path / "nowhere")
    with pytest.raises(BadFilesError, match="nowhere.*\n*.*no such folder"):
        run(config, tmp_path)


def test_estimates_of_different_origin_do_not_mix(config, tmp_path, toy):
    run(config, tmp_path)
    assert json.loads((tmp_path / "flow/source" / flow_extraction.ORIGIN).read_text()) == {
        "source": "toy",
        "size": "training",
        "weights": "simple",
    }
    config.flow.estimator = "dis"
    with pytest.raises(FlowError, match="source='toy', now 'dis'"):
        run(config, tmp_path)
    config.flow.estimator = "toy"
    sorted((tmp_path / "flow/target").glob("*.npy"))[0].unlink()
    toy["name"] = "other"
    with pytest.raises(FlowError, match="weights='simple', now 'other'"):
        run(config, tmp_path, ("target",))
    config.flow.size = "raw"
    with pytest.raises(FlowError, match="size='training', now 'raw'"):
        run(config, tmp_path)


def test_estimates_that_are_not_finite(config, tmp_path, toy):
    toy["params"] = {"tenth": np.float32(np.nan)}
    with pytest.raises(FlowError, match=r"001_00010.jpg to .*001_00009.jpg has values that are not finite"):
        run(config, tmp_path, ("source",))
    assert not names(tmp_path / "flow")


def test_mistakes(config, tmp_path, tiny_config, tiny_variables):
    config.flow.weights = None
    with pytest.raises(FlowError, match="config.flow.estimator=toy needs the network's weights. Draw some."):
        modes.flow(config, tmp_path)
    config.flow.estimator = "flownet2"
    with pytest.raises(FlowError, match="python -m stpl_jax.convert flownet2 FILE OUTPUT"):
        modes.flow(config, tmp_path)
    meta = checkpoint.CheckpointMeta(config=json.loads(tiny_config.to_json_best_effort()), classes=(), method="stpl")
    checkpoint.save_model(tmp_path / "segmentation", tiny_variables, meta)
    config.flow.weights = str(tmp_path / "segmentation")
    with pytest.raises(checkpoint.CheckpointError, match="segmentation network(.|\n)*stpl_jax.convert flownet2"):
        modes.flow(config, tmp_path)
    config.flow.files = "read"
    with pytest.raises(FlowError, match="config.flow.files=read reads what others estimated"):
        modes.flow(config, tmp_path)
    config.flow.files = "none"
    with pytest.raises(UserError, match="flownet2 does not run while sets are prepared.*files=write"):
        domain_spec(config, "source")
    config.data.source.raw_dir = config.data.target.raw_dir = None
    with pytest.raises(FlowError, match="data.source.raw_dir=FOLDER"):
        modes.flow(config, tmp_path)
    assert all(issubclass(error, UserError) for error in (FlowError, BadFilesError, checkpoint.CheckpointError))


def test_flow_mode_covers_configured_domains_and_their_pairs(config, tmp_path):
    """The mode itself, with DIS: three frames ask for a second pair; a domain without a folder is left out."""
    config.flow.estimator, config.flow.files = "dis", "none"
    config.data.source.raw_dir = None
    config.num_frames = 3
    modes.flow(config, tmp_path, lambda line: None)
    assert sorted(path.name for path in (tmp_path / "flow").iterdir()) == ["target", "val"]
    assert len(names(tmp_path / "flow" / "target")) == 6
    assert "aachen_000000_000019_000017_int16_x10.npy" in names(tmp_path / "flow" / "target")


def test_a_run_estimates_what_it_lacks(tmp_path, monkeypatch, estimates):
    """flow.files=write in --mode=auto over the generated world: files first, then sets prepared from them."""
    opened, reports = {}, []

    def opening(settings, workdir, row, origin, progress):
        """Opens sets as `train` does, and trains nothing."""
        needs = make_method(settings, modes.build_segmenter(settings)).needs
        for domain, wanted in {**needs, "val": None}.items():
            opened[row, domain] = open_domain(settings, workdir, domain, wanted, progress)

    monkeypatch.setattr(modes, "train", opening)
    monkeypatch.setattr(modes.model_choice, "source_model", lambda config, workdir: "source_only")
    monkeypatch.setattr(modes.model_choice, "start_lines", lambda *_: [])
    monkeypatch.setattr(modes.report, "write_report", lambda config, workdir, progress: reports.append(workdir))
    config = tiny_run_config()
    config.flow.estimator, config.flow.files, config.flow.weights = "toy", "write", "weights"
    modes.auto(config, tmp_path, lambda line: None)
    assert opened.keys() == {(r, d) for r, d in (("source_only", "source"), ("stpl", "target"))} | {
        (row, "val") for row in ("source_only", "stpl")
    }
    folders = {domain: names(tmp_path / "flow" / domain) for domain in ("source", "target", "val")}
    assert len(folders["val"]) == 2 * 9 and len(folders["source"]) == len(folders["target"]) == 10
    assert sorted(estimates) == sorted(sum(folders.values(), []))
    for clips in opened.values():
        clip = read_clip(clips, 0, (0, 1), ((0, 1),), False)
        np.testing.assert_array_equal(clip["flow"][0, ..., 0], clip["frames"][0, ..., 0])
        np.testing.assert_array_equal(clip["flow"][0, ..., 1], -clip["frames"][1, ..., 1].astype(np.int16))
    # A second run finds its sets prepared, and needs neither files nor weights.
    estimates.clear()
    for path in (tmp_path / "flow").rglob("*.npy"):
        path.unlink()
    config.flow.weights = None
    modes.auto(config, tmp_path, lambda line: None)
    assert not estimates and reports == [tmp_path] * 2


def test_predict_uses_the_estimator(tmp_path, monkeypatch, tiny_config, tiny_variables):
    with tiny_config.unlocked():
        tiny_config.data.target.size = (32, 64)
    classes = ("road", "sidewalk", "building", "fence", "light")
    stored = json.loads(tiny_config.to_json_best_effort())
    meta = checkpoint.CheckpointMeta(config=stored, classes=classes, label_setting="viper", method="stpl")
    checkpoint.save_model(tmp_path / "stpl", tiny_variables, meta)
    frames = [raw_trees.frame_pixels(i, (40, 80)) for i in range(3)]
    (tmp_path / "in").mkdir()
    for i, frame in enumerate(frames):
        predict.Image.fromarray(frame).save(tmp_path / "in" / f"{i}.png")
    tiny_config.flow.estimator, tiny_config.flow.weights = "toy", "weights"
    seen = []
    monkeypatch.setattr(predict, "predict_files", lambda model, *_: seen.append(model))
    modes.predict(tiny_config, tmp_path / "stpl", None, tmp_path / "in", tmp_path / "out")
    (model,) = seen
    resized = [predict._resize_frame(frame, (32, 64)) for frame in frames]
    fields = [np.stack([a[..., 0] / 10.0, b[..., 1] / -10.0], -1) for a, b in zip(resized[1:], resized, strict=False)]
    found = [np.asarray(model.estimate_flow(a, b)) for a, b in zip(resized[1:], resized, strict=False)]
    np.testing.assert_allclose(found, fields, rtol=1e-6)
    by_network = np.stack(list(model.segment_stream(frames)))
    given = iter(np.asarray(found))
    handed = dataclasses.replace(model, estimate_flow=lambda frame, earlier: next(given))
    np.testing.assert_array_equal(by_network, np.stack(list(handed.segment_stream(frames))))
    by_dis = dataclasses.replace(model, estimate_flow=dis_flow)
    assert (by_network != np.stack(list(by_dis.segment_stream(frames)))).any()
