"""Imports go down only, and every configuration file stays free of the code that it configures."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# What every part may ask for: errors, files, and where things lie in a run's folder.
LOWEST = ("input_pipeline.errors", "input_pipeline.files", "input_pipeline.run_folder")
CHECKPOINT_PARTS = tuple(f"stpl_jax.checkpoint_{part}" for part in ("digests", "meta", "places", "reading"))
OURS = ("benchmarks", "configs", "experiments", "input_pipeline", "stpl_jax", "tests")


def modules(folder):
    files = sorted((ROOT / folder).rglob("*.py")) if (ROOT / folder).is_dir() else [ROOT / folder]
    assert files, f"{folder} has no Python files"
    return files


def imported(file):
    """Full names of all that a file imports, wherever in the file; `from a import b` counts as `a` and `a.b`."""
    names = set()
    for node in ast.walk(ast.parse(file.read_text(), str(file))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative import"
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def within(name, package):
    return name == package or name.startswith(package + ".")


def breaches(folder, allowed=None, forbidden=()):
    """Imports of our packages that are not allowed (None: all are), and of anything forbidden."""
    found = []
    for file in modules(folder):
        for name in sorted(imported(file)):
            ours = within(name, "stpl_jax") or any(within(name, package) for package in OURS)
            # `from stpl_jax import optim` names the package and the module: the latter is what counts.
            stray = allowed is not None and ours and "." in name and not any(within(name, a) for a in allowed)
            if stray or any(within(name, f) for f in forbidden):
                found.append(f"{file.relative_to(ROOT)}: {name}")
    return found


@pytest.mark.parametrize(
    "folder, allowed",
    [
        ("input_pipeline", ("input_pipeline",)),
        ("stpl_jax/ops", ("stpl_jax.ops",)),
        ("stpl_jax/losses", ("stpl_jax.losses", "stpl_jax.ops")),
        ("stpl_jax/models", ("stpl_jax.models", "stpl_jax.ops", *LOWEST)),
        ("stpl_jax/metrics", ("stpl_jax.metrics", "stpl_jax.ops")),
        (
            "stpl_jax/methods",
            (
                "input_pipeline.errors",
                "input_pipeline.needs",
                "stpl_jax.forward",
                "stpl_jax.methods",
                "stpl_jax.models",
                "stpl_jax.losses",
                "stpl_jax.ops",
                "stpl_jax.optim",
                "stpl_jax.parallel.AXIS",
                "stpl_jax.parallel",
                "stpl_jax.train_state",
            ),
        ),
        ("stpl_jax/parallel.py", ()),
        ("stpl_jax/optim.py", LOWEST),
        ("stpl_jax/forward.py", ("input_pipeline.flow_files", "stpl_jax.models", "stpl_jax.ops")),
        ("stpl_jax/train_state.py", ("stpl_jax.parallel",)),
        ("stpl_jax/checkpoint_digests.py", LOWEST),
        ("stpl_jax/checkpoint_places.py", LOWEST),
        ("stpl_jax/checkpoint_meta.py", ("stpl_jax.checkpoint_places", *LOWEST)),
        ("stpl_jax/checkpoint_reading.py", (*CHECKPOINT_PARTS[:3], *LOWEST)),
        ("stpl_jax/checkpoint.py", ("stpl_jax.train_state", *CHECKPOINT_PARTS, *LOWEST)),
        ("stpl_jax/model_choice.py", ("stpl_jax.checkpoint", "stpl_jax.checkpoint_places", "stpl_jax.rows", *LOWEST)),
        (
            "stpl_jax/convert",
            (
                "stpl_jax.convert",
                "stpl_jax.checkpoint",
                "stpl_jax.models",
                "configs",
                "input_pipeline.labels",
                "input_pipeline.whole_folder",
                *LOWEST,
            ),
        ),
        ("stpl_jax/report/charts.py", ("stpl_jax.report.markdown",)),
        ("stpl_jax/report/tables.py", ()),
        (
            "stpl_jax/report",
            (
                "input_pipeline",
                "stpl_jax.report",
                "stpl_jax.checkpoint",
                "stpl_jax.checkpoint_digests",
                "stpl_jax.checkpoint_reading",
                "input_pipeline.frames",
                "stpl_jax.metrics",
                "stpl_jax.model_choice",
                "stpl_jax.models",
                "stpl_jax.predict",
                "stpl_jax.records",
                "stpl_jax.rows",
                "stpl_jax.run_log",
                "stpl_jax.unlabelled",
                "stpl_jax.validation",
                "stpl_jax.video",
            ),
        ),
        ("configs", ("configs", "input_pipeline")),
    ],
)
def test_imports_go_down_only(folder, allowed):
    assert not breaches(folder, allowed)


def test_the_input_pipeline_runs_without_jax():
    assert not breaches("input_pipeline", forbidden=("jax", "jaxlib", "flax", "optax", "orbax", "tensorflow"))


def test_torch_is_optional_and_the_converters_stand_alone():
    for file in [*modules("stpl_jax"), *modules("input_pipeline"), *modules("configs"), ROOT / "main.py"]:
        names = imported(file)
        reads_torch = any(within(name, package) for name in names for package in ("torch", "torchvision"))
        assert reads_torch == (file == ROOT / "stpl_jax" / "convert" / "torch_files.py"), file
        converter = file.parent == ROOT / "stpl_jax" / "convert"
        assert converter or not any(within(name, "stpl_jax.convert") for name in names), file


@pytest.mark.parametrize("folder", ["input_pipeline", "stpl_jax", "configs", "main.py"])
def test_nobody_imports_benchmarks_or_tests(folder):
    assert not breaches(folder, forbidden=("benchmarks", "experiments", "tests", "conftest", "pytest"))


def test_pmap_is_said_in_one_place():
    for file in modules("stpl_jax"):
        tree = ast.parse(file.read_text())
        calls = [n for n in ast.walk(tree) if isinstance(n, ast.Attribute) and n.attr == "pmap" and n.value.id == "jax"]
        assert bool(calls) == (file.name == "parallel.py"), file


def test_the_check_has_teeth(tmp_path, monkeypatch):
    monkeypatch.setitem(breaches.__globals__, "ROOT", tmp_path)
    folder = tmp_path / "stpl_jax" / "ops"
    folder.mkdir(parents=True)
    (folder / "bad.py").write_text("def f():\n    from stpl_jax.models import accel\n    import jax.numpy as jnp\n")
    assert breaches("stpl_jax/ops", ("stpl_jax.ops",)) == [
        "stpl_jax/ops/bad.py: stpl_jax.models",
        "stpl_jax/ops/bad.py: stpl_jax.models.accel",
    ]
    assert breaches("stpl_jax/ops", forbidden=("jax",)) == ["stpl_jax/ops/bad.py: jax.numpy"]
