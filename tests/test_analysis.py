import html
import io
import json
import shutil
from xml.etree import ElementTree

import jax
import numpy as np
import pytest
import raw_trees
from markdown_it import MarkdownIt
from PIL import Image

import main
from input_pipeline.clips import read_clip
from input_pipeline.domains import open_domain
from input_pipeline.errors import UserError
from input_pipeline.labels import CLASSES, colour_table
from stpl_jax import checkpoint, modes
from stpl_jax.models import make_segmenter
from stpl_jax.report import analysis, analysis_files
from stpl_jax.report.render import render

SIZE = (32, 64)
GRID = (8, 16)
CLIPS = (("lindau", 0, 19), ("lindau", 1, 19), ("frankfurt", 0, 294))
CITYSCAPES_IDS = (7, 11, 21, 26, 0)  # road, building, vegetation, car, and one that is ignored
KS = (1, 3, 10)


def quiet(line):
    del line


def set_up(config, root, ids=CITYSCAPES_IDS):
    """Three validation clips, and what the analysis looks at made small."""
    raw = root / "raw"
    names = raw_trees.write_cityscapes_seq(raw, split="val", clips=CLIPS, size=(64, 128), ids=ids)
    with config.unlocked():
        config.compare_with = ("source_only",)
        config.data.target.size = SIZE
        config.data.target.raw_dir = str(raw)
        config.data.prepared_dir = str(root / "data")
        config.analysis.update(dict(pixels=12, neighbours=KS, tsne_pixels=6, frames=2))
    return names


def save(folder, config, variables, classes=CLASSES["viper"]):
    stored = json.loads(config.to_json_best_effort())
    meta = checkpoint.CheckpointMeta(config=stored, classes=tuple(classes), label_setting="viper")
    checkpoint.save_model(folder, variables, meta)


@pytest.fixture(scope="module")
def run(tmp_path_factory, tiny_settings, drawn_variables):
    """An analysed run of two networks: its configuration, folder and variables by row."""
    root = tmp_path_factory.mktemp("analysis")
    set_up(tiny_settings, root)
    segmenter = make_segmenter(tiny_settings.model, 15)
    variables = {row: drawn_variables(segmenter, seed) for seed, row in enumerate(("source_only", "stpl"))}
    for row, values in variables.items():
        save(root / "run" / row, tiny_settings, values)
    modes.analyse(tiny_settings, root / "run", progress=quiet)
    return tiny_settings, root / "run", variables


def plain_features(config, variables, frame):
    segmenter = make_segmenter(config.model, 15)
    features = np.asarray(segmenter.features(variables, frame[None, None])[0].main[0, 0], float)
    return features / np.linalg.norm(features, axis=-1, keepdims=True)


def test_numbers_are_those_of_the_sampled_pixels(run):
    config, folder, variables = run
    results = analysis_files.read_results(folder)
    assert list(results["checkpoints"]) == ["source_only", "stpl"] and results["clips"] == 3
    assert results["pixels"]["road"] == 12 and results["pixels"]["sky"] == 0
    assert results["subsets"] == {"all": list(CLASSES["viper"]), "chosen": ["road", "light", "car", "bicycle"]}

    source = open_domain(config, folder, "val", progress=quiet)
    sample = analysis.draw_sample(config, source, GRID)
    frames = [read_clip(source, i, (0,), (), label=False)["frames"][0] for i in sample.clips]
    road, car = CLASSES["viper"].index("road"), CLASSES["viper"].index("car")
    for row, values in variables.items():
        maps = [plain_features(config, values, frame) for frame in frames]
        pixels = np.stack([maps[n][y, x] for n, y, x in sample.places])
        within, means = [], {}
        for c in np.unique(sample.classes):
            mine = pixels[sample.classes == c]
            means[c] = mine.mean(0)
            within.append(((mine - means[c]) ** 2).sum(1).mean())
        centre = np.mean(list(means.values()), 0)
        entry = results["checkpoints"][row]
        assert entry["variances"]["all"]["intra"] == pytest.approx(np.mean(within), rel=1e-4)
        between = np.mean([((m - centre) ** 2).sum() for m in means.values()])
        assert entry["variances"]["all"]["inter"] == pytest.approx(between, rel=1e-4)
        # Of the chosen classes only these two occur.
        apart = ((means[road] - means[car]) ** 2).sum() / 4
        assert entry["variances"]["chosen"]["inter"] == pytest.approx(apart, rel=1e-4)
        distances = ((pixels[:, None] - pixels) ** 2).sum(-1)
        np.fill_diagonal(distances, np.inf)
        same = sample.classes[distances.argsort(1)] == sample.classes[:, None]
        expected = [same[:, :k].mean() for k in KS]
        np.testing.assert_allclose(entry["same_class_share"], expected, atol=0.02)


