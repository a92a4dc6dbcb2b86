"""Networks side by side in feature space: class variances, neighbours, t-SNE, feature maps (paper, Figures 6 to 8).

All networks are asked about the same pixels of the validation set, by the features of the backbone's last stage,
normalised as in evaluation.
"""

import functools
import json
import math
from pathlib import Path
from typing import NamedTuple

import cv2
import jax
import numpy as np

from input_pipeline.clips import read_clip
from input_pipeline.domains import open_domain
from input_pipeline.errors import UserError
from input_pipeline.labels import colour_table, model_classes, shown_classes
from stpl_jax import checkpoint, checkpoint_digests, model_choice, predict
from stpl_jax.checkpoint_reading import flat
from stpl_jax.metrics import feature_space
from stpl_jax.report import charts, pictures
from stpl_jax.report.analysis_files import write_results
from stpl_jax.rows import row_names

_TSNE_STEPS = 500


class AnalysisError(UserError):
    """There is nothing to analyse."""


class Sample(NamedTuple):
    """What every network is asked about.

    Attributes:
      clips: indices of validation clips, N of them.
      places: `[P, 3]`: which of the N clips, row, column.
      classes: `[P]` train ids, of the set's classes (`labels.shown_classes`).
      few: indices of the pixels that the scatter plots show, at most `config.analysis.tsne_pixels` of each class.
      shown: which of the N clips have their feature maps drawn.
    """

    clips: tuple[int, ...]
    places: np.ndarray
    classes: np.ndarray
    few: np.ndarray
    shown: tuple[int, ...]


def find_checkpoints(config, workdir, wanted=()):
    """Finds the checkpoints that are to be compared.

    Args:
      config: the run's configuration.
      workdir: the run's folder.
      wanted: rows of the run, paths as `checkpoint.load_model` takes them, or NAME=PATH; none for every row that has a
        checkpoint, the given source model among them.

    Returns:
      name -> path for `checkpoint.load_model`, in order.

    Raises:
      CheckpointError: one that is wanted is not there, there is none at all, or two would have one name.
    """
    workdir = Path(workdir)
    if not wanted:
        return model_choice.table_models(config, workdir, ", or name some by --checkpoints=PATH,NAME=PATH")[0]
    found = {}
    for entry in wanted:
        given, _, path = entry.rpartition("=")
        name = given or path
        if name in found or given in row_names(config):
            what = f"{name} twice" if name in found else f"{entry}, and {name} is a row of this run"
            raise checkpoint.CheckpointError(f"--checkpoints has {what}: give another name by NAME=PATH.")
        found[name] = model_choice.row_or_path(config, workdir, path, f"--checkpoints={entry}")
    return found


def present_checkpoints(config, workdir, rows):
    """Finds the models of rows; rows without one are left out: row -> path for `checkpoint.load_model`."""
    return {row: path for row in rows if (path := model_choice.row_model(config, workdir, row))}


