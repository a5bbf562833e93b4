"""The JSON API under /api: requests with their bounds, and answers by the service."""

import base64
import binascii
from collections.abc import Mapping
from typing import Annotated, Any

import orjson
import torch
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse, Response
from pydantic import BaseModel, ConfigDict, Field, FiniteFloat
from starlette.exceptions import HTTPException
from torch import Tensor

from steerable import __version__
from steerable.app.bounds import Bounds, Busy
from steerable.app.counting import Counts
from steerable.app.service import Service, explained, file_name
from steerable.errors import DataError, SteerableError

LIMITS = Bounds()  # those that the page of the API tells; a server may have others, which then decide
Vector = Annotated[list[FiniteFloat], Field(min_length=1, max_length=65_536)]
Theta = Annotated[dict[str, FiniteFloat], Field(max_length=64)]
Picture = Annotated[str, Field(max_length=LIMITS.body, description="an image file in base64")]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Encode(_Strict):
    """Images to embed."""

    images: list[Picture] = Field(min_length=1, max_length=LIMITS.batch)


class Steer(_Strict):
    """Embeddings to steer, each by every theta; coordinates that are not named are zero."""

    embeddings: list[Vector] = Field(min_length=1, max_length=LIMITS.batch)
    thetas: list[Theta] = Field(min_length=1, max_length=LIMITS.views)


class Query(_Strict):
    """One image: a file, an embedding, or an image of the gallery by its id."""

    image: Picture | None = None
    embedding: Vector | None = None
    id: str | None = Field(None, max_length=200)


class Search(Query):
    """A query, steered by theta, and the hits wanted."""

    theta: Theta = {}
    k: int = Field(12, ge=1, le=LIMITS.k)
    offset: int = Field(0, ge=0, lt=LIMITS.k)
    where: str | None = Field(None, max_length=LIMITS.where, examples=["label = 'rose' and width > 200"])


class Failure(BaseModel):
    """What was wrong, what was expected, and the way out."""

    error: str


class Embeddings(BaseModel):
    """(b, d), as the encoder gives them: not normalized."""

    embeddings: list[list[float]]
    dim: int


class Orbit(BaseModel):
    """(b, v, d), and the coordinates in which each theta leaves the range that the map was made for."""

    steered: list[list[list[float]]]
    outside: list[list[str]]


class Hits(BaseModel):
    """Best first; score is the cosine. Columns of the gallery, the path cut down to the file's name."""

    hits: list[dict[str, Any]]
    rows: int
    steer_seconds: float


class Scores(BaseModel):
    """probabilities of the plain embedding and merged over steered views; how far out, by score."""

    probabilities: dict[str, float]
    merged: dict[str, float]
    views: int
    scores: dict[str, dict[str, Any]]


_CODES = (400, 401, 403, 404, 405, 408, 413, 421, 422, 503, 504)
_FAILURES: dict[int | str, dict[str, Any]] = {code: {"model": Failure} for code in _CODES}


def add_api(app: FastAPI, service: Service, counts: Counts) -> None:
    """The routes, and errors as JSON of one shape."""
    _add_errors(app)
    _add_facts(app, service, counts)
    _add_questions(app, service)


def _add_facts(app: FastAPI, service: Service, counts: Counts) -> None:
    @app.get("/api/health", responses=_FAILURES)
    def health() -> dict[str, Any]:
        """What is served, and that it is."""
        return {"status": "ok", "version": __version__, **service.facts()}

    @app.get("/api/metrics", response_class=PlainTextResponse, responses=_FAILURES)
    def metrics() -> str:
        """Counts for Prometheus."""
        return counts.text(service)

    @app.get(
        "/api/thumbnail/{name}",
        responses={200: {"content": {"image/jpeg": {}}}, **_FAILURES},
        response_class=Response,
    )
    def thumbnail(name: str) -> Response:
        """The small picture of an image of the gallery, out of the index."""
        picture = service.gallery.row(name).get("thumbnail")
        if not picture:
            raise DataError(
                f"image {name[:80]!r} has no thumbnail; expected one: index the images with steerable index"
            )
        return Response(picture, media_type="image/jpeg", headers={"cache-control": "max-age=3600"})


