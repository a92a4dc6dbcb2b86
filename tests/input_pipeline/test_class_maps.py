"""Class maps: each class of the model at the right class of the set, and every gap in a map is named."""

import numpy as np
import pytest

from input_pipeline.class_maps import LEFT_OUT, ClassMap, class_indices
from input_pipeline.errors import UserError

MODEL, SET = ("road", "wall", "car", "truck", "void"), ("vehicle", "street", "animal")
MAP = {"road": "street", "wall": None, "car": "vehicle", "truck": "vehicle", "void": None}


def test_equal_lists_are_the_identity():
    found = class_indices(MODEL, MODEL)
    assert found.dtype == np.int32 and found.tolist() == [0, 1, 2, 3, 4]


def test_lists_in_another_order_go_by_name():
    assert class_indices(MODEL, MODEL[::-1]).tolist() == [4, 3, 2, 1, 0]


def test_many_to_one():
    found = class_indices(MODEL, SET, ClassMap(MAP, not_predicted=("animal",)))
    assert found.tolist() == [1, LEFT_OUT, 0, 0, LEFT_OUT] and LEFT_OUT == -1


@pytest.mark.parametrize(
    ("changes", "not_predicted", "words"),
    [
        ({"sky": "street"}, ("animal",), "the model does not have: sky"),
        ({"wall": "house"}, ("animal",), "the data set does not have: house"),
        ({}, ("animal", "tree"), "the data set does not have: tree"),
        ({}, (), "nothing for the data set's .*: animal"),
        ({}, ("animal", "street"), "`not_predicted` names: street"),
    ],
)
def test_maps_that_do_not_fit_are_refused(changes, not_predicted, words):
    with pytest.raises(UserError, match=words):
        class_indices(MODEL, SET, ClassMap(MAP | changes, not_predicted))


def test_a_class_of_the_model_must_be_named():
    with pytest.raises(UserError, match="no entry for the model's: wall"):
        class_indices(MODEL, SET, ClassMap({k: v for k, v in MAP.items() if k != "wall"}, ("animal",)))


def test_all_faults_are_said_at_once():
    with pytest.raises(UserError, match="does not have: sky; .*entry for the model's: car; nothing for.*: animal"):
        class_indices(MODEL, SET, ClassMap({"sky": None, **{k: v for k, v in MAP.items() if k != "car"}}))


def test_other_classes_without_a_map_are_refused():
    with pytest.raises(UserError, match="vehicle, street, animal: a class map has to say"):
        class_indices(MODEL, SET)