def analyse(config, workdir, checkpoints, progress=print):
    """Compares networks, and writes `<workdir>/analysis/`: `analysis.json`, `analysis.md`, and their pictures.

    Only the first process writes.

    Args:
      config: the run's configuration; `config.analysis` says how much is looked at.
      workdir: the run's folder.
      checkpoints: name -> path, of `find_checkpoints`.
      progress: called with lines of text.

    Raises:
      CheckpointError: the networks differ in classes or feature grid, or a class name is not the run's.
    """
    if jax.process_index():
        return
    settings, (classes, setting) = config.analysis, shown_classes(config.data)
    models = {name: predict.load(path, tell=progress) for name, path in checkpoints.items()}
    for name, model in models.items():
        progress(f"analyse  {name}: {model.description}")
    source = open_domain(config, workdir, "val", progress=progress)
    sample = draw_sample(config, source, _common_grid(models, source.spec.size, model_classes(config.data)))
    chosen = [classes.index(name) for name in settings.tsne_classes if name in classes]
    subsets = {"all": list(range(len(classes)))} | ({"chosen": chosen} if chosen else {})

    found, tsne, files, features, maps = {}, {name: {} for name in subsets}, {}, {}, {}
    palette = colour_table(classes, setting)
    for i, (name, model) in enumerate(models.items()):
        features[name], maps[name] = _extract(model, source, sample)
        found[name] = {"path": str(model.path), "fingerprint": _fingerprint(model.variables)}
        found[name] |= _measure(features[name], sample.classes, settings.neighbours, subsets)
        for subset, members in subsets.items():
            few = sample.few[np.isin(sample.classes[sample.few], members)]
            tsne[subset][name] = f"tsne_{subset}_{i}.png"
            plot = charts.scatter_plot(embed(features[name][few], config.seed), palette[sample.classes[few]])
            files[tsne[subset][name]] = plot
        variances = found[name]["variances"]["all"]
        progress(f"analyse  {name}  σ_intra {variances['intra']:.4f}  σ_inter {variances['inter']:.4f}")

    panels = _map_panels(source, sample, palette, _coloured(features, maps))
    results = {
        "checkpoints": found,
        "neighbours": list(settings.neighbours),
        "pixels": {name: int((sample.classes == i).sum()) for i, name in enumerate(classes)},
        "clips": len(sample.clips),
        "subsets": {subset: [classes[i] for i in members] for subset, members in subsets.items()},
        "settings": json.loads(settings.to_json_best_effort()),
        "seed": config.seed,
        "pictures": {"knn": "knn.svg", "tsne": tsne, "maps": [{x: file for x, file, _ in clip} for clip in panels]},
    }
    colours = charts.row_colours([*row_names(config), *found], config.method)
    files["knn.svg"] = charts.neighbours_chart(results, colours)
    files |= {file: content for clip in panels for _, file, content in clip}
    progress(f"analyse  {write_results(workdir, results, files)}")


def is_true(results, config, workdir):
    """Whether an earlier analysis tells about the weights that are there: none were trained since.

    `results` are `analysis_files.read_results`'s. A name that is a row of the run means that row's newest checkpoint.
    """
    for name, entry in results["checkpoints"].items():
        try:
            own = model_choice.row_model(config, workdir, name) if name in row_names(config) else None
            stored = checkpoint.load_model(own or entry["path"], tell=lambda line: None)
        except checkpoint.CheckpointError:
            return False
        if _fingerprint(stored.variables) != entry["fingerprint"]:
            return False
    return True


def is_enough(results, config, workdir, names):
    """Whether an earlier analysis is there and true, made with the same settings, and covers these names."""
    return (
        results is not None
        and results["seed"] == config.seed
        and results["settings"] == json.loads(config.analysis.to_json_best_effort())
        and set(names) <= results["checkpoints"].keys()
        and is_true(results, config, workdir)
    )


def _fingerprint(variables):
    return checkpoint_digests.of_json(checkpoint_digests.of_arrays(flat(variables)))


def draw_sample(config, source, grid):
    """Draws clips of the validation set and pixels of the features' grid (h, w): the seed decides, not the networks."""
    settings = config.analysis
    if source.spec.classes is None:
        raise AnalysisError(f"{source.path}: the validation set has no labels, and pixels are drawn by their class.")
    random = np.random.default_rng((config.seed, 0))
    clips = np.sort(random.permutation(len(source))[: settings.clips])
    labels = np.stack(
        [feature_space.nearest_on_grid(read_clip(source, int(i), (), (), label=True)["label"], grid) for i in clips]
    )
    count = len(shown_classes(config.data)[0])
    places, classes = feature_space.sample_pixels(labels, count, settings.pixels, config.seed)
    if not len(places):
        raise AnalysisError(f"{source.path}: no labelled pixel in the {len(clips)} clips that were drawn.")
    few = [random.permutation(np.flatnonzero(classes == c))[: settings.tsne_pixels] for c in range(count)]
    few = random.permutation(np.concatenate(few))  # in any order: no class lies on top
    shown = np.unique(np.linspace(0, len(clips) - 1, min(settings.frames, len(clips))).round().astype(int))
    return Sample(tuple(map(int, clips)), places, classes, few, tuple(map(int, shown)))


