"""Images by their Fourier amplitude and phase: what one image takes over from another (FDA, RDA).

Spectra are `numpy.fft.fft2`'s, unscaled, of each channel by itself, on images of 0 to 255 before the mean is taken off.
All choices of frequencies here are symmetric about frequency zero, so the images that come back are real.
"""

import jax
import jax.numpy as jnp
import numpy as np

from stpl_jax.ops.dtypes import compute_dtype

_PLANE = (-3, -2)


def spectrum(images: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Splits images into amplitude and phase.

    Args:
      images: [..., H, W, C] floating point.

    Returns:
      Amplitude [..., H, W, C], float32 or finer, and phase [..., H, W, C], complex numbers of length one (1 where the
      amplitude is 0). No gradient flows from either: both belong to images that are given.
    """
    images = jax.lax.stop_gradient(images).astype(compute_dtype(images.dtype))
    transformed = jnp.fft.fft2(images, axes=_PLANE)
    amplitude = jnp.abs(transformed)
    safe = jnp.where(amplitude > 0, amplitude, 1)
    real = jnp.where(amplitude > 0, transformed.real / safe, 1)
    return amplitude, jax.lax.complex(real, transformed.imag / safe)


def compose(amplitude: jax.Array, phase: jax.Array) -> jax.Array:
    """Puts images together again: the inverse of `spectrum`, real [..., H, W, C]; the gradient flows into amplitude."""
    transformed = jax.lax.complex(amplitude * phase.real, amplitude * phase.imag)
    return jnp.fft.ifft2(transformed, axes=_PLANE).real


def low_frequency_window(size: tuple[int, int], beta: float) -> np.ndarray:
    """Marks the frequencies from -b to b along both axes, b = ⌊β · min(H, W)⌋; frequency zero is always among them.

    The window is that of FDA's `low_freq_mutate_np`. Its twin for PyTorch tensors, which the public training uses, runs
    from -b to b - 1: not symmetric, and empty where b is 0, as for images of 64 pixels under the published β of 0.01.

    Args:
      size: (H, W) of the images.
      beta: β of the paper, 0 to 0.5.

    Returns:
      bool [H, W], in the order of `numpy.fft.fft2`.

    Raises:
      ValueError: β is outside its range.
    """
    if not 0 <= beta <= 0.5:
        raise ValueError(f"beta is a share of the shorter side, 0 to 0.5, found {beta}.")
    reach = int(np.floor(beta * min(size)))
    rows, columns = _frequencies(size)
    return np.maximum(rows, columns) <= reach


def swap_low_frequencies(images: jax.Array, style: jax.Array, beta: float) -> jax.Array:
    """Gives images the low-frequency amplitude of others, and leaves their phase.

        F⁻¹(M_β ∘ A(style) + (1 - M_β) ∘ A(images), P(images))

    Args:
      images: [..., H, W, C] floating point, 0 to 255.
      style: the images whose amplitude is taken, of a shape that broadcasts to that of images.
      beta: sets the window, see `low_frequency_window`.

    Returns:
      [..., H, W, C], float32 or finer. Values are not cut to 0..255, as in the public code.

    Source: FDA, equation 3.
    """
    window = low_frequency_window(images.shape[-3:-1], beta)
    amplitude, phase = spectrum(images)
    window = jnp.asarray(window).reshape((1,) * (images.ndim - 3) + (*window.shape, 1))
    return compose(jnp.where(window, spectrum(style)[0], amplitude), phase)


def frequency_bands(size: tuple[int, int], count: int) -> np.ndarray:
    """Numbers the frequency band that each frequency lies in: square rings, from 0 (lowest) to count - 1 (highest).

    With f the larger of |row frequency| · 2/H and |column frequency| · 2/W, 0 to 1, the band is ⌊count · f⌋, and the
    highest frequency belongs to the last band. Images of fewer than 2 · count pixels a side may have empty bands.

    Args:
      size: (H, W) of the images.
      count: number of bands.

    Returns:
      int32 [H, W], in the order of `numpy.fft.fft2`.

    Source: RDA's public code (`faa_masks.py`, 32 bands); its rings reach from -b to b - 1 and leave out the middle row
    of images of odd height, these are symmetric and leave out nothing.
    """
    rows, columns = _frequencies(size)
    band = np.maximum(2 * count * rows // size[0], 2 * count * columns // size[1])
    return np.minimum(band, count - 1).astype(np.int32)


def band_means(amplitude: jax.Array, bands: np.ndarray, count: int) -> jax.Array:
    """Sums the amplitude of each band, and divides by the number of pixels of the WHOLE image, as RDA's pooling does.

    Args:
      amplitude: [..., H, W, C].
      bands: int32 [H, W], see `frequency_bands`.
      count: number of bands.

    Returns:
      [..., count, C].
    """
    flat = amplitude.reshape(-1, bands.size, amplitude.shape[-1])
    sums = jax.vmap(lambda a: jax.ops.segment_sum(a, jnp.asarray(bands.ravel()), count))(flat)
    return sums.reshape(*amplitude.shape[:-3], count, amplitude.shape[-1]) / bands.size


def blend_bands(amplitude: jax.Array, style: jax.Array, gate: jax.Array, bands: np.ndarray) -> jax.Array:
    """Takes over another image's amplitude band by band: (1 - gate) · amplitude + gate · style.

    Args:
      amplitude: [..., H, W, C].
      style: the amplitude that is taken over, of a shape that broadcasts to that of amplitude.
      gate: [..., count, C], 0 to 1 for each band and channel; its leading axes broadcast to those of amplitude.
      bands: int32 [H, W], see `frequency_bands`.

    Returns:
      [..., H, W, C].
    """
    share = jnp.take(gate, jnp.asarray(bands.ravel()), axis=-2, mode="clip")
    share = share.reshape(*gate.shape[:-2], *bands.shape, gate.shape[-1])
    return (1 - share) * amplitude + share * style


def _frequencies(size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Absolute row and column frequencies of `fft2`, whole numbers, [H, 1] and [1, W]."""
    rows, columns = (np.minimum(np.arange(n), n - np.arange(n)) for n in size)
    return rows[:, None], columns[None, :]
