"""Every method by its name on the command line."""

from functools import partial

from input_pipeline.errors import UserError
from stpl_jax.methods.alpha_bn import AlphaBN
from stpl_jax.methods.blend import Blend
from stpl_jax.methods.bn_statistics import BNStatistics
from stpl_jax.methods.cbna import CBNA
from stpl_jax.methods.cotta import CoTTA
from stpl_jax.methods.da_vsn import DAVSN
from stpl_jax.methods.fda import FDA
from stpl_jax.methods.hcl import HCL
from stpl_jax.methods.pixmatch import PixMatch
from stpl_jax.methods.rda import RDA
from stpl_jax.methods.sar import SAR
from stpl_jax.methods.self_training import SelfTraining
from stpl_jax.methods.stpl import STPL
from stpl_jax.methods.stpl_plus import STPLPlus
from stpl_jax.methods.supervised import Supervised
from stpl_jax.methods.tent import Tent
from stpl_jax.methods.tps import TPS
from stpl_jax.methods.ubna import UBNA
from stpl_jax.methods.ur import UR
from stpl_jax.methods.vat_vst import VATVST

METHODS = {
    "source_only": partial(Supervised, domain="source"),
    "oracle": partial(Supervised, domain="target"),
    "bn_statistics": BNStatistics,
    "alpha_bn": AlphaBN,
    "blend": Blend,
    "ubna": UBNA,
    "cbna": CBNA,
    "tent": Tent,
    "sar": SAR,
    "cotta": CoTTA,
    "self_training": SelfTraining,
    "fda": FDA,
    "pixmatch": PixMatch,
    "rda": RDA,
    "ur": UR,
    "hcl": HCL,
    "da_vsn": DAVSN,
    "vat_vst": VATVST,
    "tps": TPS,
    "stpl": STPL,
    # STPL's special cases, as Table 3 names them: shorthands for methods.stpl.objective.
    "spatial": partial(STPL, objective="spatial"),
    "temporal": partial(STPL, objective="temporal"),
    "duplicate": partial(STPL, objective="duplicate"),
    "naive": partial(STPL, objective="naive"),
    "stpl_plus": STPLPlus,
}

_SECTIONS = dict.fromkeys(("source_only", "oracle"), "supervised")
_SECTIONS |= dict.fromkeys(("spatial", "temporal", "duplicate", "naive"), "stpl")


def section_of(method):
    """Returns the name under `config.methods` of the settings that a method reads."""
    return _SECTIONS.get(method, method)


def takes_prior(config):
    """Whether the row's running statistics are source's and target's, blended once and fixed: `batch_norm`."""
    method, asked = METHODS[config.method], config.batch_norm.prior or config.batch_norm.choose_prior
    return bool(asked) and getattr(method, "func", method).takes_prior


def make_method(config, segmenter):
    """Builds the method that `config.method` names.

    Raises:
      UserError: there is no method of that name, or it needs what the network does not have.
    """
    if config.method not in METHODS:
        raise UserError(f"config.method is one of {', '.join(METHODS)}; found {config.method!r}.")
    if takes_prior(config):
        if not segmenter.running_statistics:
            raise UserError(
                "batch_norm.prior and choose_prior blend running statistics, and config.model.name="
                f"{config.model.name} has none: leave them at 0 and False."
            )
        config = config.copy_and_resolve_references()
        config.batch_norm.mode = "running"
    method = METHODS[config.method](config, segmenter)
    lacking = [role for role in method.roles if not getattr(segmenter, role)]
    if lacking:
        raise UserError(
            f"method={config.method} needs a network with {' and '.join(lacking)}, and config.model.name="
            f"{config.model.name} has none. Choose another method, or another network."
        )
    return method