def test_pixels_are_the_labels(run):
    config, folder, _ = run
    source = open_domain(config, folder, "val", progress=quiet)
    sample = analysis.draw_sample(config, source, GRID)
    assert len(sample.few) <= 6 * 4 and set(sample.places[:, 0]) == {0, 1, 2}
    labels = np.stack([read_clip(source, i, (), (), label=True)["label"] for i in sample.clips])
    ys, xs = np.round(np.arange(8) * 63 / 7).astype(int), np.round(np.arange(16) * 127 / 15).astype(int)
    np.testing.assert_array_equal(labels[:, ys][:, :, xs][tuple(sample.places.T)], sample.classes)


def test_pictures_and_text(run):
    _, folder, _ = run
    text = (folder / "analysis" / "analysis.md").read_text()
    written = json.loads((folder / "analysis" / "analysis.json").read_text())
    files = {path.name for path in (folder / "analysis").iterdir()}
    # Neighbours, t-SNE of two sets of classes for two networks, and two clips' frame, label and two maps.
    pictures = files - {"analysis.md", "analysis.json", "files.json"}
    assert len(pictures) == 1 + 2 * 2 + 2 * 4 and all(f"]({picture})" in text for picture in pictures)
    assert "| source_only |" in text and "| k=1 |" in text

    pictures = analysis_files.read_results(folder)["pictures"]
    curves = ElementTree.fromstring(pictures["knn"])
    told = " ".join(part.text for part in curves.iter("{http://www.w3.org/2000/svg}text"))
    for name in ("source_only", "stpl"):
        last = written["checkpoints"][name]["same_class_share"][-1]
        assert f"{name} {100 * last:.1f}" in " ".join(told.split())
    assert set(pictures["tsne"]) == {"all", "chosen"} and pictures["tsne"]["all"]["stpl"][:4] == b"\x89PNG"
    palette = colour_table(CLASSES["viper"])
    tsne = opened(pictures["tsne"]["all"]["stpl"])
    for name in ("road", "building", "vegetation", "car"):
        colour = palette[CLASSES["viper"].index(name)]
        assert (tsne == colour).all(-1).sum() > 100, name
    assert (opened(pictures["tsne"]["all"]["source_only"]) != tsne).any()
    assert [list(panels) for panels in pictures["maps"]] == [["frame", "label", "source_only", "stpl"]] * 2
    for panels in pictures["maps"]:
        assert all(opened(content).shape[1] >= 64 for content in panels.values())
        assert panels["stpl"] != panels["source_only"]
        # Each place of the feature grid is as large as another.
        grown = opened(panels["stpl"])
        np.testing.assert_array_equal(grown[::16, ::16].repeat(16, 0).repeat(16, 1), grown)
        assert {tuple(c) for c in opened(panels["label"]).reshape(-1, 3)} <= {tuple(c) for c in palette}


def opened(content):
    return np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))


def test_names_in_the_text_are_text(run):
    results = json.loads((run[1] / "analysis" / "analysis.json").read_text())
    name = "a|b *c* <i>_d_"
    for found in (results["checkpoints"], *results["pictures"]["tsne"].values(), *results["pictures"]["maps"]):
        found[name] = found.pop("stpl")
    page = MarkdownIt("commonmark").enable("table").render(render("analysis.md", analysis=results))
    assert page.count(f"<td>{html.escape(name)}</td>") == 3 and page.count(f"<th>{html.escape(name)}</th>") == 2
    assert "<i>" not in page and "<em>" not in page


