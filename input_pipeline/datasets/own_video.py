"""Somebody's own videos, without labels: the frames that `own_video.ingest` has kept of them."""

from pathlib import Path

from input_pipeline.dataset import ClipFiles, Dataset, flow_folders
from input_pipeline.errors import UserError
from input_pipeline.own_video.manifest import FRAMES, read_manifest


def list_clips(spec):
    """Lists the clips that were chosen for a split.

    Raises:
      UserError: clips of so many frames were not kept.
    """
    root = Path(spec.raw_dir)
    stored = read_manifest(root)
    clips = []
    for clip in stored["clips"][spec.split] if stored else ():
        frames = clip["frames"]
        if len(frames) <= max(spec.offsets):
            raise UserError(
                f"{root}: the clips of {spec.split} have {len(frames)} frames, and frames {spec.offsets} are asked "
                f"for. Set --config.data.target.offsets={tuple(range(max(spec.offsets) + 1))}."
            )
        flows = {}
        for a, b in spec.flow_pairs if spec.flow_source == "precomputed" else ():
            video, current, earlier = Path(frames[a]).parent.name, Path(frames[a]).stem, Path(frames[b]).stem
            flows[a, b] = flow_folders(spec)[0] / flow_name(video, int(current), int(earlier))
        clips.append(ClipFiles(clip["name"], None, {k: root / frames[k] for k in spec.offsets}, flows))
    return sorted(clips, key=lambda clip: clip.name)


def flow_name(video, current, earlier):
    """Names the file with the flow from frame `current` into frame `earlier`."""
    return f"{video}_{current:06d}_{earlier:06d}_int16_x10.npy"


OWN_VIDEO = Dataset(
    name="own_video",
    folders=lambda spec: [(Path(spec.raw_dir) / FRAMES, None)],
    expected="the frames that a run has kept of a folder of videos, with manifest.json",
    list_clips=list_clips,
    flow_name=flow_name,
    splits={"train": False, "val": False},
)
