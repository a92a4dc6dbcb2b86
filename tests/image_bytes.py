"""PNG and TIFF files written byte by byte, for kinds that no library writes, and independent of those that read."""

import struct
import zlib

import numpy as np

GREY, RGB, PALETTE, GREY_ALPHA, RGBA = 0, 2, 3, 4, 6


def chunk(kind, data):
    """Returns one chunk of a PNG file."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(values, depth, colours, *chunks):
    """Returns a PNG file.

    Args:
      values: `[H, W]` or `[H, W, C]` whole numbers.
      depth: bits of a value.
      colours: colour type, one of the constants above.
      chunks: chunks between header and pixels, such as palette and transparency.
    """
    values = np.asarray(values)
    height, width = values.shape[:2]
    rows = b""
    for row in values.reshape(height, -1):
        bits = "".join(format(int(value), f"0{depth}b") for value in row)
        rows += b"\0" + int(bits.ljust(-(-len(bits) // 8) * 8, "0"), 2).to_bytes(-(-len(bits) // 8), "big")
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colours, 0, 0, 0))
    pixels = chunk(b"IDAT", zlib.compress(rows))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(chunks) + pixels + chunk(b"IEND", b"")


def tiff(values, depth, photometric=1, sample_format=1, order="<", extra=None):
    """Returns an uncompressed TIFF file of one strip.

    Args:
      values: `[H, W]` or `[H, W, C]` of a dtype that fits `depth`; for 12 bits any whole numbers.
      depth: bits of a value.
      photometric: 0 white is zero, 1 black is zero, 2 RGB, 8 CIELab.
      sample_format: 1 unsigned, 2 signed, 3 floating-point.
      order: `<` for little-endian files, `>` for big-endian ones.
      extra: what the last channel is: 1 premultiplied alpha, 2 alpha; None for no such channel.
    """
    values = np.asarray(values)
    height, width = values.shape[:2]
    channels = values.shape[2] if values.ndim == 3 else 1
    if depth == 12:
        bits = "".join(format(int(value), "012b") for value in values.ravel())
        data = int(bits, 2).to_bytes(len(bits) // 8, "big")
    else:
        data = values.astype(values.dtype.newbyteorder(order)).tobytes()
    # (tag, type, values); 3 is a short number, 4 a long one.
    tags = [
        (256, 3, [width]),
        (257, 3, [height]),
        (258, 3, [depth] * channels),
        (259, 3, [1]),
        (262, 3, [photometric]),
        (273, 4, None),
        (277, 3, [channels]),
        (278, 3, [height]),
        (279, 4, [len(data)]),
    ]
    tags += [] if extra is None else [(338, 3, [extra])]
    tags += [(339, 3, [sample_format] * channels)]
    behind = 8 + 2 + 12 * len(tags) + 4
    long_values = b""
    entries = b""
    for tag, kind, content in tags:
        content = content or [behind + 2 * channels * 2]
        packed = b"".join(struct.pack(order + ("H" if kind == 3 else "I"), value) for value in content)
        if len(packed) > 4:
            entries += struct.pack(order + "HHII", tag, kind, len(content), behind + len(long_values))
            long_values += packed
        else:
            entries += struct.pack(order + "HHI", tag, kind, len(content)) + packed.ljust(4, b"\0")
    start = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "IH", 8, len(tags))
    return start + entries + b"\0\0\0\0" + long_values.ljust(2 * channels * 2, b"\0") + data
