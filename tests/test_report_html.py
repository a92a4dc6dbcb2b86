import base64
import io
import json
import random
import re
import shutil
from html.parser import HTMLParser

import jax
import numpy as np
import pytest
from browser import look_at
from ml_collections import ConfigDict
from PIL import Image

from input_pipeline.labels import CLASSES, PALETTE
from stpl_jax import analysis, analysis_files, checkpoint, report, report_html
from stpl_jax.models import make_segmenter
from stpl_jax.page import charts, parts
from stpl_jax.page.features import features_section
from stpl_jax.report_numbers import make_report, read_curves, read_evaluations
from stpl_jax.report_pictures import Picture

ROWS = {"source_only": 30.0, "bn_statistics": 40.0, "stpl": 55.0, "oracle": 70.0}
FRAMES, MOMENTS = 2, 3
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
    report.write_report(config, folder, lambda line: None)
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
        # The film, four panels of each frame, and frame, label and two feature maps of one.
        assert seen["images"] == seen["shown"] == 1 + 4 * FRAMES + 4
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
    refused = bad.replace(
        "<title>", f'<meta http-equiv="Content-Security-Policy" content="{report_html._POLICY}"><title>'
    )
    for seen in look_at(refused, 390, tmp_path):
        assert seen["problems"] == ["refused: inline"]


def test_everything_is_in_the_one_file(page):
    parsed = Parsed(page)
    assert len(page) < 6e6 and not parsed.all("script") and not parsed.all("link")
    assert not re.search(r"https?:|url\(|@import", page)
    sources = [image["src"] for image in parsed.all("img")] + [source["srcset"] for source in parsed.all("source")]
    assert len(sources) == 1 + 4 * FRAMES + 4 + 2
    for uri in sources:
        assert decoded(uri).width >= 16
    assert all(image["alt"] for image in parsed.all("img"))
    drawings = parsed.all("svg")
    # mIoU, three losses, neighbours, and t-SNE of two sets of classes for two networks.
    assert len(drawings) == 1 + 3 + 1 + 4 and all(svg["role"] == "img" and svg["aria-label"] for svg in drawings)
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
    assert '"method": "stpl"' in text and "seed 0" in text and "0.1." in text


def test_pictures_are_those_of_the_run(run, page):
    parsed = Parsed(page)
    film = decoded(parsed.all("img")[0]["src"])
    still, tall = (decoded(source["srcset"]) for source in parsed.all("source"))
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


def test_curves_are_read_and_start_at_the_source_model(run, page):
    config, folder = run
    curves = read_curves(folder, "stpl")
    assert set(curves) == {"loss/network", "loss/adversary", "validation/miou"}
    assert curves["validation/miou"] == ((30, 50.0), (60, 55.0)) and len(curves["loss/network"]) == 60
    assert read_curves(folder, "nothing") == {}
    chart = page[page.index("Validation mIoU over") :].split("</svg>")[0]
    # Three marks of each row but source_only, which has no start.
    assert chart.count("<circle") == 3 * 3 + 2
    assert "stpl, step 0: 30" in chart and "source_only, step 0" not in chart
    assert "stpl, step 60: 55" in chart and "oracle ends at 70.0" in chart
    # bn_statistics has no loss to show.
    assert "Loss of stpl over training steps: network from 1 to " in page and "Loss of bn_statistics" not in page


def test_what_is_missing_is_left_out(tmp_path, tiny_config):
    write_row(tmp_path, "stpl", 55.0)
    (tmp_path / "stpl" / "metrics.jsonl").unlink()
    found = make_report(tiny_config, read_evaluations(tiny_config, tmp_path))
    page = report_html.page(found, "stpl", {"stpl": {}}, {"stpl": [[0] * 15] * 15})
    parsed = Parsed(page)
    headings = [link["href"] for link in parsed.all("a")]
    assert headings == ["#rows", "#classes", "#settings"] and not parsed.all("img") and not parsed.all("svg")
    text = " ".join(parsed.text)
    assert text.count("not known: a row is missing, or there is no gap") == 3 and "goes from" not in text
    (seen, *_) = look_at(page, 390, tmp_path)
    assert seen["problems"] == [] and seen["width"] <= 390


def test_an_analysis_of_other_weights_is_left_out(run, tmp_path):
    config, folder = run
    for part in ("stpl", "analysis", "world", "data"):
        shutil.copytree(folder / part, tmp_path / part)
    shutil.copytree(folder / "stpl" / "checkpoints", tmp_path / "source_only" / "checkpoints")
    lines = []
    report.write_report(config, tmp_path, lines.append)
    assert any("a network has changed since" in line for line in lines)
    assert 'id="features"' not in (tmp_path / "report.html").read_text()


@pytest.mark.parametrize("file", ["analysis.json", "drawings.json"])
@pytest.mark.parametrize(
    "content", [b"", b'{"tsne": {"al', b"\xff\x00", b"[]", b'{"checkpoints": 3, "tsne": 3, "maps": 3}']
)
def test_a_damaged_analysis_is_told_and_left_out(run, tmp_path, file, content):
    config, folder = run
    (tmp_path / "analysis").mkdir()
    for name in ("analysis.json", "drawings.json"):
        shutil.copy(folder / "analysis" / name, tmp_path / "analysis")
    (tmp_path / "analysis" / file).write_bytes(content)
    lines = []
    found = analysis_files.read_results(tmp_path, lines.append)
    assert (found is None) == (file == "analysis.json")
    if found:
        assert analysis_files.read_drawings(tmp_path, found, lines.append) is None
        assert not analysis.is_enough(found, config, folder.parent / tmp_path, list(found["checkpoints"]))
    (line,) = lines
    assert line.startswith(f"analysis  {tmp_path / 'analysis' / file}: expected ") and "--mode=analyse" in line


