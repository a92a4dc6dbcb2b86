import contextlib
import errno
import resource
from fractions import Fraction

import av
import cv2
import numpy as np
import pytest
import raw_trees
import video_files
from PIL import Image

from input_pipeline.errors import UserError
from input_pipeline.labels import CLASSES, colour_table
from stpl_jax import video

SIZE = (33, 65)


@contextlib.contextmanager
def full_disk(size):
    """Lets no file grow beyond that many bytes: the operating system refuses what goes further, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("size", [(32, 64), (33, 65), (1, 1)])
def test_a_written_video_reads_back(tmp_path, size):
    # Pictures of one colour: H.264 keeps them up to a few grey levels, in the right channel.
    colours = np.array([(200, 40, 40), (40, 200, 40), (40, 40, 200)], np.uint8)
    with video.video_writer(tmp_path / "new" / "v.mp4", size, 12.5) as write:
        for colour in colours:
            write(np.broadcast_to(colour, (*size, 3)).copy())
    frames = video_files.frames_by_opencv(tmp_path / "new" / "v.mp4")
    for frame, colour in zip(frames, colours, strict=True):
        # Odd sides are filled up by one pixel: the format has none.
        assert frame.shape[:2] == (size[0] + size[0] % 2, size[1] + size[1] % 2)
        assert np.abs(frame.astype(int) - colour).max() < 12
    assert video_files.shown_times(tmp_path / "new" / "v.mp4") == ([0, 0.08, 0.16], 0.24)
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["v.mp4"]


@pytest.mark.parametrize("rate", [1000, 90000, Fraction(30000, 1001), 10**9])
def test_frames_are_shown_at_their_times(tmp_path, rate):
    tick, ticks = 1 / Fraction(rate), [0, 3, 4, 100, 101, 700]
    if rate == 10**9:
        ticks = [t * 10**6 for t in ticks]
    with video.video_writer(tmp_path / "v.mp4", (16, 16), rate) as write:
        for t in ticks:
            write(np.full((16, 16, 3), 90, np.uint8), t, 7 * ticks[2])
    times, end = video_files.shown_times(tmp_path / "v.mp4")
    assert times == pytest.approx([float(t * tick) for t in ticks], abs=1e-9)
    assert end == pytest.approx(float((ticks[-1] + 7 * ticks[2]) * tick), abs=1e-9)
    # The level that players look at, times ten, belongs to the size and not to the fineness of the times.
    with av.open(str(tmp_path / "v.mp4")) as container:
        assert container.streams.video[0].codec_context.extradata[3] <= 11


def test_a_video_that_is_not_finished_does_not_appear(tmp_path):
    message = r"expected uint8 \[32, 64, 3\], found uint8 \[32, 60, 3\]"
    with pytest.raises(ValueError, match=message), video.video_writer(tmp_path / "v.mp4", (32, 64), 25) as write:
        write(np.zeros((32, 64, 3), np.uint8))
        write(np.zeros((32, 60, 3), np.uint8))
    with pytest.raises(KeyboardInterrupt), video.video_writer(tmp_path / "v.mp4", (32, 64), 25) as write:
        write(np.zeros((32, 64, 3), np.uint8))
        raise KeyboardInterrupt
    with (
        pytest.raises(UserError, match="v.mp4: no frame was written"),
        video.video_writer(tmp_path / "v.mp4", (2, 2), 1),
    ):
        pass
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("frames", [1, 3, 40])
def test_a_video_that_finds_no_room_does_not_appear(tmp_path, frames):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    path = tmp_path / "v.mp4"
    path.write_text("what was there before")
    with pytest.raises(OSError) as error, full_disk(4000), video.video_writer(path, (64, 64), 25) as write:
        for _ in range(frames):
            write(noise)
    assert str(path) in str(error.value) and error.value.errno == errno.EFBIG
    assert path.read_text() == "what was there before" and [p.name for p in tmp_path.iterdir()] == ["v.mp4"]


def test_an_image_that_finds_no_room_does_not_appear(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    for path in (tmp_path / "1.png", tmp_path / "new" / "2.png"):
        with pytest.raises(OSError) as error, full_disk(4000):
            video.write_image(path, noise)
        assert str(path) in str(error.value) and not list(path.parent.glob("*png"))
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="file/3.png"):
        video.write_image(tmp_path / "file" / "3.png", noise)
    with pytest.raises(OSError, match="file/v.mp4"), video.video_writer(tmp_path / "file" / "v.mp4", (4, 4), 25):
        pass


def test_images_are_written_as_they_are(tmp_path):
    frame = raw_trees.frame_pixels(5, SIZE)
    video.write_image(tmp_path / "new" / "rgb.png", frame)
    video.write_image(tmp_path / "grey.png", frame[..., 0])
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "new" / "rgb.png")), frame)
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "grey.png")), frame[..., 0])


def test_frames_of_another_size_fit_into_a_video():
    frame = np.full((20, 30, 3), 200, np.uint8)
    assert video.fit(frame, (20, 30)) is frame
    for size, inside in (((40, 90), (slice(0, 40), slice(15, 75))), ((60, 30), (slice(20, 40), slice(0, 30)))):
        expected = np.zeros((*size, 3), np.uint8)
        expected[inside] = 200
        np.testing.assert_array_equal(video.fit(frame, size), expected)
    assert video.fit(frame[:1], (2, 400)).shape == (2, 400, 3)


def test_overlay_mixes_frame_and_colours():
    frame = raw_trees.frame_pixels(1, SIZE)
    classes = np.random.default_rng(0).integers(0, 15, SIZE).astype(np.uint8)
    palette = colour_table(CLASSES["viper"])
    mixed = video.overlay(frame, classes, palette, opacity=0.25)
    expected = 0.75 * frame.astype(float) + 0.25 * palette[classes].astype(float)
    assert mixed.dtype == np.uint8 and np.abs(mixed - expected).max() <= 0.5 + 1e-6


def test_side_by_side_keeps_the_pixels_and_shows_every_colour():
    frames = {name: raw_trees.frame_pixels(i, (64, 256)) for i, name in enumerate(("frame", "after"))}
    legend = {"road": (255, 0, 0), "a much longer name": (0, 255, 0), "sky": (0, 0, 255)}
    picture = video.side_by_side(frames, legend)
    assert picture.dtype == np.uint8 and not any(side % 2 for side in picture.shape[:2])
    for frame in frames.values():
        _, _, (x, y), _ = cv2.minMaxLoc(cv2.matchTemplate(picture, frame, cv2.TM_SQDIFF))
        np.testing.assert_array_equal(picture[y : y + 64, x : x + 256], frame)
    header, footer = picture[:16], picture[-16:]
    assert (header < 128).any() and (footer < 128).any()
    for colour in legend.values():
        assert (footer == colour).all(-1).sum() > 20


def test_a_long_legend_takes_more_rows():
    panel = {"frame": np.zeros((32, 128, 3), np.uint8)}
    short = video.side_by_side(panel, {"road": (0, 0, 0)})
    long = video.side_by_side(panel, {f"class {i}": (255, 0, i) for i in range(12)})
    assert long.shape[1] == short.shape[1] and long.shape[0] > short.shape[0]
    for i in range(12):
        assert (long == (255, 0, i)).all(-1).any()
