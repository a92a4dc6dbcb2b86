"""The validation set: opened once, scored as often as a run asks for."""

import jax

from input_pipeline.clips import open_clips
from input_pipeline.domains import SCORED_OFFSETS, SCORED_PAIRS, prepare_domain
from input_pipeline.labels import CLASSES, evaluated_classes
from input_pipeline.loader import eval_batches
from stpl_jax import processes
from stpl_jax.evaluate import evaluate, make_eval_step


def open_together(config, workdir, domain, needs=None, progress=print):
    """Opens one domain's clips; the first process generates and prepares what is not there yet, and the others wait.

    Args:
      config, workdir, domain, needs, progress: as `domains.prepare_domain` takes them.

    Returns:
      A `ClipSource`.
    """
    # The others neither read the raw files nor have to see them.
    return open_clips(processes.from_first(lambda: str(prepare_domain(config, workdir, domain, needs, progress))))


class Validation:
    """Scores states on the validation set; opened once, compiled once.

    Args:
      config: the row's configuration.
      workdir: the run's folder.
      segmenter: an `Accel`.
      progress: called with lines of text.

    Attributes:
      source: the `ClipSource`, None before the first score.
      last: the newest scores, None before the first.
    """

    def __init__(self, config, workdir, segmenter, progress=print):
        self.config, self.workdir, self.segmenter, self.progress = config, workdir, segmenter, progress
        self.source = self.step = self.last = None

    def score(self, state, step):
        """Scores a replicated `TrainState`; returns `Evaluation.as_json()` with the step and the set's digest."""
        return self.score_model(state.params["network"]["segmenter"], state.batch_stats, step)

    def score_model(self, params, batch_stats, step):
        """Scores replicated `params` and `batch_stats`; returns what `score` does."""
        if self.source is None:
            self.source = open_together(self.config, self.workdir, "val", progress=self.progress)
            self.step = compiled_eval_step(self.segmenter, self.config.flow.scale)
        offsets, pairs = scored_parts(self.source)
        batches = eval_batches(
            self.source,
            batch_size=self.config.evaluate.clips_per_device * jax.local_device_count(),
            offsets=offsets,
            flow_pairs=pairs,
            num_threads=self.config.data.threads,
            shard=(jax.process_index(), jax.process_count()),
        )
        setting = self.config.data.classes
        result = evaluate(self.step, params, batch_stats, batches, CLASSES[setting], evaluated_classes(setting))
        self.last = result.as_json() | {"step": step, "data": self.source.digest}
        return self.last


def scored_parts(source):
    """Returns the frame offsets and flow pairs that scoring reads of a validation set.

    Without flow from x_{t-1} into x_{t-2} that is x_t and x_{t-1}, and temporal consistency cannot be measured.
    """
    count = 2 if SCORED_PAIRS[1] in source.spec.flow_pairs else 1
    return SCORED_OFFSETS[: count + 1], SCORED_PAIRS[:count]


_EVAL_STEPS = {}


def compiled_eval_step(segmenter, flow_scale):
    """Returns `make_eval_step`'s function, the same one for the same network: all rows share one compilation."""
    if (segmenter, flow_scale) not in _EVAL_STEPS:
        _EVAL_STEPS[segmenter, flow_scale] = make_eval_step(segmenter, flow_scale)
    return _EVAL_STEPS[segmenter, flow_scale]
