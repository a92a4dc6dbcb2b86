"""SGD as the paper and its baselines' public code use it: momentum, weight decay, polynomial decay, multipliers.

And Adam, for the adversaries of those baselines that have one, and for methods whose publication trains with it.

One fault of that code is left out. Its list of the backbone's parameters (`get_1x_lr_params_...` of the DeepLab
models) goes through all modules of each stage, and through all parameters below each of them. So a convolution of a
residual layer is listed 3 times, for the stage, the block and itself; one of a shortcut 4 times; the stem's once. SGD,
in PyTorch of that time, updates a parameter as often in one step as it is listed, which in the long run is 3 or 4 times
the learning rate. Here each is updated once. The list is in the public code of ADVENT (whose network RDA has), DA-VSN,
TPS (source_only, too), HCL, FDA, PixMatch and UR.
"""

import re

import jax
import jax.numpy as jnp
import optax

from input_pipeline.errors import UserError


def parameter_path(path):
    """Writes a tree path as text: `segmenter/backbone/conv1/kernel`."""
    return "/".join(str(part.key) for part in path)


def poly_schedule(settings, learning_rate=None):
    """Polynomial decay, `learning_rate · (1 - step / decay_steps)^power`, 0 from `decay_steps` on; before it a warm-up.

    The first `warmup_steps` steps have `learning_rate · (0.1 + 0.9 · step / warmup_steps)` instead. The decay counts
    from step 0 all the same, so that the rate drops a little where the warm-up ends: to 0.95^0.9 = 0.955 of
    `learning_rate` after 5,000 of 100,000 steps.

    Args:
      settings: `config.optim`, with `learning_rate`, `warmup_steps`, `decay_steps` and `power`.
      learning_rate: before decay; None for the one in `settings`.

    Returns:
      An Optax schedule: step to learning rate.

    Source of the warm-up: GitHub layumi/Seg-Uncertainty, utils/tool.py, which the public code of HCL is built on.
    """

    learning_rate = settings.learning_rate if learning_rate is None else learning_rate

    def schedule(step):
        # Optax's own divides whole numbers, which gives float32 even where everything else is float64. What is left is
        # counted in whole numbers: 1 - step / decay_steps may be below 0 at the end, compiled, and its power no number.
        left = (settings.decay_steps - jnp.clip(step, 0, settings.decay_steps)).astype(jnp.result_type(float))
        decayed = learning_rate * (left / settings.decay_steps) ** settings.power
        if settings.warmup_steps == 0:
            return decayed
        share = jnp.asarray(step, decayed.dtype) / settings.warmup_steps
        return jnp.where(share < 1, learning_rate * (0.1 + 0.9 * share), decayed)

    return schedule


def selector(entry, groups):
    """Returns a function that says of a parameter's path whether an entry of the settings means it.

    Args:
      entry: name of a group of the segmentation network, or a regular expression on the path.
      groups: `Network.groups`.
    """
    if entry not in groups:
        return re.compile(entry).search
    expression = re.compile(groups[entry])
    return lambda path: path.startswith("segmenter/") and expression.search(path.removeprefix("segmenter/"))


def sgd(settings, groups=(), frozen=(), multipliers=(), trained=()):
    """SGD in PyTorch's arithmetic, g = gradient + weight_decay · p; m = momentum · m + g; p = p - rate · m.

    PyTorch skips a parameter without gradient where Optax would still decay it: such parameters are named and frozen.

    Args:
      settings: `config.optim`: `learning_rate`, `warmup_steps`, `decay_steps`, `power`, `momentum`, `nesterov`,
        `weight_decay`, `clip_norm` (0 for none), `multipliers` and `frozen`. The latter two name parameters, each by a
        group of the network or by a regular expression on paths: (entry, factor) pairs, of which the first match
        counts, and entries.
      groups: `Network.groups`, or () for none.
      frozen: groups that the method never trains; those that the network lacks are left out.
      multipliers: the method's own, behind those of the settings.
      trained: groups that are trained alone; () for all that are not frozen.

    Returns:
      An Optax transformation. Its `init` raises `UserError` where an entry of the settings means no parameter.
    """
    update = optax.chain(
        optax.clip_by_global_norm(settings.clip_norm) if settings.clip_norm else optax.identity(),
        optax.add_decayed_weights(settings.weight_decay),
        optax.trace(settings.momentum, nesterov=settings.nesterov),
        _multiplied(settings, groups, multipliers),
        optax.scale_by_learning_rate(poly_schedule(settings)),
    )
    return _of_trained(update, settings, groups, frozen, trained)


def trained_parameters(settings, groups=(), frozen=(), trained=()):
    """Returns a function that says of a parameter's path whether it is trained; arguments as `sgd` takes them."""
    frozen = [selector(entry, groups) for entry in (*(g for g in frozen if g in groups), *settings.frozen)]
    alone = [selector(group, groups) for group in trained]

    def is_trained(path):
        return not any(means(path) for means in frozen) and (not alone or any(means(path) for means in alone))

    return is_trained


def _of_trained(update, settings, groups, frozen, trained):
    """Lets an optimiser update the parameters that are trained, and no others."""
    is_trained = trained_parameters(settings, groups, frozen, trained)

    def labels(params):
        _check_entries(settings, groups, params)

        def label(path, _):
            return "trained" if is_trained(parameter_path(path)) else "frozen"

        return jax.tree_util.tree_map_with_path(label, params)

    return optax.partition({"trained": update, "frozen": optax.set_to_zero()}, labels)


def _multiplied(settings, groups, multipliers=()):
    """Multiplies each parameter's update by the factor that the settings, or else the method, name for it."""
    factors = [(selector(entry, groups), factor) for entry, factor in (*settings.multipliers, *multipliers)]

    def multiply(updates, _):
        def scale(path, update):
            name = parameter_path(path)
            return update * next((factor for e, factor in factors if e(name)), 1.0)

        return jax.tree_util.tree_map_with_path(scale, updates)

    return optax.stateless(multiply)


def _check_entries(settings, groups, params):
    paths = [parameter_path(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]
    entries = [("frozen", e) for e in settings.frozen] + [("multipliers", e) for e, _ in settings.multipliers]
    for key, entry in entries:
        if not any(map(selector(entry, groups), paths)):
            modules = sorted({"/".join(path.split("/")[:2]) for path in paths})
            raise UserError(
                f"config.optim.{key}: {entry!r} means no parameter that this row trains. Expected one of the groups "
                f"{', '.join(groups)}, or an expression on paths below {', '.join(modules)}."
            )


def network_adam(settings, decay, groups, frozen=()):
    """As `adam`, for the segmentation network: `decay.multipliers` and `decay.frozen` count as they do for `sgd`."""
    return _of_trained(optax.chain(adam(settings, decay), _multiplied(decay, groups)), decay, groups, frozen, ())


def adam(settings, decay):
    """Adam in PyTorch's arithmetic with the network's polynomial decay: a discriminator's optimiser.

    Args:
      settings: `learning_rate` and `betas`, of `config.methods.<name>`.
      decay: `config.optim`, for `warmup_steps`, `decay_steps` and `power`.

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
