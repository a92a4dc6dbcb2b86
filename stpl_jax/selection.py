"""Which row of a run to apply, chosen without labels: `--mode=select`.

    q(x) = mean of p_r(x) and of p_r(mirrored x), mirrored back, over the rows r with the source model's parameters,
           with weights proportional to exp(-C_r / TEMPERATURE); C as `prior_choice` has it
    A_r  = share of pixels with argmax p_r = argmax q

Rows that train nothing, the source model and blends of its statistics with the target's, err in different places, and
the mean of the better ones is better than most of them. The row that agrees with it most is chosen. A row that was
trained may leave it for the better or the worse, and nobody can tell without labels; far from it is more often worse.
C alone, confidence, or agreement under augmentation do not do for such rows: training makes any model sure of itself
and steady. Nor does a vote of all rows: those that were adapted alike outvote the rest. (Agreement with an ensemble:
Hu et al., "Towards Stable Model Selection in Unsupervised Domain Adaptation", 2023.)
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from input_pipeline.clips import read_clip
from input_pipeline.errors import UserError
from input_pipeline.progress import Progress
from stpl_jax.checkpoint_places import SOURCE
from stpl_jax.evaluate import segment_clips
from stpl_jax.ops.mirror import mirror, mirror_flow
from stpl_jax.prior_choice import costs, measure_views

# Clips that are looked at, spread evenly over the set.
MOST_CLIPS = 40
# Nats of C that make e times the weight: rows that are much worse than the best do not count.
TEMPERATURE = 0.02


@dataclasses.dataclass(frozen=True)
class Selection:
    """What was chosen, and why.

    Attributes:
      chosen: name of a row.
      agreement: row -> A, percent.
      reference: row -> its weight in the mean prediction that A is taken with.
      cost: row -> C, of the same rows.
      clips: how many were looked at.
    """

    chosen: str
    agreement: dict[str, float]
    reference: dict[str, float]
    cost: dict[str, float]
    clips: int

    def as_json(self):
        """Returns the fields as JSON-able values."""
        return dataclasses.asdict(self)

    def lines(self):
        """Returns lines of text for a person, the chosen row first."""
        ranked = sorted(self.agreement, key=lambda row: (row != self.chosen, -self.agreement[row]))
        weights = ", ".join(f"{row} {weight:.2f} (C {self.cost[row]:.3f})" for row, weight in self.reference.items())
        agreement = [
            f"{row}  agrees on {self.agreement[row]:.2f}%{'  <- chosen' if row == self.chosen else ''}"
            for row in ranked
        ]
        return [f"compared with the mean of {weights} on the pixels of {self.clips} clips", *agreement]


def select(models, source, progress=print):
    """Chooses among networks by what they predict on clips without labels.

    Args:
      models: row -> `predict.Model`, all of the same classes; `source_only` among them.
      source: `ClipSource`, with x_t, x_{t-1} and the flow between them.
      progress: called with lines of text now and then.

    Returns:
      A `Selection`. Of rows that agree alike the first is chosen.

    Raises:
      UserError: `source_only` has no model.
    """
    if SOURCE not in models:
        raise UserError(
            f"Rows are compared with {SOURCE}, which has no model; there are {', '.join(models)}. Train it or name "
            "the model that they were adapted from: --config.init_from=CHECKPOINT."
        )
    untrained = [row for row in models if _same(models[row], models[SOURCE])]
    total = len(source)
    clips = np.unique(np.linspace(0, total - 1, min(MOST_CLIPS, total)).round().astype(int)).tolist()
    told = Progress(progress, "select: clips", 2 * len(clips))
    measures = [
        [np.stack(each) for each in zip(*(measure_views(*pair) for pair in views.values()), strict=True)]
        for views in _over(clips, source, {row: models[row] for row in untrained}, told)
    ]
    cost = costs(measures)
    weights = np.exp((cost.min() - cost) / TEMPERATURE)
    weights /= weights.sum()
    agreeing = dict.fromkeys(models, 0.0)
    for views in _over(clips, source, models, told):
        labels = sum(w * sum(map(np.exp, views[row])) for row, w in zip(untrained, weights, strict=True)).argmax(-1)
        for row, (direct, _) in views.items():
            agreeing[row] += 100 * float((direct.argmax(-1) == labels).mean()) / len(clips)
    each = (dict(zip(untrained, values.tolist(), strict=True)) for values in (weights, cost))
    return Selection(max(agreeing, key=agreeing.get), agreeing, *each, len(clips))


def _over(clips, source, models, told):
    """Yields of each clip what `_views` says of it: row -> pair of arrays."""
    for i in clips:
        clip = read_clip(source, i, (0, 1), ((0, 1),), label=False)
        frames, flow = clip["frames"][None], clip["flow"][None]
        yield {row: _views(m.segmenter, m.variables, frames, flow, m.flow_scale) for row, m in models.items()}
        told.step()


def _same(model, other):
    """Whether two models have the same parameters, whatever their statistics."""
    a, b = model.variables["params"], other.variables["params"]
    return jax.tree.structure(a) == jax.tree.structure(b) and jax.tree.all(jax.tree.map(np.array_equal, a, b))


@functools.partial(jax.jit, static_argnames=("segmenter", "flow_scale"))
def _views(segmenter, variables, frames, flow, flow_scale):
    """Log probabilities `[1, h, w, K]` of a clip and, mirrored back, of its mirror image."""

    def log_probabilities(frames, flow):
        scores = segment_clips(segmenter, variables, frames, flow, flow_scale)[0]
        return jax.nn.log_softmax(scores.astype(jnp.result_type(float)), -1)

    return log_probabilities(frames, flow), mirror(log_probabilities(mirror(frames), mirror_flow(flow)))
