"""The loss of adversarial alignment: a discriminator tells domains apart, the network makes it fail."""

import jax

# What the public code of ADVENT, DA-VSN and RDA calls the domains.
SOURCE, TARGET = 0, 1


def domain_cross_entropy(logits, label):
    """Binary cross-entropy with logits against one label for all, unreduced.

        -log σ(x) for label 1, -log(1 - σ(x)) for label 0

    Args:
      logits: `[...]`, a discriminator's answers.
      label: the domain that the answers should name, 0 (source) or 1 (target).

    Returns:
      `[...]`, of the type of `logits`.

    Source: public code of AdaptSegNet and ADVENT (`bce_loss`).
    """
    return jax.nn.softplus(-logits if label == TARGET else logits)