def _add_questions(app: FastAPI, service: Service) -> None:
    def answers(model: Any) -> dict[int | str, dict[str, Any]]:
        return {200: {"model": model}, **_FAILURES}

    @app.post("/api/encode", responses=answers(Embeddings))
    def encode(request: Encode) -> Response:
        """Embeddings of images."""
        e = service.encode([_bytes(image) for image in request.images])
        return _json({"embeddings": e.numpy(), "dim": e.shape[1]})

    @app.post("/api/steer", responses=answers(Orbit))
    def steer(request: Steer) -> Response:
        """Steered embeddings, without an encoder pass."""
        steered = service.orbit(_tensor(request.embeddings), request.thetas)
        outside = [list(service.model.outside(service.theta(theta))) for theta in request.thetas]
        return _json({"steered": steered.contiguous().numpy(), "outside": outside})

    @app.post("/api/search", responses=answers(Hits))
    def search(request: Search) -> Response:
        """The nearest images of the gallery."""
        e = _embedding(service, request)
        found = service.search(e, request.theta, k=request.k, offset=request.offset, where=request.where)
        return _json(
            {
                "hits": [plain(hit) for hit in found.hits],
                "rows": service.gallery.rows,
                "steer_seconds": found.seconds,
            }
        )

    @app.post("/api/score", responses=answers(Scores))
    def score(request: Query) -> Response:
        """Class probabilities, and how foreign an image is to the gallery."""
        found = service.score(_embedding(service, request))
        marks = {
            m.name: {"score": m.value, "limit": m.limit, "foreign": m.foreign, "share_below": m.share}
            for m in found.marks
        }
        probabilities, merged = (
            dict(zip(found.classes, p.tolist(), strict=True)) if found.classes else {}
            for p in (found.p, found.views.mean(0))
        )
        return _json(
            {"probabilities": probabilities, "merged": merged, "views": len(found.views), "scores": marks}
        )


def plain(hit: Mapping[str, Any]) -> dict[str, Any]:
    """A hit without its picture, and without the folders of its path."""
    row = {key: value for key, value in hit.items() if not isinstance(value, bytes) and key != "thumbnail"}
    return {**row, "path": file_name(hit)}


def _add_errors(app: FastAPI) -> None:
    @app.exception_handler(RequestValidationError)
    def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        # without the values, which may be no JSON (NaN) or huge
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])[:200]
        return _failure(
            422,
            f"{place}: {str(first['msg'])[:200]}; expected a request as /api/openapi.json says: correct it",
        )

    @app.exception_handler(HTTPException)
    def http(request: Request, error: HTTPException) -> JSONResponse:
        return _failure(
            error.status_code,
            f"{str(error.detail)[:200]}; expected a request as /api/openapi.json says: correct it",
            error.headers,
        )

    @app.exception_handler(SteerableError)
    def ours(request: Request, error: SteerableError) -> JSONResponse:
        return _failure(503 if isinstance(error, Busy) else 422, explained(error))

    @app.exception_handler(Exception)
    def internal(request: Request, error: Exception) -> JSONResponse:
        return _failure(500, explained(error))


def _failure(status: int, message: str, headers: Mapping[str, str] | None = None) -> JSONResponse:
    again = {"retry-after": "5"} if status == 503 else {}
    return JSONResponse({"error": message}, status, headers={**(headers or {}), **again})


def _embedding(service: Service, query: Query) -> Tensor:
    given = [name for name in ("image", "embedding", "id") if getattr(query, name) is not None]
    if len(given) != 1:
        raise DataError(
            f"{' and '.join(given) or 'nothing'} was given to search for; expected one of image, embedding and id"
        )
    if query.embedding is not None:
        return _tensor([query.embedding])[0]
    return (
        service.encode([_bytes(query.image)])[0]
        if query.image is not None
        else service.choose(str(query.id)).e
    )


def _tensor(rows: list[list[float]]) -> Tensor:
    widths = {len(row) for row in rows}
    if len(widths) > 1:
        raise DataError(
            f"embeddings have widths {min(widths)} to {max(widths)}; expected one: send equal ones"
        )
    return torch.tensor(rows, dtype=torch.float32)


def _bytes(text: str) -> bytes:
    try:
        return base64.b64decode(text.partition(",")[2] if text.startswith("data:") else text, validate=True)
    except (binascii.Error, ValueError):
        raise DataError("an image is no base64; expected a file's bytes in base64: encode it") from None


def _json(content: Any) -> Response:
    return Response(
        orjson.dumps(content, option=orjson.OPT_SERIALIZE_NUMPY, default=str), media_type="application/json"
    )
