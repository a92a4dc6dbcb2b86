"""SGD as the paper and its baselines' public code use it: momentum, weight decay, polynomial decay, multipliers.

And Adam, for the adversaries of those baselines that have one.
"""

import re

import jax
import jax.numpy as jnp
import optax


def parameter_path(path):
    """Writes a tree path as text: `segmenter/backbone/conv1/kernel`."""
    return "/".join(str(part.key) for part in path)


def poly_schedule(settings, learning_rate=None):
    """Polynomial decay: `learning_rate · (1 - step / decay_steps)^power`, 0 from `decay_steps` on.

    Args:
      settings: `config.optim`, with `learning_rate`, `decay_steps` and `power`.
      learning_rate: of the first step; None for the one in `settings`.

    Returns:
      An Optax schedule: step to learning rate.
    """

    learning_rate = settings.learning_rate if learning_rate is None else learning_rate

    def schedule(step):
        # Optax's own divides whole numbers, which gives float32 even where everything else is float64.
        done = jnp.clip(step, 0, settings.decay_steps).astype(jnp.result_type(float)) / settings.decay_steps
        return learning_rate * (1 - done) ** settings.power

    return schedule


def sgd(settings, frozen=()):
    """SGD in PyTorch's arithmetic, g = gradient + weight_decay · p; m = momentum · m + g; p = p - rate · m.

    PyTorch skips a parameter without gradient where Optax would still decay it: such parameters are named and frozen.

    Args:
      settings: `config.optim`: `learning_rate`, `decay_steps`, `power`, `momentum`, `nesterov`, `weight_decay`,
        `clip_norm` (0 for none), `multipliers` and `frozen`. The latter two name parameters by regular expressions on
        their paths: `(expression, factor)` pairs, of which the first match counts, and expressions.
      frozen: expressions of parameters that the method never trains.

    Returns:
      An Optax transformation.
    """
    frozen = [re.compile(expression) for expression in (*frozen, *settings.frozen)]
    multipliers = [(re.compile(expression), factor) for expression, factor in settings.multipliers]
    schedule = poly_schedule(settings)

    def labels(params):
        def label(path, _):
            return "frozen" if any(e.search(parameter_path(path)) for e in frozen) else "trained"

        return jax.tree_util.tree_map_with_path(label, params)

    def multiply(updates, _):
        def scale(path, update):
            name = parameter_path(path)
            return update * next((factor for e, factor in multipliers if e.search(name)), 1.0)

        return jax.tree_util.tree_map_with_path(scale, updates)

    trained = optax.chain(
        optax.clip_by_global_norm(settings.clip_norm) if settings.clip_norm else optax.identity(),
        optax.add_decayed_weights(settings.weight_decay),
        optax.trace(settings.momentum, nesterov=settings.nesterov),
        optax.stateless(multiply),
        optax.scale_by_learning_rate(schedule),
    )
    return optax.partition({"trained": trained, "frozen": optax.set_to_zero()}, labels)


def adam(settings, decay):
    """Adam in PyTorch's arithmetic with the network's polynomial decay: a discriminator's optimiser.

    Args:
      settings: `learning_rate` and `betas`, of `config.methods.<name>`.
      decay: `config.optim`, for `decay_steps` and `power`.

    Returns:
      An Optax transformation.

    Source: public code of ADVENT, DA-VSN and RDA: 1e-4, betas 0.9 and 0.99, no weight decay.
    """
    first, second = settings.betas
    moments = optax.scale_by_adam(first, second, eps=1e-8)

    def update(updates, state, params=None):
        # Optax raises the decay rates to the power of a whole number, which strict promotion refuses.
        with jax.numpy_dtype_promotion("standard"):
            return moments.update(updates, state, params)

    schedule = poly_schedule(decay, settings.learning_rate)
    return optax.chain(optax.GradientTransformation(moments.init, update), optax.scale_by_learning_rate(schedule))