def test_whatever_a_damaged_analysis_holds_the_page_is_drawn(run, tmp_path):
    """Parts of both files put in the place of others, or one byte changed: left out, or drawn without a stop."""
    _, folder = run
    (tmp_path / "analysis").mkdir()
    texts = {name: (folder / "analysis" / name).read_bytes() for name in ("analysis.json", "drawings.json")}
    draw, drawn = random.Random(0), 0
    for i in range(120):
        for name, text in texts.items():
            if i % 2 == (name == "analysis.json"):
                # The pictures are most of the file: half of the changes go to the part before them.
                end = text.find(b"data:image") if i % 4 < 2 else len(text)
                place = draw.randrange(end if end > 0 else len(text))
                new = draw.choice([bytes([text[place] ^ 1 << draw.randrange(8)]), b"", b"<b>", b"-", b"null", b'"'])
                text = text[:place] + new + text[place + 1 :]
            (tmp_path / "analysis" / name).write_bytes(text)
        results = analysis_files.read_results(tmp_path, lambda line: None)
        drawings = results and analysis_files.read_drawings(tmp_path, results, lambda line: None)
        if drawings:
            styles = parts.row_styles(results["checkpoints"], "stpl")
            page = features_section(results, drawings, styles, CLASSES["viper"])
            assert "<b>" not in page and len(Parsed(page).all("img")) == 4
            drawn += 1
    assert 0 < drawn < 120


def test_a_page_without_its_drawings(run, tmp_path):
    _, folder = run
    shutil.copytree(folder, tmp_path / "run")
    (tmp_path / "run" / "analysis" / "drawings.json").unlink()
    lines = []
    report.write_report(run[0], tmp_path / "run", lines.append)
    assert any("without feature space: drawings.json is not there" in line for line in lines)
    assert 'id="features"' not in (tmp_path / "run" / "report.html").read_text()


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
    picture = Picture(name, f"frames/{name}.png", {name: "data:image/png;base64,AA"})
    parsed = Parsed(report_html.page(found, name, curves, confusion, [picture]))
    (image,) = parsed.all("img")
    assert image == {"src": "data:image/png;base64,AA", "alt": f"Classes that {name} predicts, clip {name}"}
    assert name in "".join(parsed.text)
    assert any(name in svg["aria-label"] for svg in parsed.all("svg"))


@pytest.mark.parametrize(
    "low, high, expected",
    [(0, 900, [0, 200, 400, 600, 800, 1000]), (23.6, 59.3, [20, 30, 40, 50, 60]), (-0.31, 0.12, [-0.4, -0.3])],
)
def test_ticks_are_round_and_reach_around(low, high, expected):
    ticks = charts.round_ticks(low, high, 5)
    assert ticks[0] <= low and ticks[-1] >= high and 2 <= len(ticks) <= 7
    np.testing.assert_allclose(ticks[: len(expected)], expected, atol=1e-9)


def test_charts_take_what_comes():
    assert charts.round_ticks(3, 3, 5)[0] < 3 < charts.round_ticks(3, 3, 5)[-1]
    assert charts.tick_texts([-0.5, 0, 0.5]) == ["−0.5", "0", "0.5"]
    assert charts.tick_texts([0, 200]) == ["0", "200"]
    nothing = charts.line_chart([charts.Line("a", (), "s-0")], "x", "y", "empty")
    assert "<circle" not in nothing and nothing.endswith("</svg>")
    one = charts.line_chart([charts.Line("a", ((5, 7.0),), "s-0")], "x", "y", "one")
    assert one.count("<circle") == 1 and 'class="line' not in one
    xs, ys = zip(*(map(float, c.groups()) for c in re.finditer(r'cx="([\d.]+)" cy="([\d.]+)"', one)), strict=True)
    assert 0 < xs[0] < charts._WIDTH and 0 < ys[0] < charts._HEIGHT
    # On a logarithmic axis equal factors are equally far apart.
    log = charts.line_chart([charts.Line("a", ((1, 0), (10, 0), (100, 0)), "s-0")], "x", "y", "log", (1, 10, 100), True)
    xs = [float(x) for x in re.findall(r'cx="([\d.]+)"', log)]
    assert xs[1] - xs[0] == pytest.approx(xs[2] - xs[1], abs=0.2)


def test_running_means_and_thinning():
    points = tuple((i, float(i % 3)) for i in range(10))
    mean = charts.smoothed(points, 3)
    assert [x for x, _ in mean] == list(range(10))
    np.testing.assert_allclose(
        [y for _, y in mean], [np.mean([i % 3 for i in range(max(0, n - 2), n + 1)]) for n in range(10)]
    )
    assert charts.thinned(points, 4) == (points[0], points[3], points[6], points[9])
    assert charts.thinned(points, 3) == (points[0], points[4], points[8], points[9])
    assert charts.thinned(points, 100) == points


def test_only_the_first_process_writes_the_page(run, tmp_path, monkeypatch):
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    report.write_report(run[0], tmp_path)
    assert not list(tmp_path.iterdir())
