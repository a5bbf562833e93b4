"""An index in memory: exact search by one product; conditions are read by SQLite."""

import sqlite3
from typing import Any

import numpy as np
import pyarrow as pa
import torch
import torch.nn.functional as F
from torch import Tensor

from steerable.errors import DataError
from steerable.retrieval.index import SCORE, STANDARD, VECTOR, Index

_READING = (sqlite3.SQLITE_SELECT, sqlite3.SQLITE_READ, sqlite3.SQLITE_FUNCTION)


class MemoryIndex(Index):
    """Exact search; it lives as long as the process."""

    def __init__(self, facts: dict[str, Any]):
        self.name = "memory"
        self.facts = facts
        self._rows: pa.Table | None = None
        self._known: set[str] = set()
        self._units: Tensor | None = None  # (n, d); None where rows have come since
        self._sql: sqlite3.Connection | None = None

    def __len__(self) -> int:
        return len(self._known)

    def ids(self) -> set[str]:
        return set(self._known)

    def _begin(self, facts: dict[str, Any]) -> None:
        self.facts = facts

    def _schema(self) -> pa.Schema:
        return pa.schema(STANDARD) if self._rows is None else self._rows.schema

    def _insert(self, rows: pa.Table) -> int:
        new = [place for place, name in enumerate(rows["id"].to_pylist()) if name not in self._known]
        rows = rows.take(pa.array(new, pa.int64()))
        have = self._schema().empty_table() if self._rows is None else self._rows
        self._rows = pa.concat_tables([have, rows], promote_options="default")
        self._known.update(rows["id"].to_pylist())
        self._units, self._sql = None, None
        return len(new)

    def _nearest(self, e: Tensor, k: int, where: str | None) -> list[dict[str, Any]]:
        rows = self._rows
        if rows is None:
            return []
        if self._units is None:
            vectors = rows[VECTOR].combine_chunks().flatten().to_numpy(zero_copy_only=False)
            self._units = F.normalize(torch.from_numpy(np.array(vectors)).view(len(rows), -1), dim=1)
        scores = self._units @ F.normalize(e, dim=0)
        allowed = (
            torch.arange(len(rows))
            if where is None
            else torch.tensor(self._matching(where), dtype=torch.int64)
        )
        best, place = scores[allowed].topk(min(k, len(allowed)))
        found = rows.drop_columns([VECTOR]).take(allowed[place].numpy()).to_pylist()
        return [{**row, SCORE: score} for row, score in zip(found, best.tolist(), strict=True)]

    def _matching(self, where: str) -> list[int]:
        """Places of the rows that meet the condition."""
        if self._sql is None:
            self._sql = _as_sql(self._rows.drop_columns([VECTOR]))  # pyright: ignore
        try:
            return [place for (place,) in self._sql.execute(f"SELECT rowid FROM images WHERE ({where}\n)")]
        except (sqlite3.Error, sqlite3.Warning) as error:
            raise unreadable(where, error, self._schema().names) from None


def unreadable(where: str, error: Exception, names: list[str]) -> DataError:
    """The error for a condition that cannot be read."""
    return DataError(
        f"where is {where!r}, which cannot be read ({' '.join(str(error).split())[:200]}); expected a "
        f"condition on {', '.join(name for name in names if name != VECTOR)}: e.g. label = 'rose'"
    )


def _as_sql(rows: pa.Table) -> sqlite3.Connection:
    """The columns as a table whose rowid is the row's place, read-only from then on."""
    connection = sqlite3.connect(":memory:", check_same_thread=False)
    names = [f'"{name.replace(chr(34), chr(34) * 2)}"' for name in rows.column_names]
    connection.execute(f"CREATE TABLE images (rowid INTEGER PRIMARY KEY, {', '.join(names)})")
    marks = ", ".join("?" * (len(names) + 1))
    values = ((place, *row.values()) for place, row in enumerate(rows.to_pylist()))
    connection.executemany(f"INSERT INTO images VALUES ({marks})", values)
    connection.execute("PRAGMA case_sensitive_like = ON")  # as LanceDB has it
    connection.set_authorizer(
        lambda action, *_: sqlite3.SQLITE_OK if action in _READING else sqlite3.SQLITE_DENY
    )
    return connection
