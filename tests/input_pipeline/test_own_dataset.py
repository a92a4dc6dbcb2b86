"""How to add a data set: this file has all of one, without a line elsewhere; and one that has no labels at all."""

import pickle
import re
from pathlib import Path

import numpy as np
import pytest
from film_dataset import FILM, picture, save
from PIL import Image

from configs import base
from input_pipeline import labels
from input_pipeline.builders.checks import BadFilesError
from input_pipeline.class_maps import ClassMap
from input_pipeline.clips import open_clips, read_clip
from input_pipeline.dataset import Dataset, labelled_clips
from input_pipeline.datasets import DATASETS
from input_pipeline.domains import domain_spec, open_domain
from input_pipeline.errors import UserError
from input_pipeline.flow_files import write_flow
from input_pipeline.loader import eval_batches, train_batches
from input_pipeline.needs import DomainNeeds

SIZE = (24, 32)
LABEL = re.compile(r"(\w)(\d+)\.png")


def flow_name(video, current, earlier):
    return f"{video}{current}from{earlier}.npy"


def labelled_folders(spec):
    root = Path(spec.raw_dir) / spec.split
    return [(root / "pictures", root / "ids")]


def list_labelled(spec):
    return labelled_clips(spec, TOY, "*/*", LABEL, ".png", lambda video, number: f"{video}{number}")


TOY = Dataset(
    name="toy",
    folders=labelled_folders,
    expected="SPLIT/pictures/V/VF.png and SPLIT/ids/V/VF.png",
    list_clips=list_labelled,
    flow_name=flow_name,
    rows_kept=lambda height: height - 4,
    labels="V/VF.png",
    label_files="one 8-bit channel of class ids",
    ids={0: "nothing", 5: "way", 6: "track", 9: "plant"},
    ids_name="the toy's ids",
    classes=("ground", "green"),
    colours={"ground": (90, 80, 70), "green": (0, 200, 0)},
    settings={"toy": {"way": "ground", "track": "ground", "plant": "green"}},
    class_maps={
        "viper": ClassMap(
            dict.fromkeys(labels.CLASSES["viper"])
            | {"road": "ground", "sidewalk": "ground", "vegetation": "green", "terrain": "green"}
        )
    },
)


IDS = np.random.default_rng(0).choice(np.array([0, 5, 6, 9], np.uint8), SIZE)


@pytest.fixture
def config(tmp_path, monkeypatch):
    """The toy as source and, for scoring, as target; the film without labels to adapt on."""
    monkeypatch.setitem(DATASETS, "toy", TOY)
    monkeypatch.setitem(DATASETS, "film", FILM)
    for split in ("train", "val"):
        for video in "ab":
            for n in (6, 7):
                save(tmp_path / "toy" / split / "pictures" / video / f"{video}{n}.png", picture(n, SIZE))
            save(tmp_path / "toy" / split / "ids" / video / f"{video}7.png", IDS)
            write_flow(tmp_path / "flow" / flow_name(video, 7, 6), np.full((*SIZE, 2), 1.5))
    for n in range(4):
        save(tmp_path / "film" / f"{n}.png", picture(n, SIZE))
    config = base.get_config()
    config.data.classes = "toy"
    for section in (config.data.source, config.data.target):
        section.update(name="toy", raw_dir=str(tmp_path / "toy"), size=(16, 20))
    return config


def as_film(config, tmp_path):
    config.data.target.update(name="film", raw_dir=str(tmp_path))
    return config


def silent(line):
    del line


def test_it_is_listed_prepared_and_read_back(config, tmp_path):
    source = open_domain(config, tmp_path / "run", "source", DomainNeeds(labels=True), silent)
    assert [source[i]["name"].decode() for i in range(len(source))] == ["a_7", "b_7"]
    clip = read_clip(source, 0, (0, 1), ((0, 1),), True)
    shown = Image.fromarray(picture(6, SIZE)[:20]).resize((20, 16), Image.Resampling.BICUBIC)
    np.testing.assert_array_equal(clip["frames"][1], shown)
    meant = np.array([255, 255, 255, 255, 255, 0, 0, 255, 255, 1], np.uint8)[IDS[:20]]
    meant = Image.fromarray(meant).resize((20, 16), Image.Resampling.NEAREST)
    np.testing.assert_array_equal(clip["label"], meant)


def test_its_flow_files_are_found(config, tmp_path):
    config.flow.files, config.data.source.flow_dir = "read", str(tmp_path / "flow")
    source = open_domain(config, tmp_path / "run", "source", None, silent)
    flow = read_clip(source, 0, (0,), ((0, 1),), False)["flow"]
    np.testing.assert_array_equal(flow[0, 5, 5], np.rint([15 * 19 / 31, 15 * 15 / 19]))


