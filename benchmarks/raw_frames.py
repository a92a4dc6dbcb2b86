"""Raw clips in Cityscapes-Seq's layout that cost as much to read as real ones: smooth shapes, fine texture, noise.

A PNG's size and the time that it takes to decode follow its texture. Frames of 1024×2048 come out at about 2.3 MB;
those of Cityscapes-Seq have 2.2 MB on average (324 GB, 150,000 frames).
"""

from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from input_pipeline import flow_files, optical_flow
from input_pipeline.datasets import DATASETS

CITY = "aachen"
_LABELLED = 19
_IDS = (7, 8, 11, 21, 22, 23, 24, 26)
# (size of a patch in pixels, spread of its brightness), from shapes to texture.
_PATCHES = ((128, 45.0), (32, 22.0), (8, 9.0), (3, 4.0))
_GREY = 105.0
_NOISE = 0.8
_COLOUR_SHARE = 0.2


def draw_texture(random, size):
    """Draws a frame without noise.

    Args:
      random: numpy `Generator`.
      size: (height, width).

    Returns:
      `[H, W, 3]` float32, about 0 to 255.
    """
    height, width = size
    frame = np.full((height, width, 3), _GREY, np.float32)
    for side, spread in _PATCHES:
        patches = random.normal(0, spread, (height // side + 2, width // side + 2, 3)).astype(np.float32)
        # Colours of streets are pale: most of a patch is grey.
        patches = (1 - _COLOUR_SHARE) * patches.mean(2, keepdims=True) + _COLOUR_SHARE * patches
        frame += cv2.resize(patches, (width, height), interpolation=cv2.INTER_CUBIC)
    return frame


def draw_pair(seed, size):
    """Draws a frame and the one before it: the camera drives ahead, and parts move on their own.

    Args:
      seed: whole number.
      size: (height, width).

    Returns:
      (x_t, x_{t-1}), both `[H, W, 3]` uint8 RGB.
    """
    random, (height, width) = np.random.default_rng(seed), size
    current = draw_texture(random, size)
    y, x = np.mgrid[:height, :width].astype(np.float32)
    coarse = random.uniform(0, height / 128, (height // 128 + 2, width // 128 + 2, 2)).astype(np.float32)
    own = cv2.resize(coarse, (width, height))
    # What lies at (y, x) in the earlier frame has moved outwards to (y + v, x + u).
    u, v = 0.02 * (x - width / 2) + own[..., 0], 0.02 * (y - height / 2) + own[..., 1]
    earlier = cv2.remap(current, x + u, y + v, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT)
    noisy = (frame + random.normal(0, _NOISE, (*size, 1)).astype(np.float32) for frame in (current, earlier))
    return tuple(np.clip(np.rint(frame), 0, 255).astype(np.uint8) for frame in noisy)


def write_raw(root, flow_dir, count, raw_size, size):
    """Writes labelled pairs of frames in their owner's layout, and flow files for them.

    Args:
      root: folder for the layout.
      flow_dir: folder for the flow, estimated by DIS at the training size.
      count: number of clips.
      raw_size: (height, width) of frames and labels.
      size: (height, width) of the flow.

    Returns:
      List of dicts: `name`, `frames` (paths of x_t and x_{t-1}), `flow` (path), all text.
    """
    root, clips = Path(root), []
    images, labels = root / "leftImg8bit_sequence" / "train" / CITY, root / "gtFine" / "train" / CITY
    for folder in (images, labels):
        folder.mkdir(parents=True)
    for i in range(count):
        stem, name = f"{CITY}_{i:06d}", f"{CITY}_{i:06d}_{_LABELLED:06d}"
        pair = [Image.fromarray(frame) for frame in draw_pair(i, raw_size)]
        paths = [images / f"{stem}_{_LABELLED - k:06d}_leftImg8bit.png" for k in (0, 1)]
        for image, path in zip(pair, paths, strict=True):
            # PIL chooses each row's filter and deflates at level 6, as libpng does unless told otherwise.
            image.save(path)
        ids = np.random.default_rng(i).choice(np.array(_IDS, np.uint8), (8, 16))
        ids = cv2.resize(ids, raw_size[::-1], interpolation=cv2.INTER_NEAREST)
        Image.fromarray(ids).save(labels / f"{name}_gtFine_labelIds.png")
        small = [np.asarray(image.resize(size[::-1], Image.Resampling.BICUBIC)) for image in pair]
        flow = Path(flow_dir) / DATASETS["cityscapes_seq"].flow_name(name.rpartition("_")[0], _LABELLED, _LABELLED - 1)
        flow_files.write_flow(flow, optical_flow.dis_flow(*small))
        clips.append({"name": name, "frames": [str(path) for path in paths], "flow": str(flow)})
    return clips
