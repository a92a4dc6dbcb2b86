"""What SIGTERM and Ctrl-C do: a training loop ends after its step and saves, all else ends at once with one line."""

import signal
import threading

_NAMES = {signal.SIGTERM: "SIGTERM", signal.SIGINT: "Ctrl-C"}
_KEPT = "What was finished before is kept; the same command goes on from there."


class Stopped(SystemExit):
    """The process was told to end; `code` is 128 and the signal's number, as shells report it.

    Attributes:
      message: what was stopped, and what is kept.
    """

    def __init__(self, number, message):
        super().__init__(128 + number)
        self.message = message


class _Handlers:
    """Handles both signals while it is entered, as before afterwards. Only a process's main thread gets signals.

    Attributes:
      seen: number of the signal that has come, or None.
    """

    def __init__(self):
        self.seen, self._before = None, {}

    def __enter__(self):
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._handle) for number in _NAMES}
        return self

    def __exit__(self, *error):
        for number, handler in self._before.items():
            signal.signal(number, handler)


class StopAtOnce(_Handlers):
    """Raises `Stopped` where the program is when a signal comes: for work that is written whole or not at all."""

    def _handle(self, number, frame):
        del frame
        self.seen = number
        self.check()

    def check(self):
        """Raises `Stopped` where a signal has come: a library may have swallowed what was raised at that moment."""
        if self.seen:
            raise Stopped(self.seen, f"stopped by {_NAMES[self.seen]}. {_KEPT}")


class StopAfterStep(_Handlers):
    """Notes a signal: the loop that asks `seen` ends once its state is saved. A second Ctrl-C does not wait."""

    def _handle(self, number, frame):
        del frame
        if self.seen and number == signal.SIGINT:
            raise Stopped(number, f"stopped by {_NAMES[number]}, twice, before the state was saved. {_KEPT}")
        self.seen = number

    def stopped(self, what):
        """Returns the exception that ends the loop; `what` is the beginning of its line: which loop, at which step."""
        number = self.seen or signal.SIGTERM  # where another process was told, and this one not
        return Stopped(number, f"{what} by {_NAMES[number]}; the same command goes on from there")

    def __exit__(self, kind, *error):
        super().__exit__(kind, *error)
        # One that came after the loop had asked for the last time is the surrounding program's.
        if self.seen and kind is None:
            signal.raise_signal(self.seen)
