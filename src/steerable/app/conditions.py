"""Conditions from strangers: a small part of SQL in which nothing can be called and no other table be read."""

import re
from collections.abc import Collection

from steerable.errors import DataError

WORDS = {"and", "or", "not", "in", "like", "is", "null", "between", "true", "false"}
_TOKEN = re.compile(
    r"\s*(?:(?P<text>'(?:[^']|'')*')|(?P<number>-?\d{1,15}(?:\.\d{1,15})?(?![\w.]))"
    r"|(?P<name>[A-Za-z_]\w*)|(?P<sign><=|>=|<>|!=|=|<|>|\(|\)|,))"
)


def checked_condition(where: str | None, columns: Collection[str], *, longest: int) -> str | None:
    """The condition as it came, if it compares columns with values; None or blank is none.

    Columns of ``columns``, texts in single quotes, numbers, comparisons, parentheses, and AND, OR, NOT, IN, LIKE,
    IS NULL, BETWEEN. Functions and subqueries, which could run forever, are not part of it.

    Raises:
        DataError: anything else, or more than ``longest`` characters.
    """
    if where is None or not where.strip():
        return None
    if len(where) > longest:
        raise DataError(
            f"the condition has {len(where):,} characters; expected {longest} at most: shorten it"
        )
    place, called = 0, None
    text = where.rstrip()
    while place < len(text):
        found = _TOKEN.match(text, place)
        if not found or (called and found["sign"] == "("):
            raise _unreadable(text[place:].strip(), columns)
        name = found["name"]
        if name and name.lower() not in WORDS and name not in columns:
            raise _unreadable(name, columns)
        called = name if name and name.lower() not in {"and", "or", "not", "in"} else None
        place = found.end()
    return where


def quoted(text: str) -> str:
    """A text as a value in a condition."""
    return "'" + text.replace("'", "''") + "'"


def _unreadable(part: str, columns: Collection[str]) -> DataError:
    return DataError(
        f"the condition cannot be read at {part[:40]!r}; expected comparisons of {', '.join(columns)}: "
        "e.g. label = 'rose' and width > 200"
    )
