"""From a run's configuration to open data sets: which folder, which split, prepared where."""

import dataclasses
from pathlib import Path

from input_pipeline import labels, optical_flow, run_folder
from input_pipeline.builders import checks
from input_pipeline.clips import open_clips
from input_pipeline.datasets import DATASETS
from input_pipeline.errors import UserError
from input_pipeline.files import expand
from input_pipeline.own_video.ingest import IngestSettings, ingest
from input_pipeline.own_video.manifest import read_manifest
from input_pipeline.prepare import prepare
from input_pipeline.spec import DatasetSpec, prepared_path
from input_pipeline.world.generate import WorldSpec, write_worlds

# Where a user finds the folders that a configuration must name.
HOW_TO = "See docs/real_data.md for how to get the set and how its folder must look."
# What scoring reads: x_t is fused with x_{t-1}. Temporal consistency compares x_t's classes with x_{t-1}'s, which is
# fused with x_{t-2}.
SCORED_OFFSETS = (0, 1, 2)
SCORED_PAIRS = ((0, 1), (1, 2))


def domain_spec(config, domain, needs=None, workdir=""):
    """Describes one prepared set.

    Args:
      config: the run's configuration.
      domain: `source` (training clips with labels), `target` (training clips) or `val` (target clips that are scored).
      needs: what else must be in the set: an object with `offsets` and `flow_pairs`, or None.
      workdir: holds the flow files that `flow.files=write` has written, unless `data.*.flow_dir` says otherwise.

    Returns:
      A `DatasetSpec`. That of `val` is without x_{t-2} where flow is read from files and those from x_{t-1} into
      x_{t-2} are not all there: mIoU does not need it, and temporal consistency is left out.

    Raises:
      UserError: a folder is not configured, or `config.flow` does not fit, see `check_flow`.
    """
    check_flow(config)
    key = "source" if domain == "source" else "target"
    section = config.data[key]
    if not section.raw_dir:
        raise UserError(
            f"config.data.{key}.raw_dir is not set: it names the folder of {section.name} as its owner ships it. "
            f"Set --config.data.{key}.raw_dir=FOLDER. {HOW_TO}"
        )
    if domain == "val":
        offsets, pairs = SCORED_OFFSETS, SCORED_PAIRS
    else:
        offsets = set(section.offsets) | set(needs.offsets if needs else ())
        pairs = {tuple(p) for p in section.flow_pairs} | {tuple(p) for p in (needs.flow_pairs if needs else ())}
    val = domain == "val"
    files, estimator = config.flow.files, config.flow.estimator
    name = "val_flow_dir" if val else "flow_dir"
    flow_dir = section[name] or (run_folder.flow(workdir, domain) if files == "write" else "")
    if files == "read" and pairs and not flow_dir:
        raise UserError(
            f"config.data.{key}.{name} is not set: it names the folder of the flow files that config.flow.files=read "
            f"reads. Set --config.data.{key}.{name}=FOLDER, or --config.flow.files=none. {HOW_TO}"
        )
    drives = DATASETS[section.name].drives
    if drives and not section.drive:
        raise UserError(
            f"config.data.{key}.drive is not set, and {section.name} is read one drive at a time. Set "
            f"--config.data.{key}.drive to one of {', '.join(drives)}."
        )
    split = section.val_split if val else section.train_split
    setting = labels.setting_of(section.name, split, config.data.classes)
    if setting is None and needs and needs.labels:
        raise UserError(
            f"{section.name} ({split}) has no labels, and training reads them: config.data.{key}.name names the set."
        )
    if needs and needs.labels and setting != config.data.classes:
        raise UserError(
            f"{section.name} has labels of the classes of {setting}, and training with labels needs those of "
            f"config.data.classes={config.data.classes}."
        )
    spec = DatasetSpec(
        name=section.name,
        raw_dir=str(expand(section.raw_dir)),
        split=split,
        classes=setting,
        size=tuple(section.size),
        label_size=None if val else tuple(section.size),
        offsets=tuple(sorted(offsets)),
        flow_pairs=tuple(sorted(pairs)),
        flow_source=estimator if files == "none" else "precomputed",
        flow_estimator=estimator if files == "write" else "",
        flow_dir=str(expand(flow_dir)),
        flow_scale=config.flow.scale,
        list_file=str(expand((section.val_list if val else section.list) or "")),
        skip_bad=config.data.skip_bad,
        drive=section.drive or "",
    )
    if val and files == "read" and not _measures_consistency(config, workdir, spec):
        return dataclasses.replace(spec, offsets=SCORED_OFFSETS[:2], flow_pairs=SCORED_PAIRS[:1])
    return spec


def check_flow(config):
    """Raises `UserError` where flow is to be estimated while sets are prepared, by what does not run on the host."""
    estimator = config.flow.estimator
    if config.flow.files == "none" and estimator not in optical_flow.ESTIMATORS:
        raise UserError(
            f"config.flow.estimator={estimator} does not run while sets are prepared, and config.flow.files=none asks "
            "for that. Set --config.flow.files=write: flow files are estimated first, then read."
        )


