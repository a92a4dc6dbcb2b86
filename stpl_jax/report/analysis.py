"""Networks side by side in feature space: class variances, neighbours, t-SNE, feature maps (paper, Figures 6 to 8).

All networks are asked about the same pixels of the validation set, by the features of the backbone's last stage, which
running averages normalise as they do in evaluation.
"""

import dataclasses
import functools
import hashlib
import json
import math
from pathlib import Path

import jax
import numpy as np

from input_pipeline import run_folder
from input_pipeline.clips import read_clip
from input_pipeline.domains import open_domain
from input_pipeline.errors import UserError
from input_pipeline.files import write_atomically
from input_pipeline.labels import CLASSES, colour_table
from stpl_jax import checkpoint, model_choice, predict
from stpl_jax.metrics import feature_space
from stpl_jax.report import charts, pictures
from stpl_jax.report.analysis_files import digest
from stpl_jax.report.render import render
from stpl_jax.rows import row_names

_TSNE_STEPS = 500


class AnalysisError(UserError):
    """There is nothing to analyse."""


@dataclasses.dataclass(frozen=True, eq=False)
class Sample:
    """What every network is asked about.

    Attributes:
      clips: indices of validation clips, N of them.
      places: `[P, 3]`: which of the N clips, row, column.
      classes: `[P]` train ids.
      few: indices of the pixels that the scatter plots show, at most `config.analysis.tsne_pixels` of each class.
      shown: which of the N clips have their feature maps drawn.
      labels: `[N, h, w]` uint8 train ids on the feature grid.
    """

    clips: tuple[int, ...]
    places: np.ndarray
    classes: np.ndarray
    few: np.ndarray
    shown: tuple[int, ...]
    labels: np.ndarray


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
    settings, classes = config.analysis, CLASSES[config.data.classes]
    models = {name: predict.load(path, tell=progress) for name, path in checkpoints.items()}
    for name, model in models.items():
        progress(f"analyse  {name}: {model.description}")
    source = open_domain(config, workdir, "val", progress=progress)
    sample = draw_sample(config, source, _common_grid(models, source.spec.size, classes))
    chosen = [classes.index(name) for name in settings.tsne_classes if name in classes]
    subsets = {"all": list(range(len(classes)))} | ({"chosen": chosen} if chosen else {})

    found, embeddings, features, maps = {}, {name: {} for name in subsets}, {}, {}
    for name, model in models.items():
        features[name], maps[name] = _extract(model, source, sample)
        found[name] = {"path": str(model.path), "fingerprint": fingerprint(model.variables)}
        found[name] |= measure(features[name], sample.classes, settings.neighbours, subsets)
        for subset, members in subsets.items():
            few = sample.few[np.isin(sample.classes[sample.few], members)]
            embeddings[subset][name] = embed(features[name][few], config.seed)
        variances = found[name]["variances"]["all"]
        progress(f"analyse  {name}  σ_intra {variances['intra']:.4f}  σ_inter {variances['inter']:.4f}")

    results = {
        "checkpoints": found,
        "neighbours": list(settings.neighbours),
        "pixels": {name: int((sample.classes == i).sum()) for i, name in enumerate(classes)},
        "clips": len(sample.clips),
        "subsets": {subset: [classes[i] for i in members] for subset, members in subsets.items()},
        "settings": json.loads(settings.to_json_best_effort()),
        "seed": config.seed,
    }
    folder, digests = Path(workdir) / run_folder.ANALYSIS, {}

    def keep(name, content):
        write_atomically(folder / name, content)
        digests[name] = digest(content)
        return name

    colours = charts.row_colours([*row_names(config), *found], config.method)
    palette, few = colour_table(config.data.classes), sample.classes[sample.few]
    tsne = {}
    for subset, members in subsets.items():
        painted = palette[few[np.isin(few, members)]]
        tsne[subset] = {
            name: keep(f"tsne_{subset}_{i}.png", charts.scatter_plot(places, painted))
            for i, (name, places) in enumerate(embeddings[subset].items())
        }
    results["pictures"] = {
        "knn": keep("knn.svg", charts.neighbours_chart(results, colours)),
        "tsne": tsne,
        "maps": [
            {name: keep(f"map_{n}_{i}.{kind}", content) for i, (name, kind, content) in enumerate(panels)}
            for n, panels in enumerate(_map_panels(source, sample, palette, _coloured(features, maps)))
        ],
    }
    results["digests"] = digests
    write_atomically(folder / run_folder.ANALYSIS_TEXT, render("analysis.md", analysis=results))
    write_atomically(folder / run_folder.ANALYSIS_RESULTS, json.dumps(results, indent=1, allow_nan=False))
    progress(f"analyse  {folder / run_folder.ANALYSIS_TEXT}")


def is_true(results, config, workdir):
    """Whether an earlier analysis tells about the weights that are there: none were trained since.

    `results` are `analysis_files.read_results`'s. A name that is a row of the run means that row's newest checkpoint.
    """
    for name, entry in results["checkpoints"].items():
        try:
            own = model_choice.row_model(config, workdir, name) if name in row_names(config) else None
            stored = checkpoint.load_model(entry["path"] if own is None else own, tell=lambda line: None)
        except checkpoint.CheckpointError:
            return False
        if fingerprint(stored.variables) != entry["fingerprint"]:
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


