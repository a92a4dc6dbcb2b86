"""The one reader of pictures: whatever kind of image file it is, it comes out as a person sees it.

| in the file | what is done |
| --- | --- |
| 8-bit grey or RGB | taken as it is |
| 1, 2 or 4-bit grey, palette, YCbCr, CMYK, CIELab | turned into RGB |
| 16 bits | the high byte of each value, so 65535 is white in every file; 12 bits of a 12-bit TIFF likewise |
| 32-bit integers, signed or floating-point values | refused: a file does not say which value is white |
| alpha, or a transparent colour | laid over white |
| EXIF orientation 1 to 8 | turned upright |
| several pictures (animation, pages) | refused; of a camera's multi-picture JPEG, the first is the photo |
| colour profile, gamma | not applied: values are taken as sRGB, as the readers of the field's sets do |
| cut off, damaged, or past PIL's limit of 179 million pixels | refused |

The scale of 16-bit values is that of the file type, never that of the frame: a frame that is stretched to its own
brightest value would make a video flicker. Cameras that store 10 to 14 bits in 16 therefore come out dark; the first
such file of a folder gives a warning.
"""

import dataclasses
import io
import stat
import warnings
import zlib
from pathlib import Path

import numpy as np
from PIL import Image

from input_pipeline.errors import UserError

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")

# By content, whatever the name says. Others of PIL's start programs (EPS) or are no pictures of cameras.
_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF")
_PNG_START = b"\x89PNG\r\n\x1a\n"
_ORIENTATION = 0x0112
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_TIFF_BITS, _TIFF_PHOTOMETRIC, _WHITE_IS_ZERO = 258, 262, 0
# 14 bits in 16: a picture that keeps below this in 8 bits has not used the upper two.
_DARK = 64


@dataclasses.dataclass(frozen=True)
class Stored:
    """A decoded image file, its pixels as they are stored.

    Attributes:
      image: PIL image, completely loaded, in the file's own mode. PIL itself turns TIFF files upright.
      format: `PNG`, `JPEG`, `MPO`, `WEBP`, `BMP` or `TIFF`.
      depth: bits of a value; 8 where the format knows no other.
      orientation: EXIF orientation, 1 to 8; 1 is upright.
    """

    image: Image.Image
    format: str
    depth: int
    orientation: int


def decode(path):
    """Decodes an image file completely.

    Args:
      path: image file; its content decides, not its name.

    Returns:
      `Stored`.

    Raises:
      OSError: there is no such file, or it cannot be read.
      UserError: another kind of file, an animation, or a file that is cut off or damaged; names it.
    """
    path = Path(path)
    # A pipe would never end.
    if not stat.S_ISREG(path.stat().st_mode):
        raise UserError(f"{path}: a folder, a pipe or a device, where an image file was expected.")
    data = path.read_bytes()
    if not data:
        raise UserError(f"{path}: an empty file (0 bytes), where an image was expected.")
    try:
        _check_png(data)
        with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
            pictures = getattr(image, "n_frames", 1) if image.format != "MPO" else 1
            orientation = _orientation(image)
            image.load()
            # PNG files may say it behind the pixels.
            orientation = _orientation(image) if orientation == 1 else orientation
            stored = Stored(image, image.format, _depth(image, data), orientation)
    except Image.UnidentifiedImageError:
        kinds = "PNG, JPEG, WebP, BMP or TIFF"
        raise UserError(f"{path}: cannot be decoded as {kinds}; it starts with {data[:16]!r}.") from None
    # PIL's decoders raise many types on broken data (OSError, SyntaxError, struct.error, …).
    except Exception as error:
        raise UserError(f"{path}: cannot be decoded ({str(error) or type(error).__name__}).") from error
    if pictures > 1:
        raise UserError(
            f"{path}: {pictures} pictures in one file (animation or pages), where one was expected. Split it up."
        )
    return stored