def _measures_consistency(config, workdir, spec):
    """Whether a validation set with flow from files is to hold what temporal consistency needs.

    All of its files have to be there: of part of the clips it could not be compared with other scores.
    """
    fused, earlier = (flow_files_there(spec, pair) for pair in SCORED_PAIRS)
    if not fused[0]:
        # Nothing that could decide is there, any more: what was prepared does.
        return prepared_path(spec, run_folder.prepared(config, workdir)).is_dir()
    return earlier[0] == earlier[1]


def flow_files_there(spec, pair):
    """Counts the flow files of one pair of frames over a set's clips.

    Args:
      spec: `DatasetSpec` that reads precomputed flow.
      pair: (a, b), one of its pairs.

    Returns:
      (number of files that are there, number of files that clips ask for).
    """
    clips, _ = checks.list_clips(spec)
    files = {clip.flows[pair] for clip in clips}
    return sum(file.is_file() for file in files), len(files)


def prepare_domain(config, workdir, domain, needs=None, progress=print):
    """Generates and prepares one domain's clips, unless they are there.

    Args:
      config: the run's configuration.
      workdir: where generated videos and prepared sets go, unless `config.data.prepared_dir` says otherwise.
      domain, needs: as `domain_spec` takes them.
      progress: called with lines of text.

    Returns:
      Path of the prepared set.
    """
    config = with_world(config, workdir, progress)
    return prepare(domain_spec(config, domain, needs, workdir), run_folder.prepared(config, workdir), progress)


def open_domain(config, workdir, domain, needs=None, progress=print):
    """As `prepare_domain`, and opens the set: returns a `ClipSource`."""
    return open_clips(prepare_domain(config, workdir, domain, needs, progress), needs)


def check_same_data(before, sources, folder):
    """Checks that a row goes on with the clips that it was begun with.

    Args:
      before: domain -> `ClipSource.digest`, as a checkpoint has noted it; domains without an entry are not compared.
      sources: domain -> `ClipSource` of now.
      folder: of the row, for the message.

    Raises:
      UserError: names each domain whose clips are other ones.
    """
    changed = [domain for domain, source in sources.items() if before.get(domain, source.digest) != source.digest]
    if changed:
        lines = "\n".join(f"  {domain}: {sources[domain].path}" for domain in changed)
        raise UserError(
            f"{folder} was begun with other clips than there are now (raw files have changed since):\n{lines}\n"
            "Use another --workdir, delete that folder to begin the row again, or put the raw files back."
        )


def with_world(config, workdir, progress=print):
    """Writes the generated videos if the configuration asks for them, and returns it pointing at their folders."""
    if not config.world.generate:
        return config
    config = config.copy_and_resolve_references()
    paths = write_worlds(world_spec(config), Path(workdir) / run_folder.WORLD, progress)
    with config.unlocked():
        config.data.source.raw_dir = str(paths["source"])
        config.data.target.raw_dir = str(paths["target"])
        if config.flow.files == "read":
            # The true flow. Estimated flow must not be written among these files, nor taken to be there already.
            config.data.source.flow_dir = str(paths["source_flow"])
            config.data.target.flow_dir = str(paths["target_flow"])
            config.data.target.val_flow_dir = str(paths["target_flow"])
        config.world.video = str(paths["video"])
    return config


def with_own_video(config, workdir, progress=print, frames=2):
    """Keeps frames of a user's own videos if the configuration asks for that, and returns it pointing at them.

    Args:
      config: the run's configuration; where `data.target.name` is `own_video`, `data.target.raw_dir` is a folder of
        videos and frames, and `data.target.size` the size that the model was trained at.
      workdir: the run's folder.
      progress: called with lines of text.
      frames: how many of a training clip the run's rows read.

    Returns:
      The configuration as it is for other sets; else a copy whose `data.target.raw_dir` is the folder of kept frames,
      and `data.target.size` their size.

    Raises:
      UserError: nothing usable is in the folder, or no folder is named.
    """
    section = config.data.target
    if section.name != "own_video":
        return config
    if not section.raw_dir:
        raise UserError(
            "config.data.target.raw_dir is not set: it names a folder of your own videos. Set "
            "--config.data.target.raw_dir=FOLDER. See docs/own_video.md for what it may hold."
        )
    folder, into = expand(section.raw_dir), expand(run_folder.own_video(workdir))
    if folder == into and (stored := read_manifest(into)):
        size = tuple(stored["size"])  # it points at them already
    else:
        # As long as held-out ones at least: another row that needs three frames finds them.
        length = max(frames, len(SCORED_OFFSETS), *(k + 1 for k in section.offsets))
        settings = IngestSettings(
            size=tuple(section.size),
            fit=section.fit,
            frames_per_second=section.frames_per_second,
            max_clips=section.max_clips,
            held_out=section.held_out,
            length=length,
        )
        size = ingest(folder, into, settings, progress).size
    config = config.copy_and_resolve_references()
    with config.unlocked():
        config.data.target.update(raw_dir=str(into), size=size)
    return config


def world_spec(config):
    """Reads the generated world's settings: `config.world`, with the run's seed."""
    names = {field.name for field in dataclasses.fields(WorldSpec)} - {"seed"}
    return WorldSpec(seed=config.seed, **{name: config.world[name] for name in names if name in config.world})
