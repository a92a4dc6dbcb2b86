"""The contract between a method of the paper's tables and the training loop.

A method says which data it needs, which parameters it adds, and what its loss is; the loop knows nothing else about it.
"""

import abc
from collections.abc import Mapping
from typing import Any

from flax import struct

from input_pipeline.needs import DomainNeeds
from stpl_jax import optim
from stpl_jax.train_state import NETWORK


class Aux(struct.PyTreeNode):
    """What a loss hands on besides its value.

    Attributes:
      batch_stats: running averages after the step's forward passes.
      metrics: scalars for the log, by name.
      extra: whatever `after_update` wants of the forward passes; as all of this, averaged over devices.
    """

    batch_stats: Any
    metrics: dict[str, Any] = struct.field(default_factory=dict)
    extra: Any = None


class Method(abc.ABC):
    """A method of the paper's tables.

    Attributes:
      needs: by domain, `source` or `target`; a domain that is not named is never opened.
      roles: what it needs of the segmentation network beside features and a main classifier: names of `Network`'s
        attributes that must not be empty.
      online: it adapts while it is scored: each clip of the validation set, in time order, is predicted by the network
        as the clips before it have left it, and then trained on, once and without its label.
      takes_prior: it can be trained and scored with fixed running statistics, source's and target's blended
        (`batch_norm.prior`, `choose_prior`). False: it leaves those settings alone, for it learns by labels, or blends
        by itself.
      frozen: groups of the segmentation network that it does not train. Here: as the paper, scale and bias of
        normalisation.
      inference: where in the `TrainState` the parameters are that inference uses: those that are scored, and that a
        checkpoint holds as its network. Here: the network that is trained; a method may name a teacher's.
    """

    needs: Mapping[str, DomainNeeds]
    roles: tuple[str, ...] = ()
    online: bool = False
    takes_prior: bool = True
    frozen: tuple[str, ...] = ("normalisation",)
    inference: str = NETWORK

    def init(self, key, variables):
        """Adds the method's own parameters to a segmentation network.

        Args:
          key: random key.
          variables: the segmentation network's `params` and `batch_stats`.

        Returns:
          Parameters by group, `{"network": {"segmenter": ..., ...}, ...}`, each group with an optimiser of its own;
          and what is kept from step to step without being trained (a teacher, say), or None. Here: nothing is added.
        """
        del key
        return {"network": {"segmenter": variables["params"]}}, None

    def optimisers(self, settings):
        """Returns one Optax transformation for each group of parameters; `settings` is `config.optim`.

        Here: the paper's SGD, of all but the groups in `frozen`.
        """
        return {"network": optim.sgd(settings, self.segmenter.groups, self.frozen)}

    @abc.abstractmethod
    def loss(self, params, state, batch, key):
        """Computes the losses on one device's clips.

        Args:
          params: parameters by group; gradients are taken with respect to all of them.
          state: the `TrainState` before the step.
          batch: by domain, `frames` `[B, T, H, W, 3]` uint8 RGB, `flow` `[B, P, H, W, 2]` int16 in tenths of a pixel,
            `label` `[B, H, W]` uint8 if asked for, `index` `[B]` int32, the clip's global number.
          key: this step's random key.

        Returns:
          One scalar per group of parameters that is trained (`stop_gradient` keeps them apart), and an `Aux`.
        """

    def after_update(self, state, aux):
        """Returns the state after the optimisers' update, with moving averages moved and copies refreshed.

        Here: there are none.
        """
        del aux
        return state


class Untrained(Method):
    """A method that trains no parameter. Here: it changes nothing at all, and is what inference makes of it."""

    def optimisers(self, settings):
        del settings
        return {}

    def loss(self, params, state, batch, key):
        del params, batch, key
        return {}, Aux(state.batch_stats)
