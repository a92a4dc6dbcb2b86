"""What a video file has lost, in words."""

import itertools

from input_pipeline.errors import capped


def lines(losses):
    """Returns lines about all that was lost, damaged or unusual; long lists are cut.

    Args:
      losses: `video_decode.Losses`.
    """
    found = []
    if losses.skipped:
        found.append(f"{_count(losses.skipped)} could not be decoded: {_ranges(losses.skipped)}")
    if losses.damaged:
        found.append(f"{_count(losses.damaged)} may look damaged, kept as shown: {_ranges(losses.damaged)}")
    return found + capped(losses.remarks) + capped([f"{note}; a new video starts there" for note in losses.notes])


def in_short(losses):
    """Returns the same as the end of a sentence, or an empty text where nothing was lost."""
    parts = []
    if losses.skipped:
        parts.append(f"{_count(losses.skipped)} left out, {_ranges(losses.skipped, 3)}")
    if losses.damaged:
        parts.append(f"{_count(losses.damaged)} may look damaged, {_ranges(losses.damaged, 3)}")
    return "; ".join(parts + losses.remarks[:1])


def _count(frames):
    return f"{len(frames)} frame{'s' if len(frames) > 1 else ''}"


def _ranges(frames, most=20):
    """Frames [(number, seconds or None)] as `18-22 (1.80-2.20 s), 40 (4.00 s)`."""
    texts = []
    # In a row of numbers, number and place grow alike.
    for _, row in itertools.groupby(enumerate(frames), key=lambda item: item[1][0] - item[0]):
        numbers, seconds = zip(*(frame for _, frame in row), strict=True)
        known = [f"{second:.2f}" for second in seconds if second is not None]
        text = str(numbers[0]) if len(numbers) == 1 else f"{numbers[0]}-{numbers[-1]}"
        times = f" ({known[0]}{f'-{known[-1]}' if len(known) > 1 else ''} s)" if known else ""
        texts.append(text + times)
    return ", ".join(line.strip() for line in capped(texts, most))
