"""What is chosen of a scan: rates, shares, what is held out, sizes; and what counts as a cut."""

import itertools

import numpy as np
import pytest
import raw_trees
import video_files

from input_pipeline.own_video import choose, scan
from input_pipeline.own_video.folder import Found
from input_pipeline.own_video.keep import fit
from input_pipeline.own_video.shots import is_cut, reduce

SIZE = video_files.SIZE


def material(name="a.mp4", rate=10.0, count=100, shots=None, size=SIZE):
    """A stretch without files."""
    numbers = np.arange(count)
    shots = np.zeros(count, int) if shots is None else np.array(shots)
    return scan.Stretch(Found(name, name), size, count, count / rate, rate, numbers, numbers / rate, shots)


@pytest.mark.parametrize(
    ("recorded", "asked", "step"), [(25.0, None, 1), (60.0, None, 2), (30.0, 10.0, 3), (24.0, 10.0, 2), (2.0, 10.0, 1)]
)
def test_clips_have_the_frame_rate_that_is_asked_for(recorded, asked, step):
    chosen = choose.choose([material(rate=recorded)], asked)
    assert {clip.numbers[0] - clip.numbers[1] for clip in chosen.train} == {step}
    assert {a - b for clip in chosen.val for a, b in itertools.pairwise(clip.numbers)} == {step}


def test_frames_between_which_nothing_moves_are_bridged_and_long_pauses_are_not():
    slow = material(count=400)
    kept = np.array([*range(0, 200, 5), *range(260, 400, 5)])
    slow = scan.Stretch(slow.found, SIZE, 400, 40.0, 10.0, kept, kept / 10, np.zeros(len(kept), int))
    chosen = choose.choose([slow], 10.0)
    assert {clip.numbers[0] - clip.numbers[1] for clip in chosen.train} == {5}


def test_every_video_and_camera_has_its_share():
    stretches = [material(f"one/{i}.mp4", count=200) for i in range(4)]
    stretches += [material("two/x.mp4", count=400), material("three/short.mp4", count=20)]
    chosen = choose.choose(stretches, max_clips=100)
    counts = [sum(clip.stretch == i for clip in chosen.train) for i in range(6)]
    # The short one gives what it has; cameras one and two share the rest, and the videos of one its part.
    assert counts == [11, 11, 11, 11, 43, 13]
    firsts = [clip.numbers[0] for clip in chosen.train if clip.stretch == 4]
    assert firsts[0] == 1 and max(np.diff(firsts)) - min(np.diff(firsts)) <= 1
    assert len(chosen.val) == 20
    assert chosen.film[0] == 4 and len(chosen.film[1]) == 80


def test_what_is_held_out_is_the_end_by_time():
    chosen = choose.choose([material(count=1000)], max_clips=5000, held_out=0.3)
    train, val = ([n for clip in clips for n in clip.numbers] for clips in (chosen.train, chosen.val))
    assert (min(val), max(val)) == (700, 999)
    assert (min(train), max(train)) == (0, 700 - 75 - 1)


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        ([(1080, 1920)], (544, 968)),
        ([(540, 1080)], (512, 1024)),  # the model's own ratio
        ([(541, 1081), (99, 33)], (512, 1024)),
        ([(1920, 1080)], (968, 544)),
        ([(33, 65), (63, 63), (63, 63)], (728, 728)),
    ],
)
def test_the_size_has_the_ratio_of_most_frames(sizes, expected):
    assert choose.fitting_size([material(size=size) for size in sizes], (512, 1024)) == expected


def test_frames_are_cut_around_their_middle_and_keep_their_proportions():
    frame = np.zeros((20, 60, 3), np.uint8)
    frame[5:15, 25:35] = 255  # a square in the middle
    fitted = np.asarray(fit(frame, (40, 40)))
    assert fitted.shape == (40, 40, 3)
    rows, columns = (np.flatnonzero(fitted[..., 0].max(axis) > 127) for axis in (1, 0))
    assert (rows[0], rows[-1], columns[0], columns[-1]) == (10, 29, 10, 29)
    np.testing.assert_array_equal(np.asarray(fit(frame, (20, 60))), frame)


def test_pans_exposure_and_noise_are_no_cuts_and_other_streets_are():
    random = np.random.default_rng(0)
    for seed in range(12):
        wide = raw_trees.frame_pixels(seed, (108, 240))
        frame = wide[:, :192]
        pan, later = wide[:, 24:216], np.clip(frame + random.normal(0, 6, frame.shape), 0, 255).astype(np.uint8)
        brighter, darker = (np.clip(frame * gain, 0, 255).astype(np.uint8) for gain in (1.7, 0.4))
        night = (frame * 0.15).astype(np.uint8)
        assert not is_cut(reduce((pan * 0.15).astype(np.uint8)), reduce(night)), seed
        for other in (pan, later, brighter, darker, frame):
            assert not is_cut(reduce(other), reduce(frame)), seed
        # The same colours, and nearly the same histogram.
        street = raw_trees.frame_pixels(seed + 1000, (108, 192))
        assert is_cut(reduce(street), reduce(frame)) and is_cut(reduce(frame[:, ::-1]), reduce(frame)), seed
        assert is_cut(reduce(frame[:80]), reduce(frame))
        assert is_cut(reduce((street * 0.15).astype(np.uint8)), reduce(night)), seed
