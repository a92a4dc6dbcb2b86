"""The command line, in processes of its own: one device, a kill, and mistakes."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from stpl_jax import checkpoint

ROOT = Path(__file__).parent.parent

TINY = """
from tests.tiny_run import tiny_run_config


def get_config():
    config = tiny_run_config(steps=12)
    config.cpu_devices = 1
    config.compilation_cache = True
    return config
"""


@pytest.fixture(scope="module")
def command(tmp_path_factory):
    """A function that starts main.py on one CPU device with the tiny configuration."""
    config = tmp_path_factory.mktemp("config") / "tiny.py"
    config.write_text(TINY)
    environment = os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}

    def start(workdir, *flags):
        arguments = [sys.executable, "main.py", f"--config={config}", f"--workdir={workdir}", *flags]
        return subprocess.Popen(
            arguments, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )

    return start


def finish(process, code=0):
    output = process.communicate(timeout=600)[0]
    assert process.returncode == code, output
    return output


def final_arrays(workdir):
    stored = checkpoint.load_model(workdir / "stpl")
    assert stored.path.name == "12"
    return _flat(stored.variables)


def _flat(tree, prefix=""):
    if not isinstance(tree, dict):
        return {prefix: np.asarray(tree)}
    return {k: v for name, sub in tree.items() for k, v in _flat(sub, f"{prefix}/{name}").items()}


def test_killed_run_ends_with_the_same_bits(command, tmp_path):
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    output = finish(command(straight))
    assert "stpl  step 12/12" in output
    assert json.loads((straight / "report.json").read_text())["config"]["cpu_devices"] == 1

    # The same data and source model, so that the kill hits adaptation.
    killed.mkdir()
    for folder in ("world", "data", "source_only", "compilation_cache"):
        (killed / folder).symlink_to(straight / folder)
    process = command(killed)
    metrics = killed / "stpl" / "metrics.jsonl"
    deadline = time.monotonic() + 300
    while not (metrics.exists() and metrics.read_text().count("\n") >= 5):
        assert process.poll() is None and time.monotonic() < deadline, "the run ended before it could be killed"
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (killed / "stpl" / "evaluation.json").exists()
    output = finish(command(killed))
    assert "source_only  is done" in output
    first, second = final_arrays(straight), final_arrays(killed)
    assert first.keys() == second.keys()
    for name, x in first.items():
        np.testing.assert_array_equal(x, second[name], err_msg=name)


def test_mistakes_are_answered_without_a_stack_trace(command, tmp_path):
    output = finish(command(tmp_path, "--mode=adapt"), code=1)
    assert "--mode=pretrain" in output and "Traceback" not in output


def test_mistyped_key_is_an_error(command, tmp_path):
    process = command(tmp_path, "--config.optim.learning_rat=1")
    output = process.communicate(timeout=120)[0]
    assert process.returncode != 0 and "learning_rat" in output
    output = finish(command(tmp_path, "--config.flow.source=dis"), code=1)
    assert output == (
        "--config.flow.source: there is no such setting; it is --config.flow.estimator=dis --config.flow.files=none "
        "now.\n"
    )
