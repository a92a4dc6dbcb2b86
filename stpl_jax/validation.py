"""The validation set: opened once, scored as often as a run asks for."""

import functools
import operator

import jax
import numpy as np

from input_pipeline.clips import open_clips
from input_pipeline.domains import SCORED_OFFSETS, SCORED_PAIRS, prepare_domain
from input_pipeline.errors import UserError
from input_pipeline.labels import CLASSES, class_groups, evaluated_classes, model_classes
from input_pipeline.loader import eval_batches
from stpl_jax import parallel, processes, to_label
from stpl_jax.evaluate import evaluate, make_eval_step
from stpl_jax.unlabelled import make_unlabelled_step, measure

# Of a set without labels, the part of the scores that comes of masks for some of its frames.
_OF_MASKS = ("miou", "iou", "confusion", "labelled", "labels", "classes")


class NonFiniteLoss(UserError):
    """A loss, or the state after the step, that is infinite or not a number."""


def open_together(config, workdir, domain, needs=None, progress=print):
    """Opens one domain's clips; the first process generates and prepares what is not there yet, and the others wait.

    Args:
      config, workdir, domain, needs, progress: as `domains.prepare_domain` takes them.

    Returns:
      A `ClipSource`.
    """
    # The others neither read the raw files nor have to see them.
    path = processes.from_first(lambda: str(prepare_domain(config, workdir, domain, needs, progress)))
    return open_clips(path, needs)


class Validation:
    """Scores states on the validation set; opened once, compiled once.

    Args:
      config: the row's configuration.
      workdir: the run's folder.
      segmenter: a `Network`.
      progress: called with lines of text.

    Attributes:
      source: the `ClipSource`, None before the first score.
      last: the newest scores, None before the first.
    """

    def __init__(self, config, workdir, segmenter, progress=print):
        self.config, self.workdir, self.segmenter, self.progress = config, workdir, segmenter, progress
        self.source = self.step = self.last = None

    def score(self, state, method, step):
        """Scores a `Method`'s replicated `TrainState`; returns what `RowScores.last` holds."""
        return self.score_model(model_of(state, method), step)

    def score_model(self, model, step, update=None):
        """Scores replicated `params` and `batch_stats`; returns what `score` does. `update`: see `evaluate`."""
        self.open()
        setting = self.source.spec.classes
        if setting is None:
            result = self._look(model, update)
        else:
            classes, evaluated = CLASSES[setting], evaluated_classes(setting)
            result = evaluate(self.step, model, self.batches(), classes, evaluated, update).as_json()
        self.last = result | {"step": step, "data": self.source.digest}
        return self.last

    def _look(self, model, update):
        """Figures without labels; with masks beside the frames that were chosen for that, scores on these, too."""
        found = measure(self.step, model, self.batches(), model_classes(self.config.data), update).as_json()
        # Scored on the way, it is the network after all updates that meets the labels.
        return found | self._of_masks(update.model if update else model)

    def with_masks(self, scores, model):
        """Returns what `score_online` did with what the masks that there are now say of the network after all updates.

        Args:
          scores: of `score_online`; those of a set with labels, or of other clips, are returned as they are.
          model: replicated `params` and `batch_stats` after the last update.
        """
        self.open()
        if self.source.spec.classes is not None or scores["data"] != self.source.digest:
            return scores
        rest = {name: value for name, value in scores.items() if name not in _OF_MASKS}
        return rest | {"miou": None} | self._of_masks(model)

    def _of_masks(self, model):
        """Scores on masks beside the frames that were chosen for that; an empty dict where there are none."""
        names = model_classes(self.config.data)
        labelled = to_label.read_masks(self.workdir, self.source, names)
        if labelled is None:
            return {}
        own, groups = labelled.own, labelled.own.groups_of(names)
        other = () if groups is None else (groups, len(own.classes))
        step = compiled_eval_step(self.segmenter, self.config.flow.scale, *other)
        batches = self.batches(labelled.masks)
        scores = evaluate(step, model, batches, own.classes, own.known_to(names)).as_json()
        scores |= {"labelled": len(labelled.masks), "labels": labelled.digest, "classes": own.classes}
        return {name: scores[name] for name in _OF_MASKS}

    def score_online(self, state, train_step, method, step=None):
        """Scores each clip, in time order, as it is predicted by what the clips before it have made of the network.

        Where the clips do not fill the last batch, the copies that fill it are trained on as well. No clip's prediction
        depends on that; the network that is stored, and that masks are scored by, does.

        Args:
          state: replicated `TrainState`, which is donated.
          train_step: of `make_train_step`, pmapped; called with each batch once it is predicted, without its labels.
          method: the `Method`, for what it needs and what predicts.
          step: of the scores; None for the number of updates.

        Returns:
          What `score` returns, with `online` True, and the state after the last update.

        Raises:
          UserError: the method needs frames, flow or labels that scoring does not read; see `check_online`.
          NonFiniteLoss: the state is no longer finite.
        """
        self.open()
        check_online(self.config, method, self.source.spec)
        updates = _Updates(state, train_step, method, self.source)
        scores = self.score_model(model_of(state, method), step, updates)
        norm = parallel.unreplicate(updates.metrics["state_norm"])
        if not np.isfinite(norm):
            raise NonFiniteLoss(f"{self.config.method}: the network is not finite after its updates on the way.")
        self.last = scores | {"online": True, "step": updates.count if step is None else step}
        return self.last, updates.state

    def open(self):
        """Opens the set and compiles the step, once."""
        if self.source is None:
            self.source = open_together(self.config, self.workdir, "val", progress=self.progress)
            if self.source.spec.classes is None:
                self.step = compiled_unlabelled_step(self.segmenter, self.config.flow.scale)
                return
            groups = class_groups(self.config.data.classes, self.source.spec.name, self.source.spec.classes)
            other = () if groups is None else (groups, len(CLASSES[self.source.spec.classes]))
            self.step = compiled_eval_step(self.segmenter, self.config.flow.scale, *other)

    def batches(self, masks=None):
        """Iterates once over the set, in order; with `masks` over the clips that have one (see `eval_batches`)."""
        offsets, pairs = scored_parts(self.source)
        return eval_batches(
            self.source,
            batch_size=self.config.evaluate.clips_per_device * jax.local_device_count(),
            offsets=offsets,
            flow_pairs=pairs,
            num_threads=self.config.data.threads,
            shard=(jax.process_index(), jax.process_count()),
            label=self.source.spec.classes is not None,
            masks=masks,
        )


