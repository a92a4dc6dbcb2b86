"""From a run's configuration to open data sets: which folder, which split, prepared where."""

import dataclasses
from pathlib import Path

from input_pipeline import run_folder
from input_pipeline.clips import open_clips
from input_pipeline.errors import UserError
from input_pipeline.prepare import prepare
from input_pipeline.spec import DatasetSpec
from input_pipeline.worlds import WorldSpec, write_worlds

# Where a user finds the folders that a configuration must name.
HOW_TO = "See docs/real_data.md for how to get the set and how its folder must look."
FLOW_SOURCES = ("dis", "precomputed", "flownet2")


def domain_spec(config, domain, needs=None, workdir=""):
    """Describes one prepared set.

    Args:
      config: the run's configuration.
      domain: `source` (training clips with labels), `target` (training clips) or `val` (target clips that are scored).
      needs: what else must be in the set: an object with `offsets` and `flow_pairs`, or None.
      workdir: holds the flow files that `flow.source=flownet2` has written, unless `data.*.flow_dir` says otherwise.

    Returns:
      A `DatasetSpec`.

    Raises:
      UserError: the folder is not configured, or `flow.source` is unknown.
    """
    if config.flow.source not in FLOW_SOURCES:
        raise UserError(f"config.flow.source: expected {', '.join(FLOW_SOURCES)}, found {config.flow.source!r}.")
    key = "source" if domain == "source" else "target"
    section = config.data[key]
    if not section.raw_dir:
        raise UserError(
            f"config.data.{key}.raw_dir is not set: it names the folder of {section.name} as its owner ships it. "
            f"Set --config.data.{key}.raw_dir=FOLDER. {HOW_TO}"
        )
    if domain == "val":
        # Temporal consistency compares the predictions for x_t and x_{t-1}, and the latter is fused with x_{t-2}.
        offsets, pairs = {0, 1, 2}, {(0, 1), (1, 2)}
    else:
        offsets = set(section.offsets) | set(needs.offsets if needs else ())
        pairs = {tuple(p) for p in section.flow_pairs} | {tuple(p) for p in (needs.flow_pairs if needs else ())}
    val = domain == "val"
    estimated = config.flow.source == "flownet2"  # by `stpl_jax.flow`, before the set is prepared
    return DatasetSpec(
        name=section.name,
        raw_dir=str(Path(section.raw_dir).expanduser()),
        split=section.val_split if val else section.train_split,
        classes=config.data.classes,
        size=tuple(section.size),
        label_size=None if val else tuple(section.size),
        offsets=tuple(sorted(offsets)),
        flow_pairs=tuple(sorted(pairs)),
        flow_source="precomputed" if estimated else config.flow.source,
        flow_dir=str(flow_folder(config, workdir, domain)) if estimated else _flow_dir(config, domain),
        flow_scale=config.flow.scale,
        list_file=(section.val_list if val else section.list) or "",
        skip_bad=config.data.skip_bad,
    )


def flow_folder(config, workdir, domain):
    """Returns where a domain's flow is written to: its configured `flow_dir`, or else `<workdir>/flow/<domain>`."""
    return Path(_flow_dir(config, domain) or run_folder.flow(workdir, domain))


def _flow_dir(config, domain):
    section = config.data["source" if domain == "source" else "target"]
    return (section.val_flow_dir if domain == "val" else section.flow_dir) or ""


def open_domain(config, workdir, domain, needs=None, progress=print):
    """Opens one domain's clips, generating and preparing first what is not there yet.

    Args:
      config: the run's configuration.
      workdir: where generated videos and prepared sets go, unless `config.data.prepared_dir` says otherwise.
      domain, needs: as `domain_spec` takes them.
      progress: called with lines of text.

    Returns:
      A `ClipSource`.
    """
    config = with_world(config, workdir, progress)
    prepared = run_folder.prepared(config, workdir)
    return open_clips(prepare(domain_spec(config, domain, needs, workdir), prepared, progress))


def with_world(config, workdir, progress=print):
    """Writes the generated videos if the configuration asks for them, and returns it pointing at their folders."""
    if not config.world.generate:
        return config
    config = config.copy_and_resolve_references()
    paths = write_worlds(world_spec(config), Path(workdir) / run_folder.WORLD, progress)
    with config.unlocked():
        config.data.source.raw_dir = str(paths["source"])
        config.data.target.raw_dir = str(paths["target"])
        if config.flow.source == "precomputed":
            # The true flow. Estimated flow must not be written among these files, nor taken to be there already.
            config.data.source.flow_dir = str(paths["source_flow"])
            config.data.target.flow_dir = str(paths["target_flow"])
            config.data.target.val_flow_dir = str(paths["target_flow"])
        config.world.video = str(paths["video"])
    return config


def world_spec(config):
    """Reads the generated world's settings: `config.world`, with the run's seed."""
    names = {field.name for field in dataclasses.fields(WorldSpec)} - {"seed"}
    return WorldSpec(seed=config.seed, **{name: config.world[name] for name in names if name in config.world})
