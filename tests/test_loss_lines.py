from input_pipeline.video_packets import Losses
from stpl_jax import loss_lines


def test_losses_in_words():
    skipped = [(3, 0.3), (4, 0.4), (5, 0.5), (9, 0.9), (20, None), (21, None)]
    losses = Losses(skipped, [(6, 0.6)], ["the file ends early"], ["frame 7 comes late"])
    assert loss_lines.lines(losses) == [
        "6 frames could not be decoded: 3-5 (0.30-0.50 s), 9 (0.90 s), 20-21",
        "1 frame may look damaged, kept as shown: 6 (0.60 s)",
        "the file ends early",
        "frame 7 comes late; a new video starts there",
    ]
    short = "6 frames left out, 3-5 (0.30-0.50 s), 9 (0.90 s), 20-21; 1 frame may look damaged, 6 (0.60 s)"
    assert loss_lines.in_short(losses) == short + "; the file ends early"


def test_long_lists_are_cut():
    losses = Losses([(2 * n, n / 5) for n in range(100)])
    (line,) = loss_lines.lines(losses)
    assert line.startswith("100 frames") and line.endswith("38 (3.80 s), ... and 80 more")
    assert loss_lines.in_short(losses).endswith("4 (0.40 s), ... and 97 more")


def test_nothing_lost():
    assert loss_lines.lines(Losses()) == [] and loss_lines.in_short(Losses()) == ""