class _Updates:
    """The updates between predictions: called with a batch, trains on it, and returns the model after it."""

    def __init__(self, state, train_step, method, source):
        self.state, self.train_step, self.method, self.count = state, train_step, method, 0
        self.metrics = None
        (offsets, pairs), needs = scored_parts(source), method.needs["target"]
        self.frames = [offsets.index(k) for k in needs.offsets]
        self.flows = [pairs.index(pair) for pair in needs.flow_pairs]

    def __call__(self, batch):
        clips = {"index": batch["index"], "frames": batch["frames"][:, :, np.array(self.frames)]}
        clips["flow"] = batch["flow"][:, :, np.array(self.flows, int)]
        self.state, self.metrics = self.train_step(self.state, {"target": clips})
        self.count += 1
        return self.model

    @property
    def model(self):
        """The network as it is now; earlier ones are donated."""
        return model_of(self.state, self.method)


def model_of(state, method):
    """Returns `params` and `batch_stats` of the network that inference uses, of a `Method`'s `TrainState`."""
    field, *names = method.inference.split("/")
    return functools.reduce(operator.getitem, names, getattr(state, field)), state.batch_stats


def is_scored_online(config, method):
    """Whether a row is scored on the way: online methods, and with `evaluate.online` all that read no more than that.

    Rows that read labels or source clips, such as source_only, are scored as usual.
    """
    needs = method.needs.get("target")
    return method.online or (config.evaluate.online and len(method.needs) == 1 and bool(needs) and not needs.labels)


def check_online(config, method, spec):
    """Raises `UserError` where a method cannot be trained on the clips that scoring reads, those of a `DatasetSpec`."""
    offsets, pairs = _parts_of(spec)
    needs = method.needs.get("target")
    if list(method.needs) != ["target"] or needs.labels or not set(needs.offsets) <= set(offsets):
        raise UserError(
            f"Scoring on the way gives a method target clips of the frames {offsets} without labels, and "
            f"{config.method} needs {dict(method.needs)}. Set evaluate.online=False for it."
        )
    missing = set(needs.flow_pairs) - set(pairs)
    if missing:
        raise UserError(
            f"Scoring on the way reads flow of the pairs {pairs}, and {config.method} needs {sorted(missing)}, too. "
            "Set evaluate.online=False for it."
        )
    clips, parts = config.evaluate.clips_per_device, config.optim.accumulate
    if clips % parts:
        raise UserError(
            f"Scoring on the way trains on evaluate.clips_per_device={clips} clips at a time, which optim.accumulate="
            f"{parts} cannot divide: set evaluate.clips_per_device to a multiple of it, or optim.accumulate=1."
        )


def scored_parts(source):
    """Returns the frame offsets and flow pairs that scoring reads of a validation set.

    Without flow from x_{t-1} into x_{t-2} that is x_t and x_{t-1}, and temporal consistency cannot be measured.
    """
    return _parts_of(source.spec)


def _parts_of(spec):
    count = 2 if SCORED_PAIRS[1] in spec.flow_pairs else 1
    return SCORED_OFFSETS[: count + 1], SCORED_PAIRS[:count]


@functools.cache
def compiled_eval_step(*args):
    """Returns `make_eval_step`'s function, the same one for the same network: all rows share one compilation."""
    return make_eval_step(*args)


@functools.cache
def compiled_unlabelled_step(*args):
    """Returns `make_unlabelled_step`'s function, the same one for the same network."""
    return make_unlabelled_step(*args)
