import random
from pathlib import Path

import pytest

from input_pipeline.frame_names import split_into_videos


def split(names):
    """Names of the pictures of each video; the order in which files are found must not matter."""
    files = [Path(f"{name}.png") for name in names]
    random.Random(0).shuffle(files)
    return [[file.stem for file in video.files] for video in split_into_videos(files)]


@pytest.mark.parametrize(
    "names",
    [
        [str(n) for n in range(1, 13)],
        [f"{n:04d}" for n in range(9997, 10003)],  # the number outgrows its width
        [f"{n:05d}" for n in range(0, 100, 10)],  # every tenth frame of a video
        [f"frame{n}_left" for n in range(8, 13)],
        [f"img_{n:04d}_v2" for n in range(5)],
        [f"{n:04d}_1920x1080" for n in range(5)],
        [f"{n:06d}_2" for n in range(9, 12)],
        [f"12left{n}" for n in range(3)],
        [f"кадр {n}" for n in range(8, 12)],
        [f"Frame ({n})" for n in range(8, 12)],
        [f"GOPR0122_frame_{n:06d}_rgb_anon" for n in range(1, 5)],
        [f"b1c66a42-6f7d68ca-{n:07d}" for n in range(1, 5)],
        [f"aachen_000000_{n:06d}_leftImg8bit" for n in range(17, 20)],
        # Time stamps: milliseconds of 30 frames a second, a camera that is triggered now and then, seconds.
        ["1612345678901", "1612345678934", "1612345678967", "1612345679001", "1612345679034", "1612345679068"],
        [f"14036365797{n:08d}" for n in (0, 50_000_000, 65_000_000, 90_000_001, 91_000_000)],
        ["1305031102.175304", "1305031102.208304", "1305031102.2433"],
        ["1", "50"],
        ["000000"],
    ],
)
def test_names_of_one_video(names):
    assert split(names) == [names]


@pytest.mark.parametrize(
    ("videos", "why"),
    [
        ([["f_1", "f_2", "f_3"], ["f_7", "f_8"]], "a step of 4 from f_3.png, where 1 is usual"),
        ([["1", "2", "3"], ["5", "6"]], "a step of 2 from 3.png, where 1 is usual"),
        ([["00000", "00010", "00020"], ["00050", "00060"]], "a step of 30 from 00020.png, where 10 is usual"),
        ([["aachen_000000_000019_leftImg8bit"], ["aachen_000001_000019_leftImg8bit"]], "another name"),
        (
            [[f"aachen_00000{s}_{n:06d}_leftImg8bit" for n in range(9, 12)] for s in (0, 1)],
            "another name than aachen_000000_000011_leftImg8bit.png",
        ),
        ([["001_00000", "001_00010"], ["002_00000", "002_00010"]], "another name than 001_00010.png"),
        ([["000000_10", "000000_11"], ["000001_10", "000001_11"]], "another name than 000000_11.png"),
        ([[f"{n:06d}_cam{c}" for n in range(4)] for c in (2, 3)], "another name than 000003_cam2.png"),
        ([[f"0001TP_{n:06d}" for n in (6690, 6720, 6750)], ["Seq05VD_f00030", "Seq05VD_f00060"]], "another name"),
        # Each camera by its own step.
        ([[f"a_{n}" for n in range(9)], [f"b_{n}" for n in range(0, 90, 10)]], "another name than a_8.png"),
        ([["1612345678901", "1612345678934", "1612345678967"], ["1612345684000", "1612345684033"]], "a step of 5033"),
        ([["8", "9", "10"], ["cover"]], "another name than 10.png"),
        ([["1"], ["01", "2"]], "the same number as 1.png"),
    ],
)
def test_names_of_several_videos(videos, why):
    assert split([name for names in videos for name in names]) == videos
    found = split_into_videos([Path(f"{name}.png") for names in videos for name in names])
    assert found[0].why == "" and why in found[1].why


@pytest.mark.parametrize(
    "names",
    [
        ["bridge", "crossing", "street"],
        ["b1c9c847-3bda4659", "b1c66a42-6f7d68ca", "b1c81faa-3df17267"],
        [f"hamburg_{n:06d}_000019_leftImg8bit" for n in range(3)],
    ],
)
def test_names_that_tell_of_no_neighbours(names):
    assert split(names) == [[name] for name in names]
