"""SGD as the paper and its baselines' public code use it: momentum, weight decay, polynomial decay, multipliers."""

import re

import jax
import jax.numpy as jnp
import optax


def parameter_path(path):
    """Writes a tree path as text: `segmenter/backbone/conv1/kernel`."""
    return "/".join(str(part.key) for part in path)


def poly_schedule(settings):
    """Polynomial decay: `learning_rate · (1 - step / decay_steps)^power`, 0 from `decay_steps` on.

    Args:
      settings: `config.optim`, with `learning_rate`, `decay_steps` and `power`.

    Returns:
      An Optax schedule: step to learning rate.
    """

    def schedule(step):
        # Optax's own divides whole numbers, which gives float32 even where everything else is float64.
        done = jnp.clip(step, 0, settings.decay_steps).astype(jnp.result_type(float)) / settings.decay_steps
        return settings.learning_rate * (1 - done) ** settings.power

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
