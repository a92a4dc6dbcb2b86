import gc
from fractions import Fraction

import av
import numpy as np
import pytest
import video_files

from input_pipeline import video_decode
from input_pipeline.video_decode import decode, look_at
from input_pipeline.video_packets import Losses, SourceError

SIZE, TICKS = video_files.SIZE, video_files.TICKS


def read(path):
    losses = Losses()
    return list(decode(path, losses)), losses


def numbers(frames):
    return [frame.number for frame in frames]


def assert_nothing_lost(losses):
    assert not losses and not losses.notes


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("plain.mp4", {}),
        ("b_frames.mp4", {"b_frames": 2}),  # their decoding begins before time 0
        ("b_frames.mkv", {"b_frames": 2}),
        ("b_frames.ts", {"b_frames": 2}),
        ("b_frames.avi", {"b_frames": 2}),  # whose times FFmpeg can only guess
        ("mpeg4.avi", {"codec": "mpeg4", "b_frames": 2}),
        ("photos.avi", {"codec": "mjpeg", "pixels": "yuvj420p"}),
        ("no_header.h264", {"b_frames": 2}),
        ("fragments.mp4", {"options": {}, "container_options": {"movflags": "frag_keyframe+empty_moov"}}),
        ("ten_bits.mp4", {"pixels": "yuv420p10le"}),
        ("grey.mp4", {"pixels": "gray"}),
        ("sixteen_bits.mkv", {"codec": "ffv1", "pixels": "gray16le"}),
        ("alpha.mov", {"codec": "prores_ks", "pixels": "yuva444p10le"}),
        ("colours.mp4", {"options": {"x264-params": "colormatrix=bt709:colorprim=bt709:transfer=bt709:fullrange=1"}}),
        (
            "never_shown.webm",
            {"codec": "libvpx", "options": {"auto-alt-ref": "1", "lag-in-frames": "8", "cpu-used": "5"}},
        ),
        ("left.mov", {"change": lambda stream: stream.set_display_rotation(90)}),
        ("right.mp4", {"change": lambda stream: stream.set_display_rotation(-90)}),
        ("around.mp4", {"change": lambda stream: stream.set_display_rotation(180)}),
        ("a.gif", {"codec": "gif", "pixels": "rgb8"}),
    ],
)
def test_every_kind_of_video_gives_what_opencv_gives(tmp_path, name, settings):
    path = video_files.write(tmp_path / name, video_files.street(10), **settings)
    frames, losses = read(path)
    assert_nothing_lost(losses)
    expected = video_files.frames_by_opencv(path)
    assert len(expected) == 10
    np.testing.assert_array_equal(np.stack([f.pixels for f in frames]), np.stack(expected))
    assert numbers(frames) == list(range(10)) and {f.video for f in frames} == {0}
    rate = look_at(path).rate
    assert [f.start / rate for f in frames] == [Fraction(i, 10) for i in range(10)]
    assert (frames[-1].start + frames[-1].duration) / rate == 1
    assert look_at(path).size == expected[0].shape[:2]


def test_frames_of_odd_sides(tmp_path):
    street = video_files.street(3, (33, 65))
    frames, losses = read(video_files.write(tmp_path / "odd.mkv", street, codec="ffv1", pixels="bgr0"))
    np.testing.assert_array_equal(np.stack([f.pixels for f in frames]), street)
    assert_nothing_lost(losses)


@pytest.mark.parametrize(
    ("matrix", "turned"),
    [
        # Of a display matrix: a point (x, y) goes to (a x + c y, b x + d y).
        ((-1, 0, 0, 1), lambda frame: frame[:, ::-1]),
        ((1, 0, 0, -1), lambda frame: frame[::-1]),
        ((0, 1, 1, 0), lambda frame: frame.swapaxes(0, 1)),
        ((0, -1, -1, 0), lambda frame: frame[::-1, ::-1].swapaxes(0, 1)),
        ((0, 1, -1, 0), lambda frame: np.rot90(frame, -1)),
        ((0.8, 0.2, -0.2, 0.8), lambda frame: frame),
    ],
)
def test_frames_are_turned_and_mirrored(tmp_path, matrix, turned):
    (street,) = video_files.street(1)
    a, b, c, d = (round(65536 * x) for x in matrix)

    def change(stream):
        stream.set_display_matrix([a, b, 0, c, d, 0, 0, 0, 1 << 30])

    path = video_files.write(tmp_path / "v.mov", [street], "qtrle", "rgb24", change=change)
    (frame,), _ = read(path)
    np.testing.assert_array_equal(frame.pixels, turned(street))
    assert look_at(path).size == frame.pixels.shape[:2]


