import cv2
import numpy as np
import pytest
import raw_trees
from PIL import Image

from input_pipeline.labels import colour_table
from stpl_jax import video

SIZE = (33, 65)


def write_folder(folder, names, size=SIZE):
    folder.mkdir()
    frames = [raw_trees.frame_pixels(i, size) for i in range(len(names))]
    for name, frame in zip(names, frames, strict=True):
        Image.fromarray(frame).save(folder / name)
    return frames


def test_a_folder_gives_its_images_in_the_order_of_their_names(tmp_path):
    frames = write_folder(tmp_path / "in", ["b.png", "a.PNG", "c.png"])
    write_folder(tmp_path / "in" / "sub", ["d.png"])
    (tmp_path / "in" / "notes.txt").write_text("no image")
    (tmp_path / "in" / "._a.png").write_bytes(b"what macOS leaves beside files")
    source = video.open_source(tmp_path / "in")
    assert (source.count, source.size, source.is_video) == (3, SIZE, False)
    read = list(source)
    assert [name for name, _ in read] == ["a", "b", "c"]
    np.testing.assert_array_equal(np.stack([f for _, f in read]), np.stack([frames[1], frames[0], frames[2]]))


@pytest.mark.parametrize("size", [(32, 64), (33, 65)])
def test_a_written_video_reads_back(tmp_path, size):
    # Blocks of one colour: MPEG-4 keeps them up to a few grey levels, in the right channel.
    colours = np.array([(200, 40, 40), (40, 200, 40), (40, 40, 200)], np.uint8)
    with video.video_writer(tmp_path / "new" / "v.mp4", size, 12.5) as write:
        for colour in colours:
            write(np.broadcast_to(colour, (*size, 3)).copy())
    source = video.open_source(tmp_path / "new" / "v.mp4")
    assert (source.is_video, source.count, source.fps) == (True, 3, 12.5)
    # Odd sides are filled up by one pixel: the format has none.
    assert source.size == (size[0] + size[0] % 2, size[1] + size[1] % 2)
    read = list(source)
    assert [name for name, _ in read] == ["000000", "000001", "000002"]
    for (_, frame), colour in zip(read, colours, strict=True):
        assert np.abs(frame.astype(int) - colour).max() < 12
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["v.mp4"]


def test_a_video_that_is_not_finished_does_not_appear(tmp_path):
    message = r"expected uint8 \[32, 64, 3\], found uint8 \[32, 60, 3\]"
    with pytest.raises(ValueError, match=message), video.video_writer(tmp_path / "v.mp4", (32, 64), 25) as write:
        write(np.zeros((32, 64, 3), np.uint8))
        write(np.zeros((32, 60, 3), np.uint8))
    assert not list(tmp_path.iterdir())


def test_inputs_that_are_not_there_or_empty(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "a.gif").write_bytes(b"GIF89a")
    (tmp_path / "none.mp4").touch()
    (tmp_path / "text.mp4").write_text("This is not a video. " * 100)
    expected = {
        "missing.mp4": "no such file or folder",
        "folder": "no images in this folder",
        "none.mp4": "the file is empty",
        "text.mp4": "could not decode a frame",
    }
    for name, words in expected.items():
        with pytest.raises(video.SourceError, match=f"{name}: .*{words}"):
            video.open_source(tmp_path / name)


def test_all_broken_images_of_a_folder_are_named_at_once(tmp_path):
    folder = tmp_path / "in"
    write_folder(folder, ["a.png", "b.png", "c.jpg", "d.png"])
    whole = (folder / "b.png").read_bytes()
    (folder / "b.png").write_bytes(whole[: len(whole) // 2])
    (folder / "c.jpg").write_bytes(b"no JPEG")
    with pytest.raises(video.SourceError) as error:
        video.open_source(folder)
    assert [line.partition(":")[0] for line in str(error.value).splitlines()] == [f"{folder}/b.png", f"{folder}/c.jpg"]


def test_images_of_another_size_or_the_same_name_are_errors(tmp_path):
    write_folder(tmp_path / "sizes", ["a.png", "b.png"])
    Image.fromarray(raw_trees.frame_pixels(0, (30, 65))).save(tmp_path / "sizes" / "c.png")
    with pytest.raises(video.SourceError, match="c.png has 30x65 pixels.*the first frame has 33x65"):
        video.open_source(tmp_path / "sizes")
    write_folder(tmp_path / "names", ["a.png", "a.jpg"])
    with pytest.raises(video.SourceError, match="a.jpg and a.png would give one result file"):
        video.open_source(tmp_path / "names")


def test_an_image_that_changes_its_size_while_it_is_read(tmp_path):
    write_folder(tmp_path / "in", ["a.png", "b.png"])
    frames = iter(video.open_source(tmp_path / "in"))
    next(frames)
    Image.fromarray(raw_trees.frame_pixels(0, (30, 65))).save(tmp_path / "in" / "b.png")
    with pytest.raises(video.SourceError, match="b.png has 30x65"):
        next(frames)


def test_images_are_written_as_they_are(tmp_path):
    frame = raw_trees.frame_pixels(5, SIZE)
    video.write_image(tmp_path / "new" / "rgb.png", frame)
    video.write_image(tmp_path / "grey.png", frame[..., 0])
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "new" / "rgb.png")), frame)
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "grey.png")), frame[..., 0])


def test_overlay_mixes_frame_and_colours():
    frame = raw_trees.frame_pixels(1, SIZE)
    classes = np.random.default_rng(0).integers(0, 15, SIZE).astype(np.uint8)
    palette = colour_table("viper")
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