def _check_png(data):
    """Compares the checksums of a PNG file's own parts, which PIL leaves out for the pixels: raises ValueError."""
    if not data.startswith(_PNG_START):
        return
    start = len(_PNG_START)
    while start + 8 <= len(data):
        length, name = int.from_bytes(data[start : start + 4]), data[start + 4 : start + 8]
        end = start + 8 + length
        # Names in lower case are of parts that nothing depends on. What is cut off is found in decoding.
        checked = name[:1].isupper() and end + 4 <= len(data)
        if checked and zlib.crc32(data[start + 4 : end]) != int.from_bytes(data[end : end + 4]):
            raise ValueError(f"damaged: the checksum of its part {name.decode('latin-1')} is wrong")
        start = end + 4


def read_image(path):
    """Reads an image file as a person sees it; the module's table says what that means.

    Args:
      path: PNG, JPEG, WebP, BMP or TIFF file; its content decides, not its name.

    Returns:
      PIL image in mode RGB, 8 bits; its `info["orientation"]` is the EXIF orientation that was undone, 1 for none.

    Raises:
      OSError: there is no such file, or it cannot be read.
      UserError: the file cannot be decoded, or holds pixels without a known scale; names it.
    """
    stored = decode(path)
    image = _opaque(path, _eight_bits(path, stored))
    if stored.depth > 8 and 0 < max(high for _, high in image.getextrema()) < _DARK:
        # Without the file's name, so that Python shows it once for a folder.
        warnings.warn(
            f"{Path(path).parent}: 16-bit images that use the lowest quarter of their range or less come out dark. If "
            "a camera stored 10, 12 or 14 bits in 16, multiply the values (12 bits: by 16) before they are used.",
            stacklevel=2,
        )
    if stored.orientation in _TURNS and stored.format != "TIFF":
        image = image.transpose(_TURNS[stored.orientation])
    image.info["orientation"] = stored.orientation
    return image


def _orientation(image):
    try:
        found = image.getexif().get(_ORIENTATION, 1)
    # Damaged EXIF data is no reason to refuse a picture.
    except Exception:
        return 1
    return found if found in _TURNS else 1


def _depth(image, data):
    if image.format == "PNG":
        return data[24]
    if image.format == "TIFF":
        return max(image.tag_v2.get(_TIFF_BITS, (8,)))
    return 8


def _eight_bits(path, stored):
    """Scales values to 8 bits; a transparent colour of such a file becomes alpha."""
    image, depth = stored.image, stored.depth
    key = image.info.get("transparency")
    if image.mode in ("I", "F"):
        kind = "floating-point" if image.mode == "F" else "32-bit or signed"
        raise UserError(
            f"{path}: {kind} values, and the file does not say which of them is white. Save it with 8 or 16 bits."
        )
    if image.mode.startswith("I;16"):
        values = np.asarray(image)
        shown = (values >> (depth - 8)).astype(np.uint8)
        if stored.format == "TIFF" and image.tag_v2.get(_TIFF_PHOTOMETRIC) == _WHITE_IS_ZERO:
            shown = 255 - shown
        if key is None:
            return Image.fromarray(shown)
        return Image.fromarray(np.stack([shown, np.where(values == key, 0, 255).astype(np.uint8)], -1))
    if depth == 16 and isinstance(key, tuple):
        raise UserError(
            f"{path}: 16-bit colours of which one is transparent, which is not read. Save it without transparency."
        )
    if image.mode == "L" and depth in (2, 4) and key is not None:
        # PIL scales the values, not the transparent one.
        image = image.copy()
        image.info["transparency"] = key * 255 // (2**depth - 1)
    if image.mode == "La":
        grey, alpha = (image.getchannel(band) for band in image.getbands())
        return Image.merge("RGBa", (grey, grey, grey, alpha))
    return image


def _opaque(path, image):
    """Lays what is transparent over white."""
    if not image.has_transparency_data:
        return image.convert("RGB")
    image = image.convert("RGBA")
    if image.getchannel("A").getextrema()[1] == 0:
        raise UserError(f"{path}: a picture that is transparent everywhere. Save it without its alpha channel.")
    below = Image.new("RGBA", image.size, "white")
    below.alpha_composite(image)
    return below.convert("RGB")