def test_an_analysis_stays_while_it_is_true(run, tmp_path):
    config, folder, variables = run
    results = analysis_files.read_results(folder)
    assert analysis.is_enough(results, config, folder, ["stpl"])
    assert analysis.is_enough(results, config, folder, ["source_only", "stpl"])
    assert not analysis.is_enough(None, config, folder, ["stpl"])
    assert not analysis.is_enough(results, config, folder, ["stpl", "oracle"])
    for change in ({"analysis": {"pixels": 13}}, {"seed": 1}):
        other = config.copy_and_resolve_references()
        other.update(change)
        assert not analysis.is_enough(results, other, folder, ["stpl"])
    # The same rows; a picture is missing, then one of them has other weights.
    moved = tmp_path / "moved"
    shutil.copytree(folder, moved)
    assert analysis.is_true(results, config, moved) and analysis.is_enough(results, config, moved, ["stpl"])
    (moved / "analysis" / "knn.svg").unlink()
    lines = []
    assert analysis_files.read_results(moved, lines.append) is None
    assert len(lines) == 1 and "knn.svg: expected what --mode=analyse wrote, found no file" in lines[0]
    shutil.rmtree(moved / "stpl")
    changed = jax.tree.map(np.copy, variables["stpl"])
    changed["params"]["sf_layer"]["kernel"][0, 0, 0, 0] += 1e-3
    save(moved / "stpl", config, changed)
    assert not analysis.is_true(results, config, moved)
    # A network from elsewhere that is gone.
    strange = {"checkpoints": {"mine": results["checkpoints"]["stpl"] | {"path": str(tmp_path / "gone")}}}
    assert not analysis.is_true(strange, config, folder)
    strange["checkpoints"]["mine"]["path"] = str(folder / "stpl")
    assert analysis.is_true(strange, config, folder)


def test_the_report_asks_for_both_networks_once(run, monkeypatch):
    config, folder, _ = run
    config = config.copy_and_resolve_references()
    asked, reported = [], []
    monkeypatch.setattr(analysis, "analyse", lambda config, workdir, found, progress: asked.append(list(found)))
    monkeypatch.setattr(modes.report, "write_report", lambda *arguments: reported.append(arguments[1]))
    modes._report(config, folder, quiet)  # not asked for
    config.report.analysis = True
    modes._report(config, folder, quiet)  # still true
    assert asked == [] and reported == [folder] * 2
    config.analysis.pixels = 13
    modes._report(config, folder, quiet)
    assert asked == [["source_only", "stpl"]]

    # An analysis that fails does not cost the report.
    def fail(*arguments):
        raise analysis.AnalysisError("nothing to see")

    lines = []
    monkeypatch.setattr(analysis, "analyse", fail)
    modes._report(config, folder, lines.append)
    assert lines == ["report  no analysis: nothing to see"] and len(reported) == 4


def test_checkpoints_are_found_by_row_path_and_name(run, tmp_path):
    config, folder, _ = run
    stpl = folder / "stpl" / "checkpoints"
    both = {row: str(folder / row / "checkpoints") for row in ("source_only", "stpl")}
    assert analysis.find_checkpoints(config, folder) == both
    assert analysis.find_checkpoints(config, folder, ["stpl"]) == {"stpl": stpl}
    found = analysis.find_checkpoints(config, folder, [f"mine={folder / 'stpl'}", "source_only", str(stpl / "0")])
    assert list(found) == ["mine", "source_only", str(stpl / "0")]
    assert found["mine"] == stpl and found[str(stpl / "0")] == stpl / "0"
    with pytest.raises(checkpoint.CheckpointError, match="has stpl twice"):
        analysis.find_checkpoints(config, folder, ["stpl", "stpl"])
    with pytest.raises(checkpoint.CheckpointError, match="stpl is a row of this run"):
        analysis.find_checkpoints(config, folder, [f"stpl={stpl}"])
    with pytest.raises(checkpoint.CheckpointError, match="row spl .--checkpoints=spl.*source_only.*Did you mean stpl"):
        analysis.find_checkpoints(config, folder, ["spl"])
    with pytest.raises(checkpoint.CheckpointError, match="No checkpoint in"):
        analysis.find_checkpoints(config, folder, [f"raw={folder.parent / 'raw'}"])
    with pytest.raises(checkpoint.CheckpointError, match="no checkpoint of any row.*--checkpoints"):
        analysis.find_checkpoints(config, tmp_path)
    (tmp_path / "stpl" / "checkpoints").mkdir(parents=True)  # of a run that was killed before it saved one
    assert analysis.present_checkpoints(config, tmp_path, ("source_only", "stpl")) == {}
    given = config.copy_and_resolve_references()
    given.init_from = str(folder / "source_only")
    assert analysis.find_checkpoints(given, tmp_path) == {"source_only": str(folder / "source_only")}


