"""Images as data URIs, for pages that are one file."""

import base64
import io

from PIL import Image

_PHOTO = dict(format="WEBP", quality=80, method=4)


def photo_uri(pixels):
    """`[H, W, 3]` uint8 RGB, with losses that are hard to see."""
    return _encoded("image/webp", Image.fromarray(pixels), **_PHOTO)


def film_uri(pictures, milliseconds):
    """PIL images as one that shows each for so long, and begins again after the last."""
    settings = dict(save_all=True, append_images=pictures[1:], duration=round(milliseconds), loop=0)
    return _encoded("image/webp", pictures[0], **_PHOTO, **settings)


def exact_uri(pixels):
    """`[H, W, 3]` uint8 RGB, without losses."""
    return _encoded("image/png", Image.fromarray(pixels), format="PNG", optimize=True)


def classes_uri(ids, palette):
    """A class map `[H, W]` uint8 in the colours of `palette` `[256, 3]`, without losses."""
    image = Image.fromarray(ids)
    image.putpalette(palette.tobytes())
    return _encoded("image/png", image, format="PNG", optimize=True)


def _encoded(kind, image, **settings):
    file = io.BytesIO()
    image.save(file, **settings)
    return f"data:{kind};base64,{base64.b64encode(file.getvalue()).decode()}"