def test_frames_are_let_go_as_they_come(tmp_path):
    path = video_files.write(tmp_path / "v.mp4", video_files.street(20), change=lambda s: s.set_display_rotation(90))
    alive = []
    gc.collect()
    gc.disable()
    try:
        for _ in decode(path, Losses()):
            alive.append(sum(isinstance(found, av.VideoFrame) for found in gc.get_objects()))
    finally:
        gc.enable()
    # The one whose matrix was read, the one that is shown, and those that the decoder gives at the end at once.
    assert len(alive) == 20 and max(alive) <= 5


def test_hdr_becomes_bt709(tmp_path, monkeypatch):
    tags = {"x264-params": "colormatrix=bt2020nc:colorprim=bt2020:transfer=smpte2084"}
    path = video_files.write(tmp_path / "v.mp4", video_files.street(1), pixels="yuv420p10le", options=tags)
    assert "is HDR (PQ); its colours are converted to BT.709" in look_at(path).notes[0]
    asked = []

    class Reformatter:
        """FFmpeg takes seconds to prepare this conversion; what it is asked for is BT.709, code 1 in ITU-T H.273."""

        def reformat(self, picture, **settings):
            asked.append((settings["dst_color_trc"], settings["dst_color_primaries"]))
            return picture.reformat(format=settings["format"])

    monkeypatch.setattr(video_decode, "VideoReformatter", Reformatter)
    read(path)
    assert asked == [(1, 1)]


def test_pixels_that_ffmpeg_cannot_convert(tmp_path, monkeypatch):
    class Reformatter:
        def reformat(self, *_, **__):
            raise av.error.InvalidDataError(22, "Invalid argument")

    path = video_files.write(tmp_path / "v.mp4", video_files.street(1))
    monkeypatch.setattr(video_decode, "VideoReformatter", Reformatter)
    with pytest.raises(SourceError, match=r"v.mp4: frame 0 cannot be converted to RGB \(yuv420p, Invalid argument\)"):
        read(path)


def test_frames_last_as_long_as_their_time_stamps_say(tmp_path):
    times = [0, 100, 200, 300, 1300, 1400, 2400, 2500, 4000, 4100, 4200, 5600]
    for name in ("v.mkv", "v.mp4"):
        path = video_files.write(tmp_path / name, video_files.street(12), times=times, b_frames=2)
        frames, losses = read(path)
        assert_nothing_lost(losses)
        rate = look_at(path).rate
        assert [f.start / rate for f in frames] == [Fraction(t, 1000) for t in times]
        shown, end = video_files.shown_times(path)
        assert [float(f.start / rate) for f in frames] == pytest.approx(shown, abs=1e-9)
        assert float((frames[-1].start + frames[-1].duration) / rate) == pytest.approx(end, abs=1e-9)


def test_holes_in_the_time_of_a_regular_video_are_told(tmp_path):
    times = [33 * i + (i % 3 == 0) for i in range(20)]
    hole = [*times, *(t + 5000 for t in times), *(t + 7_200_000 for t in times)]
    path = video_files.write(tmp_path / "v.mkv", video_files.street(60), times=hole)
    frames, losses = read(path)
    assert not losses and [f.video for f in frames] == [0] * 20 + [1] * 20 + [2] * 20
    assert "frame 20 comes 4.37 s after the frame before, where 0.033 s is usual" in losses.notes[0]
    # MP4 could not hold the longer one: the frame after it is shown at once.
    assert "frame 40 comes 7194.37 s after the frame before it" in losses.notes[1] and len(losses.notes) == 2
    assert 0 < frames[40].start - frames[39].start <= 100 and frames[41].start - frames[40].start == 32


