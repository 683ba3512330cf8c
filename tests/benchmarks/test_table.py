"""The benchmark's table says what was measured, beside its goal, and by how much a goal is missed."""

from __future__ import annotations

import json

import pytest

from benchmarks.__main__ import BEGIN, END, put_between_marks
from benchmarks.table import Check, Row, as_markdown, as_text, median_check, percentile, quartiles


@pytest.mark.parametrize(
    ("value", "limit", "verdict"),
    [
        (3.0, 3.0, "met"),
        (2.9, 3.0, "met"),
        (3.3, 3.0, "missed by 10 %"),
        (3.001, 3.0, "missed by 1 %"),
        (2.0, 0.0, "missed: 2"),
        (0.0, 0.0, "met"),
        (7.0, None, ""),
    ],
)
def test_a_goal_is_met_up_to_its_limit_and_missed_by_whole_percents_above(
    value: float, limit: float | None, verdict: str
) -> None:
    assert verdict == Check("number", value, "ms", limit).verdict


def test_the_median_counts_and_the_middle_half_is_its_spread() -> None:
    check = median_check("number", [9.0, 1.0, 3.0, 2.0, 4.0], "x", 1.5)
    assert (check.value, check.low, check.high) == (3.0, 2.0, 4.0)


def test_three_measurements_are_shown_with_their_range() -> None:
    assert quartiles([3.0, 1.0, 2.0]) == (1.0, 3.0)


@pytest.mark.parametrize(("share", "expected"), [(0.99, 99), (1.0, 100), (0.5, 50), (0.0, 1)])
def test_a_percentile_is_the_smallest_value_that_so_many_do_not_exceed(share: float, expected: int) -> None:
    assert expected == percentile(range(1, 101), share)


def test_the_99th_percentile_of_a_few_values_is_the_largest() -> None:
    assert percentile([5.0, 7.0, 6.0], 0.99) == 7.0


ROW = Row("key", "some work", (Check("time", 1.5, "ms", 1.0, 1.0, 2.0), Check("more", 2.0, "x")), ("a note",), {"a": 1})


def test_text_and_markdown_hold_value_goal_spread_and_verdict() -> None:
    for table in (as_text([ROW]), as_markdown([ROW])):
        for part in ("some work", "1.50 ms", "<= 1 ms", "1.00 to 2.00", "missed by 50 %", "2.00x", "a note"):
            assert part in table


def test_every_line_of_the_markdown_table_has_the_columns_of_its_head() -> None:
    lines = [line for line in as_markdown([ROW]).splitlines() if line.startswith("|")]
    assert [line.count("|") for line in lines] == [7, 7, 7, 7]


def test_json_holds_everything() -> None:
    document = json.loads(json.dumps(ROW.as_json()))
    assert document == {
        "row": "key",
        "label": "some work",
        "checks": [
            {
                "what": "time", "value": 1.5, "unit": "ms", "goal": 1.0, "of_goal": 1.5, "met": False,
                "spread": [1.0, 2.0],
            },
            {"what": "more", "value": 2.0, "unit": "x", "goal": None, "of_goal": None, "met": True, "spread": None},
        ],
        "notes": ["a note"],
        "details": {"a": 1},
    }  # fmt: skip


def test_a_document_gets_its_table_between_the_marks_again_and_again() -> None:
    once = put_between_marks(f"before\n{BEGIN}\nold\n{END}\nafter\n", "| new |")
    assert once == f"before\n{BEGIN}\n\n| new |\n\n{END}\nafter\n"
    assert put_between_marks(once, "| new |") == once


def test_a_document_without_marks_is_left_alone() -> None:
    with pytest.raises(ValueError, match="lacks"):
        put_between_marks("nothing", "| new |")
