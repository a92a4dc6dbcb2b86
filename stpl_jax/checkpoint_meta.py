"""What a checkpoint says of itself beside its arrays, the item `meta`: one reader, one writer."""

import dataclasses
from typing import Any

from stpl_jax.checkpoint_places import SEGMENTATION, CheckpointError


@dataclasses.dataclass(frozen=True)
class CheckpointMeta:
    """What is known of a stored network. None stands for what is not said; earlier versions wrote less.

    Attributes:
      network: the name of an optical flow network, or `SEGMENTATION`.
      config: the configuration that it was made with, JSON-able.
      classes: names of the classes, in the order of the train ids.
      label_setting: the label setting with these classes, None where there is none.
      row: the row of the results table that it is of.
      method: what trained it.
      batch_norm: how its normalisation took statistics, `config.batch_norm.mode`.
      source: where its first weights came from: a checkpoint's path, `random`, or the file that was converted.
      step: optimiser steps done.
      versions: library -> version.
      sha256: of the file that was converted.
      released: numbers that stood beside the weights in that file.
      clips_per_step: clips in a step, on all devices together.
      data: domain -> digest of the prepared set that it was trained on.
      positions: domain -> where training goes on reading.
      best: the best scores so far.
    """

    network: str = SEGMENTATION
    config: dict[str, Any] | None = dataclasses.field(default=None, repr=False)
    classes: tuple[str, ...] | None = None
    label_setting: str | None = None
    row: str | None = None
    method: str | None = None
    batch_norm: str | None = None
    source: str | None = None
    step: int = 0
    versions: dict[str, str] | None = dataclasses.field(default=None, repr=False)
    sha256: str | None = None
    released: dict[str, float] | None = None
    clips_per_step: int | None = None
    data: dict[str, str] | None = None
    positions: dict[str, Any] | None = dataclasses.field(default=None, repr=False)
    best: dict[str, Any] | None = dataclasses.field(default=None, repr=False)

    def as_json(self):
        """Returns a JSON-able dict of what is said."""
        return {name: value for name, value in vars(self).items() if value is not None}

    @classmethod
    def of_json(cls, found):
        """Reads what `as_json` returned; entries of other names are left out."""
        known = {field.name: found[field.name] for field in dataclasses.fields(cls) if field.name in found}
        if isinstance(known.get("classes"), list):
            known["classes"] = tuple(known["classes"])
        return cls(**known)

    def require(self, where, *names):
        """Raises `CheckpointError` where one of these is not said; it names the checkpoint `where` and all of them."""
        missing = [name for name in names if getattr(self, name) is None]
        if missing:
            raise CheckpointError(
                f"Checkpoint {where} does not say its {', '.join(missing)} in meta: neither training nor "
                "python -m stpl_jax.convert wrote it, and it cannot be used for this."
            )
