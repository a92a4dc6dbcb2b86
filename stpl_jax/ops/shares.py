"""Shares of counts."""

from fractions import Fraction


def share_of(count, proportion):
    """Rounds a share of a count down, exactly: 0.7 of 10 is 7, not 6 (0.7 is a fraction here, not a binary float).

    Args:
      count: whole number, or an integer array.
      proportion: share in 0..1, such as the paper's k = 0.7.

    Returns:
      ⌊proportion · count⌋, of the same kind as `count`.

    Raises:
      ValueError: the proportion is not in 0..1.
    """
    if not 0 <= proportion <= 1:
        raise ValueError(f"topk.proportion is a share of the pixels, in 0..1; found {proportion}.")
    # The denominator is bounded so that counts of pixels times the numerator stay within int32.
    fraction = Fraction(str(proportion)).limit_denominator(10_000)
    return count * fraction.numerator // fraction.denominator
