"""What signals do, outside and inside a training loop."""

import contextlib
import signal

import pytest

from stpl_jax.stopping import StopAfterStep, StopAtOnce, Stopped


@pytest.mark.parametrize("number, name", [(signal.SIGTERM, "SIGTERM"), (signal.SIGINT, "Ctrl-C")])
def test_at_once(number, name):
    before = signal.getsignal(number)
    with pytest.raises(Stopped) as stopped, StopAtOnce():
        signal.raise_signal(number)
    assert stopped.value.code == 128 + number
    assert stopped.value.message.startswith(f"stopped by {name}. ") and "kept" in stopped.value.message
    assert signal.getsignal(number) is before


def test_a_signal_that_a_library_swallowed_is_not_lost():
    with StopAtOnce() as stop:
        with contextlib.suppress(BaseException):
            signal.raise_signal(signal.SIGTERM)
        with pytest.raises(Stopped):
            stop.check()


def test_nothing_happens_without_a_signal():
    with StopAtOnce() as stop, StopAfterStep() as after:
        stop.check()
    assert stop.seen is after.seen is None


def test_a_loop_ends_after_its_step():
    with pytest.raises(Stopped) as stopped, StopAtOnce(), StopAfterStep() as stop:
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)
        assert stop.seen == signal.SIGTERM
        raise stop.stopped("row  stopped at step 3")
    assert stopped.value.code == 143 and stopped.value.message.startswith("row  stopped at step 3 by SIGTERM; ")


def test_another_process_was_told():
    assert StopAfterStep().stopped("x").code == 128 + signal.SIGTERM


def test_a_second_ctrl_c_does_not_wait():
    with pytest.raises(Stopped, match="130") as stopped, StopAfterStep():
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
    assert "before the state was saved" in stopped.value.message


def test_a_signal_after_the_loops_last_question_is_the_programs():
    with pytest.raises(Stopped, match="143"), StopAtOnce():
        with StopAfterStep():
            signal.raise_signal(signal.SIGTERM)
        pytest.fail("the program went on")


def test_an_error_in_the_loop_is_not_hidden_by_a_signal():
    with pytest.raises(ZeroDivisionError), StopAtOnce(), StopAfterStep():
        signal.raise_signal(signal.SIGTERM)
        1 / 0  # noqa: B018
