"""One prepared set serves all that read parts of it, and a part's digest does not depend on what lies beside it."""

import dataclasses
import shutil

import numpy as np
import pytest
from raw_trees import write_viper

from input_pipeline import prepare as preparing
from input_pipeline.clips import open_clips, read_clip
from input_pipeline.domains import check_same_data
from input_pipeline.errors import UserError
from input_pipeline.needs import DomainNeeds
from input_pipeline.spec import DatasetSpec, merged

NARROW, WIDE = DomainNeeds((0, 1), ((0, 1),)), DomainNeeds((0, 1, 2), ((0, 1), (1, 2)))


@pytest.fixture
def specs(tmp_path):
    """(narrow, wide): what two rows need of one set of raw files."""
    write_viper(tmp_path / "viper")
    values = ("viper", str(tmp_path / "viper"), "train", "viper", (18, 32), (18, 32))
    return tuple(DatasetSpec(*values, needs.offsets, needs.flow_pairs, "dis") for needs in (NARROW, WIDE))


def prepare(spec, folder):
    lines = []
    return preparing.prepare(spec, folder, lines.append, threads=1), lines


def test_what_rows_need_is_described_as_one_set(specs):
    narrow, wide = specs
    apart = dataclasses.replace(narrow, offsets=(0, 3), flow_pairs=((0, 3),))
    (whole,) = merged([narrow, apart])
    assert (whole.offsets, whole.flow_pairs) == ((0, 1, 3), ((0, 1), (0, 3)))
    assert merged([narrow, wide]) == {wide: [narrow, wide]}
    other = dataclasses.replace(wide, size=(20, 32))
    assert merged([narrow, other]) == {narrow: [narrow], other: [other]}


def test_a_set_that_holds_more_serves_who_needs_less(specs, tmp_path):
    narrow, wide = specs
    path, _ = prepare(wide, tmp_path / "prepared")
    assert prepare(narrow, tmp_path / "prepared") == (path, [])
    assert preparing.find(narrow, tmp_path / "prepared") == path
    alone = open_clips(prepare(narrow, tmp_path / "alone")[0])
    for i in range(len(alone)):
        clips = [read_clip(source, i, NARROW.offsets, NARROW.flow_pairs, True) for source in (open_clips(path), alone)]
        for key in ("frames", "flow", "label"):
            np.testing.assert_array_equal(clips[0][key], clips[1][key])


def test_a_set_that_holds_less_does_not_serve_and_stays(specs, tmp_path):
    narrow, wide = specs
    path, _ = prepare(narrow, tmp_path / "prepared")
    other, lines = prepare(wide, tmp_path / "prepared")
    assert other != path and "clips prepared" in lines[-1]
    assert prepare(narrow, tmp_path / "prepared") == (path, [])
    for change in ({"size": (20, 32)}, {"label_size": None}, {"raw_dir": str(tmp_path)}):
        assert preparing.find(dataclasses.replace(narrow, **change), tmp_path / "prepared") is None


def test_a_row_goes_on_from_another_set_with_the_same_clips(specs, tmp_path):
    narrow, wide = specs
    path, _ = prepare(narrow, tmp_path / "prepared")
    begun = {"target": open_clips(path, NARROW).digest}
    shutil.rmtree(path)
    path, _ = prepare(wide, tmp_path / "prepared")
    check_same_data(begun, {"target": open_clips(path, NARROW)}, "row")
    with pytest.raises(UserError, match="begun with other clips"):
        check_same_data(begun, {"target": open_clips(path, WIDE)}, "row")
    # A frame that the row does not read may change; one that it reads may not.
    images = tmp_path / "viper" / "train" / "img" / "001"
    for back, same in ((2, True), (1, False)):
        shutil.copy(images / "001_00010.jpg", images / f"001_{20 - back:05}.jpg")
        path, lines = prepare(wide, tmp_path / "prepared")
        assert "prepared anew" in lines[0]
        assert (open_clips(path, NARROW).digest == begun["target"]) is same


def test_a_larger_set_that_is_damaged_or_out_of_date_does_not_serve(specs, tmp_path):
    narrow, wide = specs
    path, _ = prepare(wide, tmp_path / "prepared")
    (path / "metadata.json").write_text("{")
    own, lines = prepare(narrow, tmp_path / "prepared")
    assert own != path and "clips prepared" in lines[-1]
