"""How a prepared set stores pictures and flow: as PNG, which a reader decodes one by one.

ArrayRecord compresses whole records (zstd), which is as small as PNG's own deflate and several times faster to undo. So
PNG only filters, and leaves its pixels uncompressed; "up" is the filter that vector units undo.
"""

import cv2
import numpy as np

_PNG_SETTINGS = (cv2.IMWRITE_PNG_COMPRESSION, 0, cv2.IMWRITE_PNG_FILTER, cv2.IMWRITE_PNG_FILTER_UP)
# Flipping this bit turns int16 into the uint16 that is larger by 32768, and back.
_FLOW_ZERO = np.uint16(1 << 15)


def encode_image(pixels):
    """Turns `[H, W]` (grey) or `[H, W, 3]` (BGR), uint8 or uint16, into the bytes of a PNG."""
    done, data = cv2.imencode(".png", pixels, _PNG_SETTINGS)
    if not done:
        raise ValueError(f"OpenCV could not encode an array of {pixels.dtype} {list(pixels.shape)} as PNG.")
    return data.tobytes()


def decode_image(data):
    """Inverts `encode_image`; raises ValueError where the bytes are no image."""
    return _decode(data, cv2.IMREAD_UNCHANGED)


def encode_frame(frame):
    """Turns `[H, W, 3]` uint8 RGB into the bytes of an RGB PNG."""
    return encode_image(cv2.cvtColor(frame, cv2.COLOR_RGB2BGR))


def decode_frame(data):
    """Inverts `encode_frame`; raises ValueError where the bytes are no image."""
    return _decode(data, cv2.IMREAD_COLOR_RGB)


def encode_flow(flow):
    """Packs stored flow into a 16-bit PNG, whose filter makes it compress well.

    Args:
      flow: `[H, W, 2]` int16.

    Returns:
      bytes of a grey PNG of `[2H, W]`.
    """
    return encode_image(np.concatenate([flow[..., 0], flow[..., 1]]).view(np.uint16) ^ _FLOW_ZERO)


def decode_flow(data):
    """Inverts `encode_flow`; raises ValueError where the bytes are no image."""
    stacked = decode_image(data)
    return cv2.merge(np.split((stacked ^ _FLOW_ZERO).view(np.int16), 2))


def _decode(data, mode):
    pixels = cv2.imdecode(np.frombuffer(data, np.uint8), mode)
    if pixels is None:
        raise ValueError("an image cannot be decoded")
    return pixels
