"""A row's log: each line once, whatever happened to the file."""

import errno
import json
import os

import pytest

from stpl_jax.run_log import RunLog, read_log


def open_log(folder, start, steps=4):
    return RunLog(folder, "row", steps, start, 1, 1, progress=lambda line: None)


def write(folder, start, steps=4, validated=True):
    log = open_log(folder, start, steps)
    for step in range(start + 1, steps + 1):
        log.step(step, {"loss/network": float(step)})
    if validated:
        log.write(steps, {"validation/miou": 50.0})
    log.close()


def lines(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


WHOLE = [{"step": s, "loss/network": float(s)} for s in (1, 2, 3, 4)] + [{"step": 4, "validation/miou": 50.0}]


@pytest.mark.parametrize("resumed_at", [0, 2, 4])
def test_a_run_that_goes_on_writes_each_line_once(tmp_path, resumed_at):
    write(tmp_path, 0)
    write(tmp_path, resumed_at)
    assert lines(tmp_path) == WHOLE


def test_more_steps_keep_the_score_of_the_shorter_run(tmp_path):
    write(tmp_path, 0)
    write(tmp_path, 4, 5)
    assert lines(tmp_path) == [*WHOLE, {"step": 5, "loss/network": 5.0}, {"step": 5, "validation/miou": 50.0}]


def test_stray_bytes_cut_lines_and_other_json_are_left_out(tmp_path):
    path = tmp_path / "metrics.jsonl"
    good = b'{"step": 1, "loss/network": 1.0}\n{"step": 2, "loss/network": 2.0}\n'
    path.write_bytes(b"\xff\xfe\x00\n[1]\n5\n{}\n" + b'{"step": "x"}\n' + good + b'{"step": 3, "lo')
    entries, damaged = read_log(path)
    assert [entry["step"] for entry in entries] == [1, 2] and damaged == 6
    write(tmp_path, 2)
    assert lines(tmp_path) == WHOLE
    assert read_log(tmp_path / "none.jsonl") == ([], 0)


def test_a_full_disk_is_named(tmp_path):
    log = open_log(tmp_path, 0)

    class Full:
        def write(self, text):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    log.file = Full()
    with pytest.raises(OSError, match="No space left on device: .*metrics.jsonl"):
        log.write(1, {"loss/network": 1.0})
