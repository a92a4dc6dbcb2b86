"""docs/performance.md: its tables are those of the benchmarks' files, and figures are in their places."""

import pytest

from benchmarks import measure, performance


def test_the_page_has_the_tables_of_the_files():
    page = performance.PAGE.read_text()
    assert performance.fill(page, performance.tables(measure.RESULTS)) == page, "run python -m benchmarks.performance"


def test_a_table_replaces_what_stood_there():
    page = "a <!-- one --> old <!-- /one --> b <!-- two --><!-- /two --> c"
    filled = performance.fill(page, {"one": "1", "two": "2"})
    assert filled == "a <!-- one -->\n\n1\n\n<!-- /one --> b <!-- two -->\n\n2\n\n<!-- /two --> c"
    assert performance.fill(filled, {"one": "1", "two": "2"}) == filled


@pytest.mark.parametrize("page", ["", "<!-- one -->", "<!-- one --><!-- /one --><!-- one --><!-- /one -->"])
def test_a_place_that_is_missing_or_there_twice_is_named(page):
    with pytest.raises(ValueError, match="<!-- one -->.* not once"):
        performance.fill(page, {"one": "1"})


def test_missing_files_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="loss.json"):
        performance.tables(tmp_path)


def test_figures_are_in_their_columns():
    program = {
        "dtype": "bfloat16",
        "remat": "narrow",
        "clips": 4,
        "flops_per_clip": 8.5e12,
        "temporaries": 3 * 2**30,
        "total": 4 * 2**30,
        "bytes_all_reduced": 2**21,
        "seconds_to_compile": 60.4,
        "scaling": {"corner_links": {"all_reduce_seconds": 0.0015, "share_of_step": 0.0123}},
    }
    failed = {
        "dtype": "float32",
        "remat": "none",
        "clips": 8,
        "does_not_fit": "Used 17G of 15G",
        "seconds_to_compile": 9,
    }
    machine = {"device": "cpu", "cpu": "Some CPU", "cores": 2, "versions": {"jax": "0.1"}, "commit": "0123456789"}
    content = {"machine": machine, "topology": "v5e:2x2", "chips": 4, "programs": [program, failed]}
    lines = performance.compiled([content]).splitlines()
    assert lines[0] == "Some CPU, 2 cores; jax 0.1; commit 0123456."
    assert "| v5e:2x2 (4) | bfloat16 | narrow | 4 | 8.50 | 3.00 | 4.00 | 2 | 1.50 | 1.23% | 60 |" in lines
    assert "| v5e:2x2 (4) | float32 | none | 8 |  | Used 17G of 15G |  |  |  |  | 9 |" in lines
    assert len({line.count("|") for line in lines[2:]}) == 1
