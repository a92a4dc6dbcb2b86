"""Two processes of four devices do what one process of eight does; they stop together, and fail together."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from tiny_run import tiny_run_config

from input_pipeline.labels import CLASSES
from stpl_jax import checkpoint, modes, processes
from stpl_jax.models.network import initial_variables
from stpl_jax.train import build_segmenter

ROOT = Path(__file__).parent.parent
STEPS = 5


def run_config():
    """Two clips on each device: which clips share a device, and so batch statistics, must not depend on processes."""
    config = tiny_run_config(STEPS)
    config.clips_per_device = 2
    config.checkpoint.update(dict(every=1, keep=1000))
    config.evaluate.every = STEPS
    # A tenth: the order of sums differs by rounding, and steps far apart in a random network make more of it than 1e-5.
    config.optim.learning_rate = 3e-5
    config.cpu_xla_flags = ""  # as in the process of the tests
    return config


@pytest.fixture(scope="module")
def source_model(tmp_path_factory):
    """The random network that all runs adapt."""
    folder, config = tmp_path_factory.mktemp("source"), run_config()
    variables = initial_variables(build_segmenter(config), jax.random.key(0))
    checkpoint.save_model(folder, variables, checkpoint.CheckpointMeta(classes=CLASSES[config.data.classes]))
    return folder


@pytest.fixture(scope="module")
def one(tmp_path_factory, source_model):
    """A run of five steps in this process, on its eight devices."""
    workdir = tmp_path_factory.mktemp("one")
    adapt(workdir, source_model)
    return workdir


@pytest.fixture(scope="module")
def two(tmp_path_factory, source_model):
    """A run in two processes, started by flags, that SIGTERM to one of them ended; with the processes' outputs."""
    workdir = tmp_path_factory.mktemp("two")
    started = start_two(workdir, source_model, by_flags, "--config.steps=100000")
    metrics = workdir / "stpl" / "metrics.jsonl"
    deadline = time.monotonic() + 600
    while not (metrics.exists() and metrics.read_text().count("\n") > STEPS + 1):
        ended = [process.poll() for process in started]
        assert ended == [None, None] and time.monotonic() < deadline, [p.communicate()[0] for p in started]
        time.sleep(0.05)
    started[1].send_signal(signal.SIGTERM)
    return workdir, finish(started, 128 + signal.SIGTERM)


def adapt(workdir, source_model):
    assert jax.process_count() == 1 and jax.device_count() == 8
    config = run_config()
    config.init_from = str(source_model)
    modes.adapt(config, workdir, progress=lambda line: None)


def free_port():
    with socket.socket() as sock:
        sock.bind(("localhost", 0))
        return sock.getsockname()[1]


def by_flags(port, index):
    """How docs/multihost.md starts processes by hand: flags, environment."""
    return [f"--coordinator=localhost:{port}", "--processes=2", f"--process_id={index}"], {}


def by_slurm(port, index):
    """How it starts them under Slurm: one flag, and what srun tells each task."""
    told = {
        "SLURM_JOB_ID": "1234",
        "SLURM_STEP_NODELIST": "localhost",
        "SLURM_NTASKS": "2",
        "SLURM_PROCID": str(index),
        "SLURM_LOCALID": str(index),
        "JAX_COORDINATOR_PORT": str(port),  # the one that JAX makes of the job's number may be taken
    }
    return ["--distributed"], told