def test_networks_that_cannot_be_compared(run, tmp_path, drawn_variables):
    config, folder, variables = run
    wide = config.copy_and_resolve_references()
    wide.model.backbone.widths = (4, 4, 4, 8)
    save(tmp_path / "wide", wide, drawn_variables(make_segmenter(wide.model, 15)))
    found = analysis.find_checkpoints(config, folder, ["stpl", f"wide={tmp_path / 'wide'}"])
    with pytest.raises(
        checkpoint.CheckpointError, match="feature maps differ.*\n  stpl: 8x16, 16 .*\n  wide: 8x16, 32 "
    ):
        analysis.analyse(config, folder, found, quiet)
    save(tmp_path / "other", config, variables["stpl"], classes=[*CLASSES["viper"][:-1], "tram"])
    found = analysis.find_checkpoints(config, folder, [f"other={tmp_path / 'other'}"])
    with pytest.raises(checkpoint.CheckpointError, match="tram"):
        analysis.analyse(config, folder, found, quiet)


def test_a_set_without_labels(tmp_path, tiny_config, drawn_variables):
    set_up(tiny_config, tmp_path, ids=(0,))
    # Sets without any pixel of a class are not prepared; this one is there, and between the features' pixels.
    for path in (tmp_path / "raw" / "gtFine").rglob("*_labelIds.png"):
        ids = np.array(Image.open(path))
        ids[1, 1] = 7
        Image.fromarray(ids).save(path)
    save(tmp_path / "run" / "stpl", tiny_config, drawn_variables(make_segmenter(tiny_config.model, 15)))
    with pytest.raises(analysis.AnalysisError, match="no labelled pixel in the 3 clips"):
        modes.analyse(tiny_config, tmp_path / "run", progress=quiet)
    assert not (tmp_path / "run" / "analysis").exists()
    assert issubclass(analysis.AnalysisError, UserError)


@pytest.mark.parametrize("count", [0, 1, 2, 3, 5])
def test_few_points_have_a_layout(count):
    places = analysis.embed(np.random.default_rng(0).normal(size=(count, 4)).astype(np.float32), seed=0)
    assert places.shape == (count, 2) and np.isfinite(places).all()


def test_none_of_the_chosen_classes_occurs_and_no_maps_are_wanted(tmp_path, tiny_config, drawn_variables):
    set_up(tiny_config, tmp_path, ids=(11, 21, 0))
    tiny_config.analysis.frames = 0
    save(tmp_path / "run" / "stpl", tiny_config, drawn_variables(make_segmenter(tiny_config.model, 15)))
    modes.analyse(tiny_config, tmp_path / "run", progress=quiet)
    results = analysis_files.read_results(tmp_path / "run")
    assert results["checkpoints"]["stpl"]["variances"]["chosen"] == {"intra": None, "inter": None}
    assert "| stpl | - | - | - |" in (tmp_path / "run" / "analysis" / "analysis.md").read_text()
    assert (opened(results["pictures"]["tsne"]["chosen"]["stpl"]) == 255).all()
    assert results["pictures"]["maps"] == []
    assert "Feature maps" not in (tmp_path / "run" / "analysis" / "analysis.md").read_text()


def test_only_the_first_process_analyses(tmp_path, tiny_config, monkeypatch):
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    analysis.analyse(tiny_config, tmp_path, {"gone": tmp_path / "gone"}, quiet)
    assert not list(tmp_path.iterdir())


def test_every_mode_of_the_command_line_is_there():
    assert all(callable(getattr(modes, mode)) for mode in main.MODES)
