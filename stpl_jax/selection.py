"""Which row of a run to apply, chosen without labels: `--mode=select`.

    q(x) = mean of p_r(x) and of p_r(mirrored x), mirrored back, over the rows r with the source model's parameters
    A_r  = share of pixels with argmax p_r = argmax q

Rows that train nothing, the source model and blends of its statistics with the target's, err in different places, and
their mean is better than most of them. The row that agrees with it most is chosen. A row that was trained may leave it
for the better or the worse, and nobody can tell without labels; far from it is more often worse. Confidence, entropy or
agreement under augmentation do not do: training makes any model sure of itself and steady. Nor does a vote of all rows:
those that were adapted alike outvote the rest. (Ensemble agreement: Hu et al., "Towards Stable Model Selection in
Unsupervised Domain Adaptation", 2023.)
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from input_pipeline.clips import read_clip
from input_pipeline.errors import UserError
from stpl_jax.checkpoint_places import SOURCE
from stpl_jax.evaluate import segment_clips
from stpl_jax.ops.mirror import mirror, mirror_flow

# Clips that are looked at, spread evenly over the set.
MOST_CLIPS = 40


@dataclasses.dataclass(frozen=True)
class Selection:
    """What was chosen, and why.

    Attributes:
      chosen: name of a row.
      agreement: row -> A, percent.
      reference: rows whose mean prediction A is taken with.
      clips: how many were looked at.
    """

    chosen: str
    agreement: dict[str, float]
    reference: tuple[str, ...]
    clips: int

    def as_json(self):
        """Returns the fields as JSON-able values."""
        return dataclasses.asdict(self)

    def lines(self):
        """Returns lines of text for a person, the chosen row first."""
        ranked = sorted(self.agreement, key=lambda row: (row != self.chosen, -self.agreement[row]))
        of = f"of the pixels of {self.clips} clips"
        return [
            f"{row}  agrees with the mean of {', '.join(self.reference)} on {self.agreement[row]:.2f}% {of}"
            + ("  <- chosen" if row == self.chosen else "")
            for row in ranked
        ]


def select(models, source):
    """Chooses among networks by what they predict on clips without labels.

    Args:
      models: row -> `predict.Model`, all of the same classes; `source_only` among them.
      source: `ClipSource`, with x_t, x_{t-1} and the flow between them.

    Returns:
      A `Selection`. Of rows that agree alike the first is chosen.

    Raises:
      UserError: there is no row `source_only`.
    """
    if SOURCE not in models:
        raise UserError(f"Rows are compared with {SOURCE}, and there is none among {', '.join(models)}: add it.")
    reference = tuple(row for row in models if _same(models[row], models[SOURCE]))
    total = len(source)
    clips = np.unique(np.linspace(0, total - 1, min(MOST_CLIPS, total)).round().astype(int)).tolist()
    agreeing = dict.fromkeys(models, 0.0)
    for i in clips:
        clip = read_clip(source, i, (0, 1), ((0, 1),), label=False)
        views = {
            row: _views(model.segmenter, model.variables, clip["frames"][None], clip["flow"][None], model.flow_scale)
            for row, model in models.items()
        }
        labels = sum(sum(views[row]) for row in reference).argmax(-1)
        for row, (direct, _) in views.items():
            agreeing[row] += 100 * float((direct.argmax(-1) == labels).mean()) / len(clips)
    return Selection(max(agreeing, key=agreeing.get), agreeing, reference, len(clips))


def _same(model, other):
    """Whether two models have the same parameters, whatever their statistics."""
    a, b = model.variables["params"], other.variables["params"]
    return jax.tree.structure(a) == jax.tree.structure(b) and jax.tree.all(jax.tree.map(np.array_equal, a, b))


@functools.partial(jax.jit, static_argnames=("segmenter", "flow_scale"))
def _views(segmenter, variables, frames, flow, flow_scale):
    """Class probabilities `[1, h, w, K]` of a clip and, mirrored back, of its mirror image."""

    def probabilities(frames, flow):
        scores = segment_clips(segmenter, variables, frames, flow, flow_scale)[0]
        return jax.nn.softmax(scores.astype(jnp.result_type(float)), -1)

    return probabilities(frames, flow), mirror(probabilities(mirror(frames), mirror_flow(flow)))
