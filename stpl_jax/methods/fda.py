"""FDA: Fourier Domain Adaptation for semantic segmentation (Yang and Soatto, CVPR 2020).

    x^{s→t} = F⁻¹(M_β ∘ A(x^t) + (1 - M_β) ∘ A(x^s), P(x^s))
    L       = CE(p(x^{s→t}), y^s) + 0.005 · mean ((H(p(x^t)) / ln K)² + 1e-8)²

Source frames get the low-frequency amplitude of a target frame and keep their phase and labels; predictions on target
get confident. An image method: on video, both frames of a source clip take the amplitude of the target clip's x_t that
lies beside it in the batch, and p is ACCEL's, of two frames. The entropy term is on the main classifier, the only one
that the publication has, at feature resolution, from the first step on.

The public code differs:
- It crops source images of 720×1280 to 512×1024 first, so that β = 0.01 is a half-width of 5; here frames stay whole,
  and 720 rows give 7.
- The publication averages the predictions of three networks (β of 0.01, 0.05 and 0.09) and trains them again on their
  own labels; here there is one network, with one β.
- 100,100 steps are taken there, as only every hundredth step may be the last; the entropy term counts from the second
  step on.
- Training starts from weights without a classifier (`DeepLab_init.pth`); here from the source model.
- Each residual layer's parameters are updated 3 or 4 times in one step there, here once: see `stpl_jax/optim.py`.
"""

from input_pipeline.errors import UserError
from input_pipeline.needs import DomainNeeds
from stpl_jax.forward import clip_scores
from stpl_jax.losses.entropy import robust_entropy
from stpl_jax.methods.base import Aux, Method
from stpl_jax.methods.supervised import supervised_loss
from stpl_jax.ops.dtypes import compute_dtype
from stpl_jax.ops.fourier import swap_low_frequencies
from stpl_jax.ops.resize import resize_align_corners


class FDA(Method):
    """Source clips in the target's style, and low entropy on target; everything under `config.methods.fda`."""

    def __init__(self, config, segmenter):
        if config.source_free:
            raise UserError(
                "method=fda restyles source frames and learns from their labels: without source data only its entropy "
                "term is left, which the paper has no row for. Set source_free=False."
            )
        self.config, self.segmenter, self.settings = config, segmenter, config.methods.fda
        self.needs = {"source": DomainNeeds(labels=True, mirrored=self.settings.mirror), "target": DomainNeeds()}

    def loss(self, params, state, batch, key):
        del key
        network, source, target = params["network"]["segmenter"], batch["source"], batch["target"]
        supervised, stats = supervised_loss(
            self.config, self.segmenter, network, state.batch_stats, source, self.restyled(source, target)
        )
        scores, stats = clip_scores(
            self.config, self.segmenter, network, stats, target["frames"], target["flow"]
        )  # [B, h, w, K]
        entropy = robust_entropy(scores.main, self.settings.entropy_power).mean()
        loss = supervised + self.settings.entropy_weight * entropy
        return {"network": loss}, Aux(stats, {"supervised": supervised, "entropy": entropy})

    def restyled(self, source, target):
        """Gives both frames of each source clip the low frequencies of the target's x_t: `[B, T, H, W, 3]`."""
        dtype = compute_dtype(self.segmenter.dtype)
        frames = source["frames"].astype(dtype)
        style = resize_align_corners(target["frames"][:, :1].astype(dtype), frames.shape[2:4])  # [B, 1, H, W, 3]
        return swap_low_frequencies(frames, style, self.settings.beta)
