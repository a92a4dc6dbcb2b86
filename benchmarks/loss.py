"""Times the contrastive loss, forward and backward, beside the plain form that holds all N×M similarities.

    python -m benchmarks.loss
    python -m benchmarks.loss --topology=v5e:2x2

Both take turns in one process: medians of seconds, and the median over rounds of their ratio. Temporaries are those of
the compiled program. Differences are the largest of any element, relative to the largest element. With a topology, the
loss of 131,072 pixels is also compiled for one chip of it, which needs libtpu and no TPU. Writes
benchmarks/results/loss.json.
"""

import dataclasses
import statistics
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import measure, performance
from benchmarks.tpu_topology import topology_devices
from stpl_jax.losses.contrastive import pixel_contrast
from stpl_jax.losses.reduction import masked_mean
from stpl_jax.losses.streamed import BLOCK

TEMPERATURE = 0.07
NUM_CLASSES = 15
TOPOLOGY_PIXELS = 131_072  # a quarter of the pixels of a frame of 512×1024


@dataclasses.dataclass(frozen=True)
class Case:
    """Sizes: queries and keys of each clip, their length, clips side by side, rounds."""

    pixels: int
    dim: int
    clips: int
    rounds: int


CASES = (
    Case(256, 64, clips=2, rounds=200),  # the embedded benchmark's
    Case(5869, 128, clips=1, rounds=9),  # the paper's
    Case(16384, 128, clips=1, rounds=3),
)


def plain_contrast(queries, keys, query_labels, key_labels, query_mask, key_mask, num_classes, temperature):
    """`pixel_contrast` with all similarities at once; same arguments and results. Masked pixels must be finite."""
    members = jax.nn.one_hot(key_labels, num_classes, dtype=keys.dtype) * key_mask[:, None].astype(keys.dtype)  # [M, K]
    sizes = members.sum(0)  # [K]
    means = jnp.einsum("mk,md->kd", members, keys, precision="highest") / jnp.maximum(sizes, 1)[:, None]
    positives = sizes[query_labels]
    valid = query_mask & (positives > 0) & (sizes.sum() > positives)

    negative = (query_labels[:, None] != key_labels[None, :]) & key_mask[None, :]  # [N, M]
    similarity = jnp.einsum("nd,md->nm", queries, keys, precision="highest") / temperature
    # A query without negatives gets one row of zeros: finite, masked below, and without gradient.
    allowed = negative | ~valid[:, None]
    log_negatives = jax.nn.logsumexp(jnp.where(valid[:, None], similarity, 0.0), axis=-1, where=allowed)
    attraction = jnp.sum(queries * means[query_labels], -1) / temperature
    return jnp.where(valid, log_negatives - attraction, 0.0), valid


def made_up(case, seed=0):
    """Draws what the loss takes, `[clips, pixels, ...]`: unit vectors, keys near their queries, 5% masked."""
    random = np.random.default_rng(seed)

    def unit(x):
        return (x / np.linalg.norm(x, axis=-1, keepdims=True)).astype(np.float32)

    shape = (case.clips, case.pixels)
    queries = random.normal(size=(*shape, case.dim))
    keys = queries + random.normal(size=queries.shape)
    labels = random.integers(0, NUM_CLASSES, shape).astype(np.int32)
    masks = random.random((2, *shape)) < 0.95
    return unit(queries), unit(keys), labels, labels, *masks


def forward_and_backward(contrast):
    """Makes a function of a batch that returns losses `[clips, pixels]` and the gradients by queries and keys."""

    def total(*arrays):
        loss, valid = jax.vmap(lambda *clip: contrast(*clip, NUM_CLASSES, TEMPERATURE))(*arrays)
        return jax.vmap(masked_mean)(loss, valid).mean(), loss

    def run(*arrays):
        (_, loss), gradients = jax.value_and_grad(total, (0, 1), has_aux=True)(*arrays)
        return loss, gradients

    return run


def largest_difference(found, expected):
    """Largest difference of any element, relative to the largest expected element."""
    found, expected = (np.asarray(x, np.float64) for x in (found, expected))
    return float(np.abs(found - expected).max() / np.abs(expected).max())


def compare(case, block):
    """Times both forms in turns and compares what they return; a row of the table."""
    arrays = jax.device_put(made_up(case))
    forms = {"plain": plain_contrast, "streamed": partial(pixel_contrast, block=block)}
    programs = {name: jax.jit(forward_and_backward(form)).lower(*arrays).compile() for name, form in forms.items()}
    results = {name: program(*arrays) for name, program in programs.items()}
    losses, gradients = zip(results["streamed"], results["plain"], strict=True)
    differences = [largest_difference(*pair) for pair in (losses, *zip(*gradients, strict=True))]
    del results, losses, gradients
    seconds = measure.alternate(
        {name: lambda p=program: jax.block_until_ready(p(*arrays)) for name, program in programs.items()}, case.rounds
    )
    return {
        **dataclasses.asdict(case),
        "block": block,
        "seconds": {name: statistics.median(values) for name, values in seconds.items()},
        "time_ratio": statistics.median(s / p for s, p in zip(seconds["streamed"], seconds["plain"], strict=True)),
        "temporaries": {name: p.memory_analysis().temp_size_in_bytes for name, p in programs.items()},
        "difference_of_values": differences[0],
        "difference_of_gradients": max(differences[1:]),
    }


def compile_for(topology, pixels, dim, block):
    """Compiles forward and backward for one chip of a TPU topology, with no TPU attached.

    Returns:
      The chip, sizes, and bytes of temporaries and arguments.
    """
    chip = topology_devices(topology)[0]
    sharding = jax.sharding.SingleDeviceSharding(chip)
    types = (jnp.float32, jnp.float32, jnp.int32, jnp.int32, jnp.bool_, jnp.bool_)
    shapes = [
        jax.ShapeDtypeStruct((1, pixels, dim)[: 3 if t == jnp.float32 else 2], t, sharding=sharding) for t in types
    ]
    program = jax.jit(forward_and_backward(partial(pixel_contrast, block=block))).lower(*shapes).compile()
    memory = program.memory_analysis()
    return {
        "topology": topology,
        "chip": chip.device_kind,
        "pixels": pixels,
        "dim": dim,
        "block": block,
        "temporaries": memory.temp_size_in_bytes,
        "arguments": memory.argument_size_in_bytes,
    }


def main():
    """Compares, compiles where asked to, prints and writes."""
    parser = measure.parser(__doc__)
    parser.add_argument("--block", type=int, default=BLOCK, help="queries and keys compared at a time")
    parser.add_argument("--topology", help="also compile for a chip of this TPU topology, for example v5e:2x2")
    arguments = parser.parse_args()
    content = {"machine": measure.machine(), "temperature": TEMPERATURE, "num_classes": NUM_CLASSES}
    if arguments.topology:  # first: it says at once if libtpu is missing
        content["compiled"] = compile_for(arguments.topology, TOPOLOGY_PIXELS, 128, arguments.block)
    content["forms"] = [compare(case, arguments.block) for case in CASES]
    print(performance.loss(content))
    print(f"\n{measure.write('loss', content, arguments.out)}")


if __name__ == "__main__":
    main()
