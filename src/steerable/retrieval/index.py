"""Index: embeddings with what is known about their images, searched by cosine."""

import hashlib
import os
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa
import torch
from torch import Tensor

from steerable.errors import BundleError, ConfigError, DataError, ShapeError

VECTOR, SCORE = "vector", "score"
STANDARD = {
    "id": pa.string(),
    "path": pa.string(),
    "label": pa.string(),
    "width": pa.int64(),
    "height": pa.int64(),
    "thumbnail": pa.binary(),
}
"""Columns that every index has, null where they are not given; further ones come with the first rows that have them."""


class Index(ABC):
    """Rows of an embedding and columns about its image: id, path, label, width, height, thumbnail, and your own.

        index = Index.open("flowers.db", model=model)
        index.add(model.encode(images), id=hashes, path=paths, label=names)
        hits = index.search(model.steer(e, model.theta(hue=0.2)), k=12, where="label = 'rose'")

    Attributes:
        name: where it lives, for messages.
        facts: what its embeddings are: dim, and where a model was given: encoder, fingerprint (the encoder's),
            chain, and the notes of `open`. Empty until the first rows come.
    """

    name: str
    facts: dict[str, Any]

    @staticmethod
    def open(
        uri: str | os.PathLike[str] | None = None,
        *,
        model: Any = None,
        notes: Mapping[str, Any] | None = None,
    ) -> "Index":
        """Open an index, or begin one; nothing is written before the first `add`.

        uri: None or "memory" for exact search in memory; else a folder, or an address that LanceDB knows.
        model: a `SteerableEncoder`. A new index remembers whose embeddings it holds; an existing one must hold
            those of the same encoder. Another map on the same encoder fits.
        notes: JSON-able facts that a new index keeps beside them.

        Raises:
            BundleError: the index holds embeddings of another encoder.
            DataError: the table is damaged, or is no table of ours.
            MissingExtra: a persistent index without lancedb.
        """
        wanted = {} if model is None else _facts(model)
        if uri is None or os.fspath(uri) == "memory":
            from steerable.retrieval.memory import MemoryIndex

            return MemoryIndex({**wanted, **(notes or {})})
        from steerable.retrieval.lance import LanceIndex

        index = LanceIndex(os.fspath(uri), {**wanted, **(notes or {})})
        index._check_fits(wanted)
        return index

    def add(self, e: Tensor, **columns: Sequence[Any]) -> int:
        """Add the rows whose id is new, all or none; returns how many those were.

        e: (n, d), floating, finite, not zero; stored as it is, in float32.
        columns: n values each, text, numbers or bytes, None where unknown. ``id`` says what counts as the same
            row (the hash of the image's content); without it, the embedding's own hash does.

        Raises:
            ShapeError: e of another shape, width or type, or without a direction.
            DataError: another number of values, or a column of another type than the index has.
        """
        e = self._check_embeddings(e)
        if not len(e):
            return 0
        self._begin({"dim": e.shape[1], **self.facts})
        ids = columns.get("id")
        if ids is None:
            ids = [hashlib.sha256(row.tobytes()).hexdigest() for row in e.numpy()]
        first = {name: place for place, name in reversed(list(enumerate(ids)))}
        rows = _table(e, {**columns, "id": ids}, self._schema())
        return self._insert(rows.take(sorted(first.values())))

    def search(self, e: Tensor, k: int = 12, *, where: str | None = None) -> list[dict[str, Any]]:
        """The k rows nearest to one embedding, best first: their columns, and ``score``, the cosine.

        e: (d,) or (1, d), steered or not. Fewer rows come back where fewer there are.
        where: a condition in SQL that rows must meet, such as ``label = 'rose' and width > 200``.

        Raises:
            ShapeError: e of another shape, width or type, or without a direction.
            ConfigError: k below 1.
            DataError: the index is empty or damaged, or ``where`` cannot be read.
        """
        if isinstance(e, Tensor) and e.ndim == 1:
            e = e[None]
        e = self._check_embeddings(e)
        if len(e) != 1:
            raise ShapeError(
                f"{len(e)} query embeddings; expected one, (d,) or (1, d): search with one at a time"
            )
        if k < 1:
            raise ConfigError(f"k is {k}; expected at least 1 result: raise it")
        if not len(self):
            raise DataError(
                f"there is no index at {self.name}, or it is empty; expected rows to search: add some with "
                "Index.add or steerable index"
            )
        return self._nearest(e[0], k, where)

    def compact(self, *, ann_from: int = 100_000) -> float | None:
        """Tidy up after many additions, and index approximately where there are ``ann_from`` rows or more.

        Returns recall@10 of the approximate search against the exact one, None where there is no approximate one.
        """
        return None

    @abstractmethod
    def __len__(self) -> int:
        """Number of rows."""

    @abstractmethod
    def ids(self) -> set[str]:
        """The ids of all rows."""

    @abstractmethod
    def _begin(self, facts: dict[str, Any]) -> None:
        """Make what holds the rows, if that is not there."""

    @abstractmethod
    def _schema(self) -> pa.Schema: ...

    @abstractmethod
    def _insert(self, rows: pa.Table) -> int:
        """Add those whose ids are new, in one step; the ids differ from each other."""

    @abstractmethod
    def _nearest(self, e: Tensor, k: int, where: str | None) -> list[dict[str, Any]]: ...

    def _check_fits(self, wanted: Mapping[str, Any]) -> None:
        for key in ("dim", "fingerprint"):
            have, want = self.facts.get(key), wanted.get(key)
            if have is not None and want is not None and have != want:
                raise BundleError(
                    f"the index at {self.name} holds embeddings of {_whose(self.facts)} and this model is "
                    f"{_whose(wanted)}; expected the same encoder: give that model, or index the images anew"
                )

    def _check_embeddings(self, e: Tensor) -> Tensor:
        """e (n, d) as float32 on the CPU."""
        width = self.facts.get("dim")
        if (
            not isinstance(e, Tensor)
            or not e.is_floating_point()
            or e.ndim != 2
            or width not in (None, e.shape[1])
        ):
            got = f"{e.dtype} of shape {tuple(e.shape)}" if isinstance(e, Tensor) else type(e).__name__
            raise ShapeError(
                f"embeddings are {got}; this index expected floating (n, {width or 'd'}): "
                "encode with the model that it was made with"
            )
        e = e.detach().to("cpu", torch.float32).contiguous()
        lengths = torch.linalg.vector_norm(e, dim=1)
        if not bool((torch.isfinite(lengths) & (lengths > 0)).all()):
            raise ShapeError(
                "an embedding is zero or not finite, and so has no direction; expected finite ones: drop it"
            )
        return e


