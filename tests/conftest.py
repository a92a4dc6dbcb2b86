"""What all tests share: eight CPU devices, strict arithmetic, fast compilation, and a tiny network."""

import os
import shutil
import tempfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import base
from stpl_jax.models import make_segmenter

# Most programs here run once or twice: nearly all of their time would be the compiler's. So they are compiled without
# most optimisations and by the older emitters, in half the time or less; and those that several tests or processes
# compile are compiled once: the folder is new for each call of pytest, and its workers share it. All by the
# environment, so that processes which tests start have the same. `optimised` undoes the first.
_MAKES_CACHE = "PYTEST_XDIST_WORKER" not in os.environ
if _MAKES_CACHE:
    os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="stpl_jax_tests_")
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_cpu_use_fusion_emitters=false".strip()
os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.3"
jax.config.update("jax_disable_most_optimizations", True)
jax.config.update("jax_compilation_cache_dir", os.environ["JAX_COMPILATION_CACHE_DIR"])
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.3)

# Before the first use of a device, which every import above leaves alone.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
jax.config.update("jax_platforms", os.environ["JAX_PLATFORMS"])
jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")

NUM_CLASSES = 5
FRAME_SIZE = (32, 64)  # features are 8×16


# Files that take longest, the longest first: a worker that began one of them last would work on alone.
LONGEST = ("test_multihost.py", "test_train.py", "test_gradients.py", "test_main.py", "test_flownet2.py")
LONGEST += ("test_benchmark_step.py", "test_parity_step.py", "test_rda.py")


def pytest_collection_modifyitems(items):
    """Puts the longest files first; each file goes to one worker as a whole, in this order."""
    items.sort(key=lambda item: LONGEST.index(item.path.name) if item.path.name in LONGEST else len(LONGEST))


def pytest_unconfigure():
    """Removes the compiled programs; workers have ended by now."""
    if _MAKES_CACHE:
        shutil.rmtree(os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)


@pytest.fixture(scope="module")
def optimised():
    """Compiles with all optimisations, for tests of what the compiler makes of a program."""
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", True)


@pytest.fixture
def x64():
    """Runs a test in float64."""
    with jax.enable_x64(True):
        yield


def make_tiny_config():
    """The paper's settings on a network of four blocks with sixteen channels."""
    config = base.get_config()
    config.model.classifier_dilations = (1, 2)
    config.model.backbone.update(
        {
            "blocks": (1, 1, 1, 1),
            "widths": (4, 4, 4, 4),
            "stem_width": 4,
            "stem_kernel": 3,
            "stem_pool": False,
            "remat": "none",
        }
    )
    config.methods.stpl.projection.update({"hidden": 12, "dim": 6})
    config.optim.learning_rate = 0.01
    config.optim.steps = config.optim.decay_steps = 10
    return config


@pytest.fixture
def tiny_config():
    """A fresh configuration that a test may change."""
    return make_tiny_config()


@pytest.fixture(scope="module")
def tiny_settings():
    """As `tiny_config`, one for a whole module."""
    return make_tiny_config()


@pytest.fixture(scope="session")
def tiny_segmenter():
    """The network of `tiny_config`."""
    return make_segmenter(make_tiny_config().model, NUM_CLASSES)


def draw_variables(segmenter, seed=3):
    """Variables as numpy, drawn so that nothing has a special value (no scale of 1, no average of 0)."""
    random = np.random.default_rng(seed)

    def draw(path, shape):
        name = path[-1].key
        if name in ("scale", "var"):
            x = random.uniform(0.7, 1.4, shape.shape)
        elif name in ("bias", "mean"):
            x = random.normal(0, 0.1, shape.shape)
        elif path[1].key == "sf_layer":
            x = np.eye(*shape.shape[-2:]) + random.normal(0, 0.1, shape.shape)
        else:
            x = random.normal(0, (1.5 / np.prod(shape.shape[:-1])) ** 0.5, shape.shape)
        return x.astype(shape.dtype)

    shapes = dict(jax.eval_shape(segmenter.initial, jax.random.key(0)))
    return jax.tree_util.tree_map_with_path(draw, shapes)


@pytest.fixture(scope="session")
def tiny_variables(tiny_segmenter):
    """Variables of `tiny_segmenter`, see `draw_variables`."""
    return draw_variables(tiny_segmenter)


@pytest.fixture(scope="session")
def drawn_variables():
    """The function that draws a network's variables."""
    return draw_variables


@pytest.fixture
def small_config(tiny_config):
    """A fresh configuration of a network of two stages with one block each."""
    tiny_config.model.backbone.update({"blocks": (1, 1), "widths": (4, 4), "strides": (2, 1), "dilations": (1, 2)})
    return tiny_config


@pytest.fixture
def small_segmenter(small_config):
    """The network of `small_config`."""
    return make_segmenter(small_config.model, NUM_CLASSES)


@pytest.fixture
def small_variables(small_segmenter, drawn_variables):
    """Variables of `small_segmenter`."""
    return drawn_variables(small_segmenter)


def make_clips(count, seed=0, frames=2, pairs=((0, 1),), label=False, size=FRAME_SIZE, num_classes=NUM_CLASSES):
    """Random clips as the loader gives them, one domain: smooth frames that drift, flow of a few pixels."""
    random = np.random.default_rng(seed)
    height, width = size
    coarse = random.uniform(0, 255, (count, height // 8 + 1, width // 8 + frames, 3))
    smooth = coarse.repeat(8, 1)[:, :height].repeat(8, 2)
    clips = np.stack([smooth[:, :, 3 * t : 3 * t + width] for t in range(frames)], 1)
    clips = np.clip(clips + random.normal(0, 12, clips.shape), 0, 255).astype(np.uint8)
    batch = {
        "frames": clips,
        "flow": random.integers(-60, 60, (count, len(pairs), height, width, 2)).astype(np.int16),
        "index": np.arange(count, dtype=np.int32),
    }
    if label:
        batch["label"] = random.choice([*range(num_classes), 255], (count, height, width)).astype(np.uint8)
    return batch


@pytest.fixture(scope="session")
def clips():
    """The function that makes random clips."""
    return make_clips


@pytest.fixture(scope="session")
def to_float64():
    """A function that turns every floating point leaf of a tree into float64 (within the `x64` fixture)."""
    return lambda tree: jax.tree.map(
        lambda x: jnp.asarray(x, jnp.float64) if np.issubdtype(x.dtype, np.floating) else jnp.asarray(x), tree
    )
