"""Each builder on a tiny tree in its owner's layout: what is stored equals what PIL and a few lines of numpy give."""

import dataclasses
import zlib

import cv2
import numpy as np
import pytest
from PIL import Image
from raw_trees import frame_pixels, label_ids, write_cityscapes_seq, write_synthia_seq, write_viper

from input_pipeline import clips, flow_files, optical_flow
from input_pipeline.builders import base
from input_pipeline.dataset import ego_vehicle
from input_pipeline.datasets import DATASETS
from input_pipeline.encoding import decode_flow, encode_flow
from input_pipeline.labels import train_ids
from input_pipeline.prepare import prepare
from input_pipeline.spec import DatasetSpec


def silent(_):
    """Swallows progress."""


def spec_of(name, raw_dir, **changes):
    values = {
        "name": name,
        "raw_dir": str(raw_dir),
        "split": "train",
        "classes": "synthia_seq" if name == "synthia_seq" else "viper",
        "size": (18, 32),
        "label_size": (18, 32),
        "offsets": (0, 1),
        "flow_pairs": ((0, 1),),
        "flow_source": "dis",
    }
    return DatasetSpec(**{**values, **changes})


def prepared(spec, tmp_path):
    return clips.open_clips(prepare(spec, tmp_path / "prepared", silent, threads=2))


def read_all(source, **wanted):
    wanted = {"offsets": source.spec.offsets, "flow_pairs": source.spec.flow_pairs, "label": True, **wanted}
    return {clip["name"]: clip for clip in (clips.read_clip(source, i, **wanted) for i in range(len(source)))}


def to_train_ids(ids, dataset, setting):
    out = np.full(ids.shape, 255, np.uint8)
    for y, x in np.ndindex(ids.shape):
        out[y, x] = train_ids(dataset, setting).get(int(ids[y, x]), 255)
    return out


def resized(path, size, rows=None):
    with Image.open(path) as image:
        image = image.crop((0, 0, image.width, rows or image.height))
        return np.array(image.resize(size[::-1], Image.Resampling.BICUBIC))


def test_viper_stores_frames_labels_and_flow(tmp_path):
    raw = tmp_path / "viper"
    names = write_viper(raw, videos=("001", "077"), ids=(3, 11, 2, 7, 8, 0))
    spec = spec_of("viper", raw, offsets=(0, 1, 2), flow_pairs=((0, 1), (1, 2), (0, 2)))
    read = read_all(prepared(spec, tmp_path))
    assert list(read) == names == ["001_00010", "001_00020", "077_00010", "077_00020"]
    for name, clip in read.items():
        video, number = name.split("_")
        frames = [
            resized(raw / "train" / "img" / video / f"{video}_{int(number) - k:05d}.jpg", (18, 32)) for k in range(3)
        ]
        np.testing.assert_array_equal(clip["frames"], frames)
        ids = np.array(Image.open(raw / "train" / "cls" / video / f"{name}.png").resize((32, 18), Image.NEAREST))
        np.testing.assert_array_equal(clip["label"], to_train_ids(ids, "viper", "viper"))
        for flow, (a, b) in zip(clip["flow"], spec.flow_pairs, strict=True):
            expected = optical_flow.dis_flow(frames[a], frames[b])
            assert flow.dtype == np.int16
            np.testing.assert_allclose(flow / 10, expected, atol=0.0501)


def test_viper_never_needs_labels_of_earlier_frames_nor_unasked_frames(tmp_path):
    names = write_viper(tmp_path / "viper", before=1)
    assert list(read_all(prepared(spec_of("viper", tmp_path / "viper"), tmp_path))) == names


def test_viper_ego_vehicle_is_ignored_and_other_cars_stay(tmp_path):
    raw = tmp_path / "viper"
    write_viper(raw, labelled=(10,), size=(36, 64))
    ids = np.full((36, 64), 3, np.uint8)
    ids[30:, 20:44] = 24
    ids[28:30, 20:24] = 24
    ids[27, 19] = 24
    ids[30:, 0:10] = 24
    ids[4:10, 30:40] = 24
    path = raw / "train" / "cls" / "001" / "001_00010.png"
    Image.fromarray(ids).save(path)
    label = read_all(prepared(spec_of("viper", raw, label_size=None), tmp_path))["001_00010"]["label"]
    expected = to_train_ids(ids, "viper", "viper")
    expected[30:, 20:44] = 255
    expected[28:30, 20:24] = 255
    expected[27, 19] = 255
    np.testing.assert_array_equal(label, expected)
    assert (label == 10).sum() == 6 * 10 + 6 * 10


def test_ego_vehicle_needs_a_car_at_the_bottom_centre():
    is_car = np.zeros((20, 40), bool)
    is_car[15:, :17] = True
    is_car[10:19, 18:22] = True
    assert not ego_vehicle(is_car).any()