def _facts(model: Any) -> dict[str, Any]:
    encoder = model.encoder
    return {
        "dim": model.dim,
        "encoder": encoder.name,
        "fingerprint": encoder.fingerprint(),
        "chain": model.chain.config(),
    }


def _whose(facts: Mapping[str, Any]) -> str:
    mark = f", fingerprint {facts['fingerprint'][:12]}" if "fingerprint" in facts else ""
    return f"{facts.get('encoder', 'an unknown encoder')} ({facts['dim']} wide{mark})"


def _table(e: Tensor, columns: Mapping[str, Sequence[Any]], schema: pa.Schema) -> pa.Table:
    """Rows with the types that the schema has, or that the values suggest where it has none."""
    made: dict[str, pa.Array] = {}
    for name, values in columns.items():
        if name in (VECTOR, SCORE) or len(values) != len(e):
            raise DataError(
                f"column {name!r} has {len(values)} values for {len(e)} embeddings; expected as many, in a "
                f"column not called {VECTOR} or {SCORE}: pair them up"
            )
        kind = schema.field(name).type if name in schema.names else None
        try:
            made[name] = pa.array(list(values), type=kind)
        except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
            reason = " ".join(str(error).split())
            raise DataError(
                f"column {name!r} cannot be stored ({reason}); expected {kind or 'values of one type'}: "
                "convert them"
            ) from None
        if pa.types.is_null(made[name].type):
            made[name] = made[name].cast(pa.string())
    made[VECTOR] = pa.FixedSizeListArray.from_arrays(pa.array(e.numpy().ravel()), e.shape[1])
    return pa.table(made)