def test_its_classes_are_known():
    with pytest.raises(UserError, match="Known: viper with viper"):
        labels.train_id_table("toy", "toy")


def test_its_scored_classes_and_colours_are_known(config):
    assert labels.evaluated_classes("toy").tolist() == [True, True]
    assert labels.colour_table(labels.DATASETS["toy"].classes, "toy")[:3].tolist() == [
        [90, 80, 70],
        [0, 200, 0],
        [0, 0, 0],
    ]
    assert labels.numberings()["the toy's ids"] == {5: {"ground"}, 6: {"ground"}, 9: {"green"}}


def test_a_model_of_other_classes_is_scored_on_its_own(config, tmp_path):
    config.data.classes = "viper"
    spec = domain_spec(config, "val", workdir=tmp_path)
    assert spec.classes == "toy"
    assert labels.class_groups("viper", "toy", "toy") == (0, 0, -1, -1, -1, -1, 1, 1, -1, -1, -1, -1, -1, -1, -1)
    assert labels.class_groups("toy", "toy", "toy") is None
    with pytest.raises(UserError, match="toy has labels of the classes of toy, .*data.classes=viper"):
        domain_spec(config, "source", DomainNeeds(labels=True))
    config.data.classes = "synthia_seq"
    with pytest.raises(UserError, match="No class table for data set 'toy' with label setting 'synthia_seq'"):
        domain_spec(config, "val", workdir=tmp_path)


def test_what_is_missing_is_said_in_its_own_words(config, tmp_path):
    config.data.source.raw_dir = str(tmp_path / "film")
    with pytest.raises(BadFilesError, match="no such folder.*\n.*\nraw_dir should hold SPLIT/pictures/V/VF.png"):
        open_domain(config, tmp_path / "run", "source", None, silent)


def test_without_labels_it_is_prepared_and_read(config, tmp_path):
    source = open_domain(as_film(config, tmp_path), tmp_path / "run", "target", DomainNeeds(), silent)
    assert [source[i]["name"].decode() for i in range(len(source))] == ["film_001", "film_002", "film_003"]
    clip = read_clip(source, 1, (0, 1), ((0, 1),), False)
    assert clip["frames"].shape == (2, 16, 20, 3) and "label" not in clip
    assert pickle.loads(pickle.dumps(source)).digest == source.digest
    wanted = dict(batch_size=2, offsets=(0, 1), flow_pairs=(), num_threads=0)
    batch, _ = next(train_batches(source, **wanted, seed=0, label=False, prefetch=0))
    assert "label" not in batch
    batches = list(eval_batches(source, **wanted, label=False))
    assert [name for batch in batches for name in batch["name"]][:3] == ["film_001", "film_002", "film_003"]
    with pytest.raises(UserError, match="train of film has no labels"):
        next(train_batches(source, **wanted, seed=0, label=True, prefetch=0))
    with pytest.raises(UserError, match="nothing can be scored on it"):
        next(eval_batches(source, **wanted))
    assert open_clips(source.path).spec.classes is None


def test_without_labels_training_with_labels_ends_at_once(config, tmp_path):
    as_film(config, tmp_path)
    assert domain_spec(config, "val", workdir=tmp_path).classes is None
    with pytest.raises(UserError, match=r"film \(train\) has no labels, and training"):
        domain_spec(config, "target", DomainNeeds(labels=True))


def test_clips_that_a_person_labelled_are_read_with_their_masks(config, tmp_path):
    source = open_domain(as_film(config, tmp_path), tmp_path / "run", "val", None, silent)
    masks = {1: np.full((16, 20), 3, np.uint8), 0: np.full((16, 20), 255, np.uint8)}
    wanted = dict(batch_size=3, offsets=(0, 1), flow_pairs=(), num_threads=0)
    (batch,) = eval_batches(source, **wanted, label=False, masks=masks)
    assert batch["name"] == ["film_002", "film_003", "film_003"] and batch["valid"].tolist() == [True, True, False]
    np.testing.assert_array_equal(batch["label"][:, 0, 0], [255, 3, 3])


def test_without_frames_it_says_so(config, tmp_path):
    (tmp_path / "empty" / "film").mkdir(parents=True)
    config.data.target.update(name="film", raw_dir=str(tmp_path / "empty"))
    with pytest.raises(BadFilesError, match="expected frames, found no files"):
        open_domain(config, tmp_path / "run", "target", DomainNeeds(), silent)