def start_two(workdir, source_model, way, *flags, second=()):
    """Starts main.py twice; `second` are flags of the second process alone."""
    file = workdir.parent / "multihost_settings.py"
    file.write_text("from tests.test_multihost import run_config as get_config\n")
    common = [sys.executable, "main.py", "--mode=adapt", f"--config={file}", f"--workdir={workdir}"]
    common += [f"--config.init_from={source_model}", "--config.cpu_devices=4", *flags]
    environment = os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}", "JAX_PLATFORMS": "cpu"}
    port, started = free_port(), []
    for index in (0, 1):
        own, told = way(port, index)
        started.append(
            subprocess.Popen(
                [*common, *own, *(second if index else ())],
                cwd=ROOT,
                env=environment | told,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
        )
    return started


def finish(started, code=0):
    outputs = [process.communicate(timeout=600)[0] for process in started]
    assert [process.returncode for process in started] == [code, code], outputs
    return outputs


def begin_at(folder, run, step):
    """Copies a run as it was after a step."""
    shutil.copytree(run, folder, ignore=shutil.ignore_patterns("evaluation.json", "data"))
    for later in (folder / "stpl" / "checkpoints").iterdir():
        if int(later.name) > step:
            shutil.rmtree(later)


def losses(workdir):
    records = [json.loads(line) for line in (workdir / "stpl" / "metrics.jsonl").read_text().splitlines()]
    return {r["step"]: r["loss/network"] for r in records if "loss/network" in r}


def parameters(workdir, step=STEPS):
    """All parameters and running averages of a checkpoint, by name; and its meta."""
    with checkpoint.open_manager(workdir / "stpl" / "checkpoints", keep=1000) as manager:
        stored = manager.restore(step)
    trees = stored["model"], stored["train"]["params"]
    named = {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(trees)}
    return named, stored["meta"]


def assert_same(workdir, reference):
    """Same losses and same state after the last step, within 1e-5."""
    found, expected = losses(workdir), losses(reference)
    assert sorted(expected) == list(range(1, STEPS + 1)) and found.keys() >= expected.keys()
    np.testing.assert_allclose([found[s] for s in sorted(expected)], [expected[s] for s in sorted(expected)], rtol=1e-5)
    (found, found_meta), (expected, expected_meta) = parameters(workdir), parameters(reference)
    assert found.keys() == expected.keys() and len(found) > 50
    for name, x in expected.items():
        np.testing.assert_allclose(found[name], x, rtol=1e-5, atol=1e-5, err_msg=name)
    assert found_meta["positions"] == expected_meta["positions"]


def test_five_steps_are_the_same_in_two_processes_and_in_one(one, two):
    workdir, outputs = two
    assert_same(workdir, one)
    assert "in 2 processes" in outputs[0] and "stpl  step 5/" in outputs[0]
    records = [json.loads(line) for line in (workdir / "stpl" / "metrics.jsonl").read_text().splitlines()]
    scores = {r["step"]: r["validation/miou"] for r in records if "validation/miou" in r}
    expected = json.loads((one / "stpl" / "evaluation.json").read_text())["last"]["miou"]
    assert scores[STEPS] == pytest.approx(expected, abs=0.05)


def test_five_steps_change_more_than_is_tolerated(one):
    first, last = (parameters(one, step)[0] for step in (1, STEPS))
    assert max(np.abs(last[name] - first[name]).max() for name in first) > 1e-3
    assert len(set(losses(one).values())) == STEPS


def test_the_backbone_moves_the_same_way(one, two):
    """Its steps are a hundredth of the head's: held to what four of them change, not to a value of 1e-5."""

    def change(workdir):
        first, last = (parameters(workdir, step)[0] for step in (1, STEPS))
        names = [name for name in first if "backbone" in name and "kernel" in name]
        assert len(names) > 10
        return np.concatenate([(last[name] - first[name]).ravel() for name in names])

    expected = change(one)
    assert np.linalg.norm(expected) > 1e-6
    assert np.linalg.norm(change(two[0]) - expected) < 0.01 * np.linalg.norm(expected)


def test_sigterm_to_one_process_stops_both_at_one_step(two):
    workdir, outputs = two
    saved = max(int(path.name) for path in (workdir / "stpl" / "checkpoints").iterdir())
    assert f"stopped at step {saved} by SIGTERM" in outputs[0]
    assert sorted(losses(workdir)) == list(range(1, saved + 1))
    assert parameters(workdir, saved)[1]["step"] == saved


def test_only_the_first_process_prints_and_writes(two):
    workdir, outputs = two
    ours = [line for line in outputs[1].splitlines() if "[Gloo]" not in line]
    assert not any("step" in line or "clips" in line for line in ours), ours
    assert len(list((workdir / "stpl").glob("events.out.tfevents*"))) == 1


def test_one_process_goes_on_from_a_checkpoint_of_two(one, two, source_model, tmp_path):
    begin_at(tmp_path / "run", two[0], 2)
    adapt(tmp_path / "run", source_model)
    assert_same(tmp_path / "run", one)


def test_two_processes_under_slurm_go_on_from_a_checkpoint_of_one(one, two, source_model, tmp_path):
    begin_at(tmp_path / "run", one, 2)
    finish(start_two(tmp_path / "run", source_model, by_slurm))
    assert_same(tmp_path / "run", one)
    counts = [
        np.array(json.loads((run / "stpl" / "evaluation.json").read_text())["last"]["confusion"])
        for run in (tmp_path / "run", one)
    ]
    assert counts[0].sum() == counts[1].sum() > 0  # every clip once
    assert np.abs(counts[0] - counts[1]).sum() <= 1e-3 * counts[1].sum()


def test_processes_with_other_settings_are_told_apart(source_model, tmp_path):
    started = start_two(tmp_path / "run", source_model, by_flags, second=["--config.seed=8"])
    outputs = finish(started, 1)
    assert all('Process 1 was started with other settings than process 0: "seed": 8' in out for out in outputs)
    assert not any("Traceback" in out for out in outputs)
    assert not (tmp_path / "run" / "stpl").exists()


@pytest.mark.parametrize(
    "arguments, words",
    [
        (dict(count=2), "go together; found coordinator=None, processes=2, process_id=None"),
        (dict(coordinator="host:1", count=2, index=0, detect=True), "give either"),
        (dict(coordinator="host", count=2, index=0), "HOST:PORT.*found coordinator=host,"),
        (dict(coordinator="host:1", count=2, index=2), "process_id < --processes.*process_id=2"),
    ],
)
def test_flags_that_make_no_sense_are_refused(arguments, words):
    with pytest.raises(processes.ProcessError, match=words):
        processes.start(**arguments)


def test_a_single_process_waits_for_nobody():
    assert processes.in_turn(lambda: 1) == processes.from_first(lambda: 1) == processes.all_or_none(lambda: 1) == 1
    assert processes.is_first()