def fingerprint(variables):
    """A short text that is another one for other weights."""
    found = hashlib.sha256()
    for path, leaf in sorted(jax.tree_util.tree_leaves_with_path(variables), key=lambda x: jax.tree_util.keystr(x[0])):
        found.update(jax.tree_util.keystr(path).encode())
        found.update(np.asarray(leaf).tobytes())
    return found.hexdigest()[:16]


def draw_sample(config, source, grid):
    """Draws clips and pixels; the seed decides, not the networks.

    Args:
      config: the run's configuration.
      source: the validation set, a `ClipSource`.
      grid: (h, w) of the features.

    Returns:
      A `Sample`.
    """
    settings = config.analysis
    random = np.random.default_rng((config.seed, 0))
    clips = np.sort(random.permutation(len(source))[: settings.clips])
    labels = np.stack(
        [feature_space.nearest_on_grid(read_clip(source, int(i), (), (), label=True)["label"], grid) for i in clips]
    )
    count = len(CLASSES[config.data.classes])
    places, classes = feature_space.sample_pixels(labels, count, settings.pixels, config.seed)
    if not len(places):
        raise AnalysisError(f"{source.path}: no labelled pixel in the {len(clips)} clips that were drawn.")
    few = [
        random.permutation(np.flatnonzero(classes == c))[: settings.tsne_pixels]  # as they come: no class is on top
        for c in range(count)
    ]
    few = random.permutation(np.concatenate(few))
    shown = np.unique(np.linspace(0, len(clips) - 1, min(settings.frames, len(clips))).round().astype(int))
    return Sample(tuple(map(int, clips)), places, classes, few, tuple(map(int, shown)), labels)


def measure(features, classes, neighbours, subsets):
    """Measures one network's features.

    Args:
      features: `[P, C]`, L2-normalised.
      classes: `[P]` train ids.
      neighbours: values of k.
      subsets: name -> train ids; variances are given for each.

    Returns:
      JSON-able dict: `variances` (subset -> intra, inter, `null` where no pixel is of it), `same_class_share` (of the k
      nearest, from 0 to 1, for each k).
    """
    variances = {}
    for subset, members in subsets.items():
        chosen = np.isin(classes, members)
        values = {
            "intra": feature_space.intra_class_variance(features[chosen], classes[chosen]),
            "inter": feature_space.inter_class_variance(features[chosen], classes[chosen]),
        }
        variances[subset] = {name: None if math.isnan(value) else value for name, value in values.items()}
    shares = feature_space.neighbour_shares(features, classes, neighbours)
    return {"variances": variances, "same_class_share": [None if math.isnan(x) else float(x) for x in shares]}


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
        frame = jax.ShapeDtypeStruct((*size, 3), np.uint8)
        features = jax.eval_shape(functools.partial(_features, model.segmenter), model.variables, frame)
        grids[name] = features.shape[:3]
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
    """Features of the sample's pixels `[P, C]` and of whole clips that are shown `[n, h, w, C]`, L2-normalised."""
    features, maps = None, []
    for i, clip in enumerate(sample.clips):
        mine = np.flatnonzero(sample.places[:, 0] == i)
        if not mine.size and i not in sample.shown:
            continue
        frame = read_clip(source, clip, (0,), (), label=False)["frames"][0]
        grid = np.asarray(_features(model.segmenter, model.variables, frame), np.float32)
        if features is None:
            features = np.empty((len(sample.places), grid.shape[-1]), np.float32)
        features[mine] = grid[sample.places[mine, 1], sample.places[mine, 2]]
        if i in sample.shown:
            maps.append(feature_space.normalise(grid))
    return feature_space.normalise(features), np.stack(maps)


def _map_panels(source, sample, palette, maps):
    """Frame, label and each network's map of each clip that is shown: lists of (name, kind of file, content)."""
    for n, i in enumerate(sample.shown):
        clip = read_clip(source, sample.clips[i], (0,), (), label=True)
        shown = [("frame", "webp", pictures.page_photo(clip["frames"][0]))]
        shown.append(("label", "png", pictures.page_classes(clip["label"], palette)))
        yield [*shown, *((name, "png", pictures.enlarged(pixels[n])) for name, pixels in maps.items())]


def _coloured(features, maps):
    """Feature maps `[n, h, w, 3]` uint8 of each network, all in the same colours."""
    mean, axes = feature_space.principal_axes(np.concatenate(list(features.values())), 3)
    seen = np.concatenate([(x - mean) @ axes.T for x in features.values()])
    low, high = np.percentile(seen, (2, 98), axis=0)
    scale = np.where(high > low, high - low, 1)
    return {
        name: (np.clip(((x - mean) @ axes.T - low) / scale, 0, 1) * 255).round().astype(np.uint8)
        for name, x in maps.items()
    }