@pytest.mark.parametrize("b_frames", [0, 2])
def test_what_cannot_be_decoded_is_left_out_and_the_rest_comes(tmp_path, b_frames):
    whole = video_files.write(tmp_path / "whole.mp4", video_files.street(24), b_frames=b_frames)
    expected = video_files.frames_by_opencv(whole)
    times = [pts for _, _, pts in video_files.packets(whole)]
    # The packets of frames 8 (a key frame) to 11.
    lost = [i for i, pts in enumerate(times) if 8 <= pts / TICKS - min(times) / TICKS < 12]
    frames, losses = read(video_files.spoil(whole, tmp_path / "spoilt.mp4", lost))
    assert numbers(frames) == [*range(8), *range(12, 24)]
    assert losses.skipped == [(i, pytest.approx(i / 10)) for i in range(8, 12)]
    assert {f.number: f.video for f in frames} == dict.fromkeys(range(8), 0) | dict.fromkeys(range(12, 24), 1)
    assert [f.start for f in frames] == [f.number * TICKS for f in frames]
    # Frame 12 is a key frame; with B frames 6 and 7 may build on the lost one.
    for frame in frames:
        assert frame.number in (6, 7) or np.array_equal(frame.pixels, expected[frame.number])


def test_frames_that_build_on_a_lost_one_are_named(tmp_path):
    whole = video_files.write(tmp_path / "whole.mp4", video_files.street(16))
    frames, losses = read(video_files.spoil(whole, tmp_path / "spoilt.mp4", [5]))
    assert numbers(frames) == [0, 1, 2, 3, 4, *range(6, 16)]
    assert losses.skipped == [(5, 0.5)] and losses.damaged == [(6, pytest.approx(0.6)), (7, pytest.approx(0.7))]


def test_damage_that_the_decoder_hides_is_named(tmp_path):
    whole = video_files.write(tmp_path / "whole.mp4", video_files.street(16), options={"x264-params": "cabac=0"})
    frames, losses = read(video_files.spoil(whole, tmp_path / "spoilt.mp4", [8], part=0.4))
    assert numbers(frames) == list(range(16)) and not losses.skipped
    assert losses.damaged == [(i, pytest.approx(i / 10)) for i in range(8, 12)]
    assert {f.video for f in frames} == {0}


def test_a_first_frame_that_is_lost(tmp_path):
    whole = video_files.write(tmp_path / "whole.mp4", video_files.street(12))
    frames, losses = read(video_files.spoil(whole, tmp_path / "spoilt.mp4", [0, 1, 2, 3]))
    assert numbers(frames) == list(range(4, 12)) and [number for number, _ in losses.skipped] == [0, 1, 2, 3]
    # The first that is there is shown from the beginning, so that the others keep their times.
    assert [(f.start, f.duration) for f in frames[:2]] == [(0, 5 * TICKS), (5 * TICKS, TICKS)]


@pytest.mark.parametrize("name", ["v.mp4", "v.mkv", "v.avi", "v.flv"])
def test_a_file_that_ends_early(tmp_path, name):
    codec, more = ("mjpeg", {"pixels": "yuvj420p"}) if name == "v.avi" else ("libx264", {})
    if name == "v.mp4":
        more["container_options"] = {"movflags": "faststart"}
    whole = video_files.write(tmp_path / name, video_files.street(20), codec, **more)
    frames, losses = read(video_files.cut(whole, tmp_path / f"cut_{name}", 12))
    expected = video_files.frames_by_opencv(whole)
    np.testing.assert_array_equal(np.stack([f.pixels for f in frames[:12]]), np.stack(expected[:12]))
    assert len(frames) in (12, 13) and losses
    if name in ("v.mp4", "v.avi"):
        assert any("names 20 frames" in remark for remark in losses.remarks)
        assert len(frames) + len(losses.skipped) == 20
    else:
        assert any("announces 2.00 s" in remark for remark in losses.remarks)


def test_what_matroska_jumps_over_is_told(tmp_path):
    whole = video_files.write(tmp_path / "v.mkv", video_files.street(30))
    content, places = bytearray(whole.read_bytes()), video_files.packets(whole)
    start, end = places[16][0] - 4, places[20][0] - 2
    content[start:end] = bytes(end - start)
    (tmp_path / "spoilt.mkv").write_bytes(content)
    frames, losses = read(tmp_path / "spoilt.mkv")
    assert len(frames) < 27 and any("the file is damaged" in remark for remark in losses.remarks)
    assert any("where 0.1 s is usual" in note for note in losses.notes)
    gap = next(i for i, f in enumerate(frames) if f.video)
    assert frames[gap].start - frames[gap - 1].start > 100


