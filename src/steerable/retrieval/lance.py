"""An index in a LanceDB table: each addition is one commit, so that a killed process leaves all of it or nothing."""

import contextlib
import json
import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
from torch import Tensor

from steerable.errors import DataError, MissingExtra, SteerableError
from steerable.retrieval.index import SCORE, STANDARD, VECTOR, Index
from steerable.retrieval.memory import unreadable

TABLE = "images"
FACTS = b"steerable"  # key of the facts in the table's metadata
CHECKED, DEEP = 100, 10  # recall@10 is measured with 100 stored images as queries
REFINE = 10  # the nearest 10 k of the compressed vectors are ranked again by the full ones
LIST = 4096  # rows in a list of the approximate index; more of them are searched than LanceDB does by default
PROBES = 32
_DISTANCE = "_distance"
_CONDITION = ("Invalid input", "Schema error", "sql parser", "parsing")


class LanceIndex(Index):
    """A table in a folder (or at an address of LanceDB's), searched exactly until `compact` indexes it."""

    def __init__(self, uri: str, facts: dict[str, Any]):
        self.name = uri
        self._remote = "://" in uri
        self._place = uri if self._remote else str(Path(uri).expanduser())
        self._table: Any = None
        if self._exists():
            with self._damage():
                self._table = self._connect().open_table(TABLE)
                stored = (self._table.schema.metadata or {}).get(FACTS)
                facts = json.loads(stored) if stored else {}
            self._check_ours(facts)
        self.facts = facts

    def __len__(self) -> int:
        with self._damage():
            return 0 if self._table is None else self._table.count_rows()

    def ids(self) -> set[str]:
        if self._table is None:
            return set()
        with self._damage():
            return set(self._table.search().select(["id"]).limit(None).to_arrow()["id"].to_pylist())

    def _exists(self) -> bool:
        """Whether there is a table. A process killed while it began one may leave folders without a version."""
        if self._remote:
            return TABLE in self._connect().list_tables().tables
        folder = Path(self._place)
        if folder.is_file():
            raise DataError(f"{self.name} is a file; expected the folder of an index: name another place")
        table = folder / f"{TABLE}.lance"
        if any(table.glob("_versions/*.manifest")):
            return True
        if any(table.glob("data/*")):
            raise self._damaged("no version of the table is left")
        return False

    def _connect(self) -> Any:
        os.environ.setdefault("LANCE_LOG", "error")  # else it talks about what is not our user's business
        try:
            import lancedb
        except ImportError:
            raise MissingExtra("lancedb", "search") from None
        return lancedb.connect(self._place)

    def _check_ours(self, facts: dict[str, Any]) -> None:
        schema = self._table.schema
        kind = schema.field(VECTOR).type if VECTOR in schema.names else None
        if "id" not in schema.names or kind != pa.list_(pa.float32(), facts.get("dim", -1)):
            raise DataError(
                f"the table at {self.name} was not written by steerable; expected one of Index.add or "
                "steerable index: name another place"
            )

    def _begin(self, facts: dict[str, Any]) -> None:
        if self._table is None:
            vector = pa.field(VECTOR, pa.list_(pa.float32(), facts["dim"]))
            schema = pa.schema([*STANDARD.items(), vector], metadata={FACTS: json.dumps(facts)})
            with self._damage():
                self._table = self._connect().create_table(TABLE, schema=schema, exist_ok=True)
        self.facts = facts

    def _schema(self) -> pa.Schema:
        return self._table.schema

    def _insert(self, rows: pa.Table) -> int:
        with self._damage():
            missing = [
                rows.schema.field(name) for name in rows.column_names if name not in self._schema().names
            ]
            if missing:
                self._table.add_columns(pa.schema(missing))
            # ids are compared inside the commit: two processes that add the same images add them once
            done = self._table.merge_insert("id").when_not_matched_insert_all().execute(rows)
            return done.num_inserted_rows

    def _nearest(self, e: Tensor, k: int, where: str | None) -> list[dict[str, Any]]:
        names = [name for name in self._schema().names if name != VECTOR]
        with self._damage(where):
            query = self._query(e.numpy()).limit(k).select([*names, _DISTANCE])
            rows = (query if where is None else query.where(f"({where})")).to_list()
        return [{**{name: row[name] for name in names}, SCORE: 1 - row[_DISTANCE]} for row in rows]

    def _query(self, e: Any, *, exact: bool = False) -> Any:
        query = self._table.search(e, vector_column_name=VECTOR).distance_type("cosine")
        return query.bypass_vector_index() if exact else query.nprobes(PROBES).refine_factor(REFINE)

    def compact(self, *, ann_from: int = 100_000) -> float | None:
        if self._table is None:
            return None
        with self._damage():
            self._table.optimize()
            if len(self) < max(ann_from, 256):  # fewer cannot train the codes of the compressed vectors
                return None
            if not self._table.list_indices():
                from lancedb.index import IvfPq

                self._table.create_index(
                    VECTOR, config=IvfPq(distance_type="cosine", target_partition_size=LIST)
                )
            return self._recall()

    def _recall(self) -> float:
        """Share of the ten exact neighbors that the approximate search finds, for stored images as queries."""
        places = random.Random(0).sample(range(len(self)), min(CHECKED, len(self)))
        queries = self._table.take_offsets(sorted(places)).select(["id", VECTOR]).to_list()
        found = 0
        for query in queries:
            near, true = (
                {row["id"] for row in search.limit(DEEP + 1).select(["id", _DISTANCE]).to_list()}
                for search in (self._query(query[VECTOR]), self._query(query[VECTOR], exact=True))
            )
            found += len((near & true) - {query["id"]})
        return found / (DEEP * len(queries))

    @contextlib.contextmanager
    def _damage(self, where: str | None = None) -> Iterator[None]:
        """Errors of LanceDB as one line; its panics are no Exceptions."""
        try:
            yield
        except SteerableError:
            raise
        except BaseException as error:
            if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
                raise
            if where is not None and any(word in str(error) for word in _CONDITION):
                raise unreadable(where, error, self._schema().names) from None  # pyright: ignore
            raise self._damaged(f"{type(error).__name__}: {error}") from None

    def _damaged(self, reason: str) -> DataError:
        return DataError(
            f"the index at {self.name} is damaged or cannot be used ({' '.join(reason.split())[:200]}); expected an "
            "undamaged table: remove that folder and run steerable index again"
        )