@pytest.mark.parametrize("plain_folders", [False, True])
def test_synthia_reads_the_red_channel_and_cuts_the_bottom(tmp_path, plain_folders):
    raw = tmp_path / "synthia"
    names = write_synthia_seq(raw, size=(38, 64), plain_folders=plain_folders, ids=(3, 1, 15, 12, 0))
    spec = spec_of("synthia_seq", raw, size=(16, 32), label_size=None)
    read = read_all(prepared(spec, tmp_path))
    # 120 of 760 rows are 6 of 38.
    assert list(read) == names
    for name, clip in read.items():
        number = int(name[-6:])
        frames = [
            np.array(Image.fromarray(frame_pixels(n, (38, 64))[:32]).resize((32, 16), Image.BICUBIC))
            for n in (number, number - 1)
        ]
        np.testing.assert_array_equal(clip["frames"], frames)
        ids = label_ids(number, (38, 64), (3, 1, 15, 12, 0))[:32]
        np.testing.assert_array_equal(clip["label"], to_train_ids(ids, "synthia_seq", "synthia_seq"))


def test_synthia_cut_at_its_own_size():
    assert DATASETS["synthia_seq"].rows_kept(760) == 640


def test_synthia_raw_dir_is_one_sequence_or_holds_several(tmp_path):
    raw = tmp_path / "synthia"
    dawn = write_synthia_seq(raw, count=3)
    fog = write_synthia_seq(raw, sequence="SYNTHIA-SEQS-04-FOG", count=2)
    assert list(read_all(prepared(spec_of("synthia_seq", raw), tmp_path))) == dawn + fog
    one = spec_of("synthia_seq", raw / "SYNTHIA-SEQS-04-FOG")
    assert list(read_all(prepared(one, tmp_path))) == fog


def test_frames_are_prepared_as_a_person_sees_them(tmp_path):
    """16-bit grey, on its side, and with alpha: as upright 8-bit RGB, that fits label and flow."""
    raw, lines = tmp_path / "viper", []
    write_viper(raw, labelled=(10, 20, 30), before=1)
    folder, turned = raw / "train" / "img" / "001", Image.Exif()
    turned[0x0112] = 6
    expected = {}
    for number in (9, 10, 19, 20, 29, 30):
        path = folder / f"001_{number:05}.jpg"
        pixels = np.array(Image.open(path))
        path.unlink()
        if number < 11:
            cv2.imwrite(str(path.with_suffix(".tif")), pixels[..., 0].astype(np.uint16) * 257)
            pixels = np.repeat(pixels[..., :1], 3, -1)
        elif number < 21:
            # A quarter to the left; the viewer turns it a quarter to the right.
            Image.fromarray(np.rot90(pixels)).save(path.with_suffix(".png"), exif=turned)
        else:
            alpha = np.full((36, 64, 1), 255, np.uint8)
            alpha[:9] = 0
            Image.fromarray(np.concatenate([pixels, alpha], -1)).save(path.with_suffix(".webp"), lossless=True)
            pixels[:9] = 255
        expected[number] = np.array(Image.fromarray(pixels).resize((32, 18), Image.Resampling.BICUBIC))
    source = clips.open_clips(prepare(spec_of("viper", raw), tmp_path / "prepared", lines.append, threads=2))
    for name, clip in read_all(source).items():
        number = int(name[-2:])
        np.testing.assert_array_equal(clip["frames"], [expected[number], expected[number - 1]])
    assert [line for line in lines if "turned upright" in line and "2 frames" in line]


@pytest.mark.parametrize("classes", ["viper", "synthia_seq"])
def test_cityscapes_takes_the_frame_that_gtfine_names(tmp_path, classes):
    raw = tmp_path / "cityscapes"
    ids = tuple(range(34)) if classes == "viper" else (7, 17, 25, 32)
    names = write_cityscapes_seq(raw, ids=ids)
    assert "frankfurt_000000_000294" in names
    folder = raw / "gtFine" / "train" / "frankfurt"
    # The other files of the package lie beside the labels.
    (folder / "frankfurt_000000_000294_gtFine_polygons.json").write_text("{}")
    Image.fromarray(np.zeros((32, 64), np.uint8)).save(folder / "frankfurt_000000_000294_gtFine_instanceIds.png")
    spec = spec_of("cityscapes_seq", raw, classes=classes, label_size=None, offsets=(0, 2), flow_pairs=())
    read = read_all(prepared(spec, tmp_path))
    assert list(read) == names
    for name, clip in read.items():
        city, sequence, number = name.split("_")
        for frame, k in zip(clip["frames"], (0, 2), strict=True):
            file = f"{city}_{sequence}_{int(number) - k:06d}_leftImg8bit.png"
            np.testing.assert_array_equal(
                frame, resized(raw / "leftImg8bit_sequence" / "train" / city / file, (18, 32))
            )
        raw_ids = np.array(Image.open(raw / "gtFine" / "train" / city / f"{name}_gtFine_labelIds.png"))
        np.testing.assert_array_equal(clip["label"], to_train_ids(raw_ids, "cityscapes_seq", classes))
        assert clip["flow"].shape == (0, 18, 32, 2)


