"""Conditions from strangers: what is let through, and that nothing else is."""

import pytest

from steerable.app.conditions import checked_condition, quoted
from steerable.errors import DataError

COLUMNS = ("id", "label", "width")


@pytest.mark.parametrize(
    "where",
    [
        "label = 'rose'",
        "label = 'it''s (a) rose; --' and width > 200",
        "NOT (width <= -3.5 OR label != 'x') AND label IS NOT NULL",
        "label in ('a', 'b') and width between 3 and 5",
        "label like '%ro%'",
    ],
)
def test_comparisons_are_let_through_as_they_are(where: str):
    assert checked_condition(where, COLUMNS, longest=500) == where


@pytest.mark.parametrize(
    "where",
    [
        "1=1; drop table images",
        "(select count(*) from images) > 0",
        "upper(label) = 'X'",
        "label (1) = 2",
        "randomblob(1000000000) is null",
        "other = 1",
        "label = 'open",
        'label = "width"',
        "width > 1 -- comment",
        "width > 1e999",
        "width > 0x10",
        "label = 'a' || 'b'",
        "like('a', 'b')",
        "width = 1 union all",
    ],
)
def test_everything_else_is_refused(where: str):
    with pytest.raises(DataError, match=r"cannot be read.*label"):
        checked_condition(where, COLUMNS, longest=500)


def test_nothing_is_no_condition_and_length_is_bounded():
    assert checked_condition("  ", COLUMNS, longest=5) is None
    assert checked_condition(None, COLUMNS, longest=5) is None
    with pytest.raises(DataError, match="6 characters"):
        checked_condition("width ", COLUMNS, longest=5)


def test_quoted_text_stays_text():
    hostile = "x' or '1'='1"
    assert quoted(hostile) == "'x'' or ''1''=''1'"
    checked_condition(f"label = {quoted(hostile)}", COLUMNS, longest=99)
