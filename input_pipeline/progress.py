"""Lines that say how far a long piece of work is."""

import time


class Progress:
    """Reports done/total, items per second and time left, at most every few seconds.

    Args:
      report: called with each line.
      what: beginning of the line.
      total: number of items.
      every_s: seconds between two lines.
    """

    def __init__(self, report, what, total, every_s=5.0):
        self._report, self._what, self._total, self._every_s = (report, what, total, every_s)
        self._done, self._start = 0, time.monotonic()
        self._last = self._start

    def step(self):
        """Counts one item as done."""
        self._done += 1
        now = time.monotonic()
        if now - self._last < self._every_s and self._done < self._total:
            return
        self._last = now
        rate = self._done / max(now - self._start, 1e-9)
        left = (self._total - self._done) / rate
        self._report(f"{self._what}: {self._done}/{self._total}, {rate:.1f}/s, {left:.0f} s left")