def test_precomputed_flow_of_raw_or_training_size(tmp_path):
    raw, flow_dir = tmp_path / "viper", tmp_path / "flow"
    write_viper(raw)
    rng = np.random.default_rng(0)
    big, small = rng.normal(0, 9, (36, 64, 2)), rng.normal(0, 9, (18, 32, 2))
    flow_files.write_flow(flow_dir / "001_0001000009_int16_x10.npy", big)
    # The sub-folder of the split comes first, where there is one.
    flow_files.write_flow(flow_dir / "train" / "001_0002000019_int16_x10.npy", small)
    spec = spec_of("viper", raw, flow_source="precomputed", flow_dir=str(flow_dir))
    for scale in ("align_corners", "public"):
        read = read_all(prepared(dataclasses.replace(spec, flow_scale=scale), tmp_path))
        expected = flow_files.resize_flow(
            flow_files.read_flow(flow_dir / "001_0001000009_int16_x10.npy"), (18, 32), scale
        )
        np.testing.assert_allclose(read["001_00010"]["flow"][0] / 10, expected, atol=0.0501)
        np.testing.assert_array_equal(read["001_00020"]["flow"][0], flow_files.to_int16(small))


def test_precomputed_flo_files(tmp_path):
    raw, flow_dir = tmp_path / "cityscapes", tmp_path / "flow"
    write_cityscapes_seq(raw, clips=(("aachen", 0, 19),))
    flow = np.random.default_rng(0).normal(0, 9, (18, 32, 2)).astype("<f4")
    flow_dir.mkdir()
    header = np.float32(202021.25).tobytes() + np.array([32, 18], "<i4").tobytes()
    (flow_dir / "aachen_000000_000019_000018.flo").write_bytes(header + flow.tobytes())
    spec = spec_of("cityscapes_seq", raw, flow_source="precomputed", flow_dir=str(flow_dir))
    (clip,) = read_all(prepared(spec, tmp_path)).values()
    np.testing.assert_array_equal(clip["flow"][0], flow_files.to_int16(flow))


def test_synthia_flow_of_raw_height_is_cut_and_sequences_have_their_own_folders(tmp_path):
    raw, flow_dir = tmp_path / "synthia", tmp_path / "flow"
    for s, sequence in enumerate(("SYNTHIA-SEQS-04-DAWN", "SYNTHIA-SEQS-04-FOG")):
        write_synthia_seq(raw, sequence=sequence, count=2, size=(38, 64))
        flow = np.full((38, 64, 2), [s + 1, 2.0])
        flow[32:] = 99
        flow_files.write_flow(flow_dir / sequence / "000001_int16_x10.npy", flow)
    spec = spec_of("synthia_seq", raw, size=(32, 64), flow_source="precomputed", flow_dir=str(flow_dir))
    read = read_all(prepared(spec, tmp_path))
    for s, clip in enumerate(read.values()):
        np.testing.assert_array_equal(clip["flow"][0], np.broadcast_to([10 * (s + 1), 20], (32, 64, 2)))


def test_stored_flow_survives_at_the_ends_of_int16():
    flow = np.random.default_rng(0).integers(-(2**15), 2**15, (5, 7, 2)).astype(np.int16)
    flow[0, :2] = [[-32768, 32767], [0, -1]]
    np.testing.assert_array_equal(decode_flow(encode_flow(flow)), flow)


def test_records_compress_what_png_leaves_uncompressed(tmp_path):
    write_viper(tmp_path / "viper", labelled=tuple(range(10, 90, 10)), size=(180, 320))
    source = prepared(spec_of("viper", tmp_path / "viper", size=(180, 320), label_size=(180, 320)), tmp_path)
    images = [data for i in range(len(source)) for name, data in source[i].items() if name != "name"]
    assert sum(map(len, images)) > 8 * 180 * 320 * (3 + 3 + 4 + 1)
    # What deflate, PNG's own compression, would make of them: a set must not grow for being faster to read.
    deflated = sum(len(zlib.compress(data)) for data in images)
    assert sum(path.stat().st_size for path in source.path.iterdir()) < 1.2 * deflated


def test_many_shards_keep_every_clip_in_order(tmp_path, monkeypatch):
    names = write_viper(tmp_path / "viper", labelled=(10, 20, 30, 40, 50), before=1, size=(18, 32))
    monkeypatch.setattr(base, "_SHARD_BYTES", 15_000)
    source = prepared(spec_of("viper", tmp_path / "viper"), tmp_path)
    assert len(list(source.path.glob("*.array_record-*"))) == 3
    assert list(read_all(source)) == names