def _measure(features, classes, neighbours, subsets):
    """`variances` (subset -> intra, inter) and `same_class_share` (of each k) of features `[P, C]`; None for NaN."""
    variances = {}
    for subset, members in subsets.items():
        chosen = np.isin(classes, members)
        intra = feature_space.intra_class_variance(features[chosen], classes[chosen])
        inter = feature_space.inter_class_variance(features[chosen], classes[chosen])
        variances[subset] = {"intra": _known(intra), "inter": _known(inter)}
    shares = feature_space.neighbour_shares(features, classes, neighbours)
    return {"variances": variances, "same_class_share": [_known(share) for share in shares]}


def _known(value):
    return None if math.isnan(value) else float(value)


def embed(features, seed):
    """Lays features `[P, C]` out in a plane by t-SNE: `[P, 2]`. Too few for it (below three) all lie at the origin."""
    if len(features) < 3:
        return np.zeros((len(features), 2), np.float32)
    # Takes a second to import, and only this needs it.
    from sklearn.manifold import TSNE
    from threadpoolctl import threadpool_limits

    perplexity = min(30.0, (len(features) - 1) / 3)
    layout = TSNE(perplexity=perplexity, init="pca", max_iter=_TSNE_STEPS, random_state=seed)
    # Of so few points: threads that wait for each other take many times as long where cores are busy.
    with threadpool_limits(1):
        return layout.fit_transform(np.ascontiguousarray(features))


def _common_grid(models, size, classes):
    grids = {}
    for name, model in models.items():
        if model.classes != classes:
            raise checkpoint.CheckpointError(
                f"{name} ({model.path}) was trained on classes {', '.join(model.classes)}, and the run's are "
                f"{', '.join(classes)}."
            )
        grids[name] = model.segmenter.feature_shapes(model.variables, size).main.shape[2:]
    if len(set(grids.values())) > 1:
        lines = "\n".join(f"  {name}: {h}x{w}, {c} channels" for name, (h, w, c) in grids.items())
        raise checkpoint.CheckpointError(
            f"The networks' feature maps differ, and the same pixels are compared:\n{lines}"
        )
    return next(iter(grids.values()))[:2]


@functools.partial(jax.jit, static_argnames="segmenter")
def _features(segmenter, variables, frame):
    """Features of one frame: `[H, W, 3]` uint8 to `[h, w, C]`."""
    return segmenter.features(variables, frame[None, None])[0].main[0, 0]


def _extract(model, source, sample):
    """Features of the sample's pixels `[P, C]` and of each clip that is shown `[h, w, C]`, L2-normalised."""
    features, maps = None, []
    for i, clip in enumerate(sample.clips):
        mine = np.flatnonzero(sample.places[:, 0] == i)
        frame = read_clip(source, clip, (0,), (), label=False)["frames"][0]
        grid = np.asarray(_features(model.segmenter, model.variables, frame), np.float32)
        if features is None:
            features = np.empty((len(sample.places), grid.shape[-1]), np.float32)
        features[mine] = grid[sample.places[mine, 1], sample.places[mine, 2]]
        if i in sample.shown:
            maps.append(feature_space.normalise(grid))
    return feature_space.normalise(features), maps


def _map_panels(source, sample, palette, maps):
    """Frame, label and each network's map of each clip that is shown: lists of (name, file, content)."""
    panels = []
    for n, i in enumerate(sample.shown):
        clip = read_clip(source, sample.clips[i], (0,), (), label=True)
        label = pictures.shrunk(palette[clip["label"]], cv2.INTER_NEAREST)
        contents = {"frame": pictures.photo(pictures.shrunk(clip["frames"][0])), "label": pictures.exact(label)}
        contents |= {name: pictures.exact(pictures.enlarged(colours[n])) for name, colours in maps.items()}
        panels.append([(name, f"map_{n}_{j}.webp", content) for j, (name, content) in enumerate(contents.items())])
    return panels


def _coloured(features, maps):
    """Feature maps of each network, all in the same colours: name -> list of `[h, w, 3]` uint8."""
    mean, axes = feature_space.principal_axes(np.concatenate(list(features.values())), 3)
    seen = np.concatenate([(x - mean) @ axes.T for x in features.values()])
    low, high = np.percentile(seen, (2, 98), axis=0)
    scale = np.where(high > low, high - low, 1)

    def colours(x):
        return (np.clip(((x - mean) @ axes.T - low) / scale, 0, 1) * 255).round().astype(np.uint8)

    return {name: [colours(x) for x in shown] for name, shown in maps.items()}