def test_packets_that_a_transport_stream_has_lost_are_told(tmp_path):
    whole = video_files.write(tmp_path / "v.ts", video_files.street(16))
    content = whole.read_bytes()
    places = [place for place, _, _ in video_files.packets(whole)]
    # A part of frame 8, a large one: transport packets have 188 bytes.
    start = places[8] + 188
    (tmp_path / "spoilt.ts").write_bytes(content[:start] + content[start + 188 :])
    frames, losses = read(tmp_path / "spoilt.ts")
    # FFmpeg marks the frame before, too: it finds the end of one by the beginning of the next.
    assert {8, 9, 10, 11} <= {number for number, _ in losses.damaged + losses.skipped} <= {7, 8, 9, 10, 11}


def test_recordings_that_are_joined_go_on_in_time(tmp_path):
    first = video_files.write(tmp_path / "1.ts", video_files.street(8))
    second = video_files.write(tmp_path / "2.ts", video_files.street(8, (48, 80)))
    joined = tmp_path / "joined.ts"
    joined.write_bytes(first.read_bytes() + second.read_bytes())
    frames, losses = read(joined)
    assert [f.start for f in frames] == [9000 * i for i in range(16)] and not losses
    assert [(f.video, f.pixels.shape[:2]) for f in frames] == [(0, SIZE)] * 8 + [(1, (48, 80))] * 8
    assert "the size changes at frame 8 (0.80 s) from 64x96 to 48x80 pixels (height x width)" in losses.notes
    expected = [*video_files.frames_by_opencv(first), *video_files.frames_by_opencv(second)]
    for frame, pixels in zip(frames, expected, strict=True):
        np.testing.assert_array_equal(frame.pixels, pixels)


def test_a_trimmed_video_is_whole(tmp_path):
    whole = video_files.write(tmp_path / "whole.mp4", video_files.street(12), b_frames=2)
    with av.open(str(whole)) as source, av.open(str(tmp_path / "trimmed.mp4"), "w") as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.size:
                packet.pts, packet.dts, packet.stream = packet.pts - 3 * TICKS, packet.dts - 3 * TICKS, stream
                target.mux(packet)
    frames, losses = read(tmp_path / "trimmed.mp4")
    assert_nothing_lost(losses)
    expected = video_files.frames_by_opencv(whole)[3:]
    np.testing.assert_array_equal(np.stack([f.pixels for f in frames]), np.stack(expected))


def test_interlaced_video_is_woven(tmp_path):
    street = video_files.street(8)
    path = video_files.write(tmp_path / "v.ts", street, options={"flags": "+ildct+ilme", "x264-params": "tff=1:crf=1"})
    frames, losses = read(path)
    assert_nothing_lost(losses)
    assert "interlaced" in look_at(path).notes[0]
    # OpenCV gives garbage for it: the original is the measure.
    assert np.abs(np.stack([f.pixels for f in frames]).astype(int) - street).mean() < 8


def test_of_several_streams_one_is_taken_and_said(tmp_path):
    with av.open(str(tmp_path / "two.mkv"), "w") as container:
        streams = [container.add_stream("libx264", rate=10) for _ in range(2)]
        sound = container.add_stream("pcm_s16le", rate=8000)
        for stream in streams:
            stream.height, stream.width = SIZE
        for frame in video_files.street(4):
            for stream in streams:
                container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")))
        noise = av.AudioFrame.from_ndarray(np.zeros((1, 8000), np.int16), "s16", "mono")
        noise.rate = 8000
        container.mux(sound.encode(noise))
        for stream in (*streams, sound):
            container.mux(stream.encode())
    assert len(read(tmp_path / "two.mkv")[0]) == 4
    assert "has 2 video streams; number 0 is taken" in look_at(tmp_path / "two.mkv").notes[0]


def test_files_without_a_picture(tmp_path):
    whole = video_files.write(tmp_path / "whole.mp4", video_files.street(4))
    video_files.spoil(whole, tmp_path / "zeros.mp4", range(4))
    with av.open(str(tmp_path / "sound.wav"), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000)
        noise = av.AudioFrame.from_ndarray(np.zeros((1, 8000), np.int16), "s16", "mono")
        noise.rate = 8000
        container.mux(stream.encode(noise))
    (tmp_path / "letters.ans").write_text("words " * 200)
    for name, words in (
        ("zeros.mp4", "none of its frames could be decoded"),
        ("sound.wav", "has no video, only audio"),
        ("letters.ans", "has no video that FFmpeg can decode"),
    ):
        with pytest.raises(SourceError, match=f"{name}: {words}"):
            look_at(tmp_path / name)
