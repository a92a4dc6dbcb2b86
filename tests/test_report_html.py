import base64
import io
import json
import random
import re
import shutil
from html.parser import HTMLParser
from xml.etree import ElementTree

import numpy as np
import pytest
from browser import look_at
from ml_collections import ConfigDict
from PIL import Image

from input_pipeline.labels import CLASSES, PALETTE
from stpl_jax import checkpoint
from stpl_jax.models import make_segmenter
from stpl_jax.report import analysis, analysis_files, charts, writing
from stpl_jax.report.numbers import make_report, read_curves, read_evaluations
from stpl_jax.report.pictures import Picture

ROWS = {"source_only": 30.0, "bn_statistics": 40.0, "stpl": 55.0, "oracle": 70.0}
FRAMES, MOMENTS = 2, 3
CHARTS = 1 + 3 + 1  # mIoU, three rows' losses, neighbours
VOID = {"meta", "img", "source", "link", "br", "hr", "input"}


def write_row(workdir, row, miou, step=60):
    """What training leaves of a row: scores, and the log of a loss that falls."""
    classes = CLASSES["viper"]
    confusion = np.full((15, 15), 2) + np.eye(15, dtype=int) * round(miou)
    confusion[4] = 0  # a class that does not occur
    last = {
        "miou": miou,
        "iou": {name: miou + i for i, name in enumerate(classes[:-1])} | {classes[-1]: None},
        "temporal_consistency": 90.0,
        "temporal_consistency_warped": 95.0,
        "confusion": confusion.tolist(),
        "step": step,
    }
    source = "random" if row == "source_only" else "source_only/checkpoints/60"
    text = {"row": row, "method": row, "source": source, "last": last, "best_on_validation": last, "config": {}}
    (workdir / row).mkdir(parents=True, exist_ok=True)
    (workdir / row / "evaluation.json").write_text(json.dumps(text | {"seconds_per_step": 0.1234}))
    loss = 0.0 if row == "bn_statistics" else 1.0
    lines = [
        {"step": i + 1, "loss/network": loss / (i + 1), "loss/adversary": loss, "state_norm": 3} for i in range(step)
    ]
    lines += [{"step": step // 2, "validation/miou": miou - 5}, {"step": step, "validation/miou": miou}]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (workdir / row / "metrics.jsonl").write_text(text + '{"step": 61, "loss/netw')  # killed while it wrote


@pytest.fixture(scope="module")
def run(tmp_path_factory, tiny_settings, drawn_variables):
    """A finished run of two networks on a generated world, with analysis and report: (configuration, folder)."""
    config, folder = tiny_settings, tmp_path_factory.mktemp("run")
    clips = {"source_clips": 1, "target_train_clips": 1, "target_val_clips": 3, "video_frames": MOMENTS}
    with config.unlocked():
        config.compare_with = ("source_only", "bn_statistics", "oracle")
        config.data.target.size = (32, 64)
        config.world = ConfigDict({"generate": True, "size": (32, 64), "workers": 1} | clips)
        config.report.frames = FRAMES
        config.analysis.update(dict(pixels=10, tsne_pixels=4, neighbours=(1, 2, 5), frames=1))
    for row, miou in ROWS.items():
        write_row(folder, row, miou)
    segmenter = make_segmenter(config.model, 15)
    stored = json.loads(config.to_json_best_effort())
    meta = checkpoint.CheckpointMeta(config=stored, classes=CLASSES["viper"], label_setting="viper")
    for seed, row in enumerate(("source_only", "stpl")):
        checkpoint.save_model(folder / row, drawn_variables(segmenter, seed), meta)
    found = analysis.find_checkpoints(config, folder)
    analysis.analyse(config, folder, found, lambda line: None)
    writing.write_report(config, folder, lambda line: None)
    return config, folder


@pytest.fixture(scope="module")
def page(run):
    """The text of its `report.html`."""
    return (run[1] / "report.html").read_text()


class Parsed(HTMLParser):
    """Elements (name, attributes), text, and the checks that a browser leaves out."""

    def __init__(self, page):
        super().__init__()
        self.elements, self.open, self.text = [], [], []
        self.feed(page)
        assert not self.open, f"not closed: {self.open}"

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, f"{tag} closes another element"

    def handle_data(self, data):
        self.text.append(data)

    def all(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]


def decoded(uri):
    kind, _, data = uri.partition(";base64,")
    assert kind in ("data:image/png", "data:image/webp")
    image = Image.open(io.BytesIO(base64.b64decode(data, validate=True)))
    image.load()
    return image


@pytest.mark.parametrize("width", [1280, 390])
def test_chromium_shows_the_page(page, width, tmp_path):
    for seen in look_at(page, width, tmp_path):
        assert "HeadlessChrome" in seen["browser"]
        assert seen["problems"] == [] and seen["broken"] == [] and seen["asked_for"] == []
        assert seen["images"] == seen["shown"] == 1 + 4 * FRAMES + CHARTS + 4 + 4
        assert seen["width"] <= width, "the page itself scrolls sideways"
        assert seen["least_chart_text"] >= 11
        assert seen["text"] > 2000


def test_chromium_sees_what_is_wrong(tmp_path):
    bad = (
        "<html><head><title>x</title></head><body><script>nothing()</script><img alt='torn' src='data:image/png;base64,"
        "iVBORw0KGgo='><div style='width:2000px'>wide</div></body></html>"
    )
    for seen in look_at(bad, 390, tmp_path):
        assert len(seen["problems"]) == 1 and "nothing is not defined" in seen["problems"][0]
        assert seen["broken"] == ["torn"] and seen["shown"] == 0 and seen["width"] >= 2000
    refused = bad.replace("<title>", f'<meta http-equiv="Content-Security-Policy" content="{writing.POLICY}"><title>')
    for seen in look_at(refused, 390, tmp_path):
        assert seen["problems"] == ["refused: inline"]


def test_everything_is_in_the_one_file(page):
    parsed = Parsed(page)
    assert len(page) < 6e6 and not parsed.all("script") and not parsed.all("link")
    assert not re.search(r"https?:|url\(|@import", page)
    # The film, four panels of each frame, t-SNE of two sets of classes for two networks, and frame, label and two
    # feature maps of one clip; the film for narrow screens and at rest; each chart for light and for dark pages.
    assert len(parsed.all("img")) == 1 + 4 * FRAMES + CHARTS + 4 + 4
    sources = [image["src"] for image in parsed.all("img")] + [source["srcset"] for source in parsed.all("source")]
    drawings = [uri for uri in sources if "svg" in uri[:30]]
    assert len(sources) == len(parsed.all("img")) + 2 + CHARTS and len(drawings) == 2 * CHARTS
    for uri in set(sources) - set(drawings):
        assert decoded(uri).width >= 16
    assert all(image["alt"] for image in parsed.all("img"))
    ids = [attributes["id"] for _, attributes in parsed.elements if "id" in attributes]
    assert len(ids) == len(set(ids)) == 8
    assert [link["href"] for link in parsed.all("a")] == [f"#{name}" for name in ids]
    assert len(parsed.all("h1")) == 1 and len(parsed.all("h2")) == 8


def test_numbers_stand_in_the_page(page):
    text = " ".join(" ".join(Parsed(page).text).split())
    assert "Adaptation to cityscapes_seq by stpl" in text
    assert "goes from 30.0 percent (source_only) to 55.0 ( stpl )" in text.replace("(stpl)", "( stpl )")
    for share in ("62.5%", "25.0%", "50.0%"):
        assert share in text
    assert "stpl 55.0 +25.0 90.0 95.0 60 55.0 (step 60) 0.123" in text
    assert "road 30.0 → 55.0 +25.0" in text and "bicycle – → – –" in text
    # A class's line of the confusion matrix: 57 of the 85 pixels of stpl's are right, two each are any other.
    assert "road 67 2 2" in text
    # The shares of same-class pixels stand beside their chart.
    assert "network k=1 k=2 k=5 source_only" in text
    assert '"method": "stpl"' in text and "seed 0" in text and "0.1." in text


def test_pictures_are_those_of_the_run(run, page):
    parsed = Parsed(page)
    film = decoded(parsed.all("img")[0]["src"])
    still, tall = (decoded(source["srcset"]) for source in parsed.all("source")[:2])
    assert film.n_frames == MOMENTS and film.info["loop"] == 0 and film.info["duration"] == 100
    assert film.width > film.height and tall.height > tall.width and tall.n_frames == MOMENTS
    assert still.size == film.size and getattr(still, "n_frames", 1) == 1
    moments = []
    for moment in range(MOMENTS):
        film.seek(moment)
        moments.append(np.asarray(film.convert("RGB"), float))
    assert np.abs(moments[0] - moments[-1]).mean() > 1

    folder = run[1] / "frames"
    for n, file in enumerate(sorted(folder.iterdir())):
        frame, before, after, label = (decoded(i["src"]) for i in parsed.all("img")[1 + 4 * n : 5 + 4 * n])
        painted = np.asarray(Image.open(file).convert("RGB"))
        top = next(y for y in range(painted.shape[0]) if (painted[y, :128] != 255).any(-1).all())
        for i, panel in enumerate((frame, before, after, label)):
            there = painted[top : top + 128, i * 258 : i * 258 + 256].astype(float)
            # Class maps to the bit; the photograph with small losses.
            assert np.abs(np.asarray(panel.convert("RGB")) - there).mean() <= (4 if i == 0 else 0)
        colours = np.unique(np.asarray(label.convert("RGB")).reshape(-1, 3), axis=0)
        assert {tuple(map(int, colour)) for colour in colours} <= {*PALETTE.values(), (0, 0, 0)}
        assert before.convert("RGB").tobytes() != after.convert("RGB").tobytes()


def charts_of(page):
    """What is told of each chart, and its letters, on light pages and on dark ones."""
    parsed, found = Parsed(page), {}
    dark = [source["srcset"] for source in parsed.all("source") if "svg" in source["srcset"][:30]]
    for image in parsed.all("img"):
        if image.get("class") == "chart":
            found[image["alt"]] = [base64.b64decode(u.partition(",")[2]).decode() for u in (image["src"], dark.pop(0))]
    assert not dark
    return found


def letters(svg):
    return [
        " ".join(part.text.split()) for part in ElementTree.fromstring(svg).iter("{http://www.w3.org/2000/svg}text")
    ]


def test_curves_are_read_and_start_at_the_source_model(run, page):
    config, folder = run
    curves = read_curves(folder, "stpl")
    assert set(curves) == {"loss/network", "loss/adversary", "validation/miou"}
    assert curves["validation/miou"] == ((30, 50.0), (60, 55.0)) and len(curves["loss/network"]) == 60
    assert read_curves(folder, "nothing") == {}
    found = charts_of(page)
    # bn_statistics has no loss to show.
    assert [told for told in found if told.startswith("Loss of")] == [
        f"Loss of {row} over training steps" for row in ("source_only", "stpl", "oracle")
    ]
    (told,) = (told for told in found if told.startswith("Validation mIoU over training steps: "))
    assert "stpl ends at 55.0" in told and told.endswith("oracle ends at 70.0")
    light, dark = found[told]
    shown = letters(light)
    assert all(f"{row} {miou:.1f}" in shown for row, miou in ROWS.items()) and "mIoU, percent" in shown
    # Three marks of each row but source_only, which has no start, and one in the legend.
    assert light.count("<use") - light.count('id="xtick') == 3 * 3 + 2 + len(ROWS)
    # Dark pages have their own colours, and nothing else differs.
    assert letters(dark) == shown and dark != light
    for light_colour, dark_colour in charts.COLOURS.values():
        assert light_colour not in dark
        light = light.replace(light_colour, dark_colour)
    assert light == dark


def test_what_is_missing_is_left_out(tmp_path, tiny_config):
    write_row(tmp_path, "stpl", 55.0)
    (tmp_path / "stpl" / "metrics.jsonl").unlink()
    found = make_report(tiny_config, read_evaluations(tiny_config, tmp_path))
    page = writing.report_page(found, "stpl", {"stpl": {}}, {"stpl": [[0] * 15] * 15})
    parsed = Parsed(page)
    headings = [link["href"] for link in parsed.all("a")]
    assert headings == ["#rows", "#classes", "#settings"] and not parsed.all("img")
    text = " ".join(parsed.text)
    assert text.count("not known: a row is missing, or there is no gap") == 3
    assert "goes from" not in text and "An oracle" not in text
    (seen, *_) = look_at(page, 390, tmp_path)
    assert seen["problems"] == [] and seen["width"] <= 390


def test_an_analysis_of_other_weights_is_left_out(run, tmp_path):
    config, folder = run
    for part in ("stpl", "analysis", "world", "data"):
        shutil.copytree(folder / part, tmp_path / part)
    shutil.copytree(folder / "stpl" / "checkpoints", tmp_path / "source_only" / "checkpoints")
    lines = []
    writing.write_report(config, tmp_path, lines.append)
    assert any("a network has changed since" in line for line in lines)
    assert 'id="features"' not in (tmp_path / "report.html").read_text()


@pytest.mark.parametrize("file", ["files.json", "analysis.json", "knn.svg", "map_0_0.webp", "tsne_all_1.png"])
@pytest.mark.parametrize("content", [None, b"", b"\xff\x00", b"[]", b'{"form": 1, "files": 3}'])
def test_a_damaged_analysis_is_told_and_left_out(run, tmp_path, file, content):
    shutil.copytree(run[1] / "analysis", tmp_path / "analysis")
    (tmp_path / "analysis" / file).unlink()
    if content is not None:
        (tmp_path / "analysis" / file).write_bytes(content)
    lines = []
    assert analysis_files.read_results(tmp_path, lines.append) is None
    if (file, content) == ("files.json", None):
        assert not lines  # there is no analysis
    else:
        (line,) = lines
        assert line.startswith(f"analysis  {tmp_path / 'analysis' / file}: expected ") and "--mode=analyse" in line


@pytest.mark.parametrize("file", ["files.json", "analysis.json", "analysis.md"])
def test_one_byte_changed_anywhere_is_noticed(run, tmp_path, file):
    shutil.copytree(run[1] / "analysis", tmp_path / "analysis")
    whole = (tmp_path / "analysis" / file).read_bytes()
    draw = random.Random(0)
    for _ in range(60):
        place = draw.randrange(len(whole))
        new = draw.choice([bytes([whole[place] ^ 1 << draw.randrange(8)]), b"", b"<b>", b"null", b'"'])
        changed = whole[:place] + new + whole[place + 1 :]
        (tmp_path / "analysis" / file).write_bytes(changed)
        if analysis_files.read_results(tmp_path, lambda line: None):
            # Blanks between the words of the list say nothing.
            assert changed == whole or (file == "files.json" and json.loads(changed) == json.loads(whole))


def test_an_analysis_of_another_form_is_left_out(run, tmp_path, monkeypatch):
    monkeypatch.setattr(analysis_files, "_FORM", 2)
    lines = []
    assert analysis_files.read_results(run[1], lines.append) is None
    assert "files.json: expected what --mode=analyse writes" in lines[0]


def test_damaged_lines_of_a_log_are_left_out_and_counted_once(tmp_path):
    good = [b'{"step": 1, "loss/network": 2.5}', b'{"step": 2, "loss/network": NaN, "other": Infinity}']
    good += [b'{"step": 3, "loss/network": 1, "validation/miou": 40}']
    bad = [b"\xff\xfe\x00", b'{"step": 4, "loss/netw', b"[1, 2]", b"7", b'{"loss/network": 3}', b"[" * 100_000]
    bad += [
        b'{"step": "5", "loss/network": 3}',
        b'{"step": 6, "loss/network": "3"}',
        b'{"step": true, "loss/network": 3}',
    ]
    bad += [b'{"step": 7, "loss/network": %s}' % (b"9" * 400), b'{"step": 8, "validation/miou": null}']
    (tmp_path / "stpl").mkdir()
    (tmp_path / "stpl" / "metrics.jsonl").write_bytes(b"\n".join([good[0], *bad, *good[1:]]) + b"\n")
    lines = []
    assert read_curves(tmp_path, "stpl", lines.append) == {
        "loss/network": ((1, 2.5), (3, 1)),
        "validation/miou": ((3, 40),),
    }
    assert lines == [
        f"report  {tmp_path / 'stpl' / 'metrics.jsonl'}: {len(bad)} damaged lines are left out of the curves"
    ]


def test_names_are_text(tmp_path, tiny_config):
    name = '<img src=x onerror="alert(1)">&'
    write_row(tmp_path, "stpl", 55.0)
    found = make_report(tiny_config, read_evaluations(tiny_config, tmp_path))
    for part in ("results", "settings"):
        found[part][name] = found[part]["stpl"]
    found["config"]["data"]["target"]["name"] = name
    curves = {name: read_curves(tmp_path, "stpl")}
    confusion = {name: [[1] * 15] * 15}
    picture = Picture(name, f"frames/{name}.png", {name: b"\x89PNG"})
    page = writing.report_page(found, name, curves, confusion, [picture])
    parsed = Parsed(page)
    panel = next(image for image in parsed.all("img") if "class" not in image)
    assert panel["alt"] == f"Classes that {name} predicts, clip {name}"
    assert name in "".join(parsed.text)
    found = charts_of(page)
    assert f"Loss of {name} over training steps" in found
    (told,) = (told for told in found if told.startswith("Validation"))
    assert f"{name} 55.0" in letters(found[told][0])


def test_charts_take_what_comes():
    hostile = ["_private_", "$x$ $", "\\frac{", "a\nb", "caf\udce9", "<b>", "n" * 300, "é"]
    scores = dict.fromkeys(hostile, ((5, 7.0),))
    colours = charts.row_colours(hostile, "<b>")
    one = charts.validation_chart(scores, colours)
    shown = letters(one)
    for name in ("_private_ 7.0", "$x$ $ 7.0", "\\frac{ 7.0", "a\\nb 7.0", "caf\\udce9 7.0", "<b> 7.0", "é 7.0"):
        assert name in shown, name
    assert "n" * 48 in shown  # in several lines
    assert charts.validation_chart(scores, colours) == one, "not the same twice"
    for losses in ({}, {"loss/network": ((1, 0.0), (2, 0.0))}):
        assert charts.loss_chart(losses, "c0") is None
    results = {"checkpoints": {"a": {"same_class_share": [None, None]}}, "neighbours": [1, 5]}
    assert "same class, percent" in letters(charts.neighbours_chart(results, {"a": "c0"}))
    # On a logarithmic axis equal factors are equally far apart.
    results = {"checkpoints": {"a": {"same_class_share": [0.5, 0.5, 0.5]}}, "neighbours": [1, 10, 100]}
    svg = charts.neighbours_chart(results, {"a": "method"}).decode()
    xs = [float(x) for x in re.findall(r'<use [^>]*x="([\d.]+)" y="[\d.]+" style="fill: #0a6b66', svg)][:3]
    assert xs[1] - xs[0] == pytest.approx(xs[2] - xs[1], abs=0.2) and xs[0] < xs[1]


def test_running_means_and_thinning():
    points = tuple((i, float(i % 3)) for i in range(80))  # a 25th of them are three
    expected = [(n, np.mean([i % 3 for i in range(max(0, n - 2), n + 1)])) for n in range(80)]
    np.testing.assert_allclose(charts.running_mean(points), expected)
    np.testing.assert_array_equal(charts.thinned(points), points)
    long = charts.thinned([(i, 0) for i in range(10_000)])[:, 0]
    assert len(long) == 240 and (long[0], long[-1]) == (0, 9999) and set(np.diff(long)) <= {41, 42}
