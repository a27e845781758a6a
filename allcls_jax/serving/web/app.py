"""The page and its interface over HTTP: every route, and nothing that is not one.

All files that are served are read when the application is made: no path that a client
gives is ever opened. Every mistake is answered with `{"error": …, "remedy": …}`.
"""

import contextlib
import csv
import importlib.resources
import importlib.util
import io
import json
from collections.abc import AsyncIterator, Iterable
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from allcls_jax import DISCLAIMER, __version__
from allcls_jax.errors import InputError
from allcls_jax.serving.arguments import COVERAGE
from allcls_jax.serving.model import Model
from allcls_jax.serving.prediction.tables import COLUMNS
from allcls_jax.serving.web import schema
from allcls_jax.serving.web.guard import Guard, refusal, refusal_headers
from allcls_jax.serving.web.limits import Limits, Refused
from allcls_jax.serving.web.service import METHODS, HeatMap, Service

# Path → file of this package, and its type.
_PAGES = {
    "/": ("index.html", "text/html; charset=utf-8"),
    "/app.js": ("app.js", "text/javascript; charset=utf-8"),
    "/cells.js": ("cells.js", "text/javascript; charset=utf-8"),
    "/heat_maps.js": ("heat_maps.js", "text/javascript; charset=utf-8"),
    "/sending.js": ("sending.js", "text/javascript; charset=utf-8"),
    "/words.js": ("words.js", "text/javascript; charset=utf-8"),
    "/style.css": ("style.css", "text/css; charset=utf-8"),
    "/icon.svg": ("icon.svg", "image/svg+xml"),
    "/docs": ("docs.html", "text/html; charset=utf-8"),
    "/docs/docs.js": ("docs.js", "text/javascript; charset=utf-8"),
}
_SWAGGER = {
    "/docs/swagger-ui-bundle.js": ("swagger-ui-bundle.js", "text/javascript"),
    "/docs/swagger-ui.css": ("swagger-ui.css", "text/css"),
}

_WHAT = f"""Sends pictures of single segmented cells to a classifier that tells leukemic
lymphoblasts (ALL) from normal cells (HEM). **{DISCLAIMER}**

Pictures are held in memory only and never written to a disk. Mistakes are answered with
`{{"error": what is wrong, "remedy": what to do}}`."""

_PROBLEMS: dict[int | str, dict[str, Any]] = {
    400: {"model": schema.Problem, "description": "The request cannot be read."},
    413: {"model": schema.Problem, "description": "More than is taken at once."},
    415: {"model": schema.Problem, "description": "The request is no form."},
    422: {"model": schema.Problem, "description": "A value is wrong."},
    503: {"model": schema.Problem, "description": "Busy; see the header Retry-After."},
}
_PNG: dict[int | str, dict[str, Any]] = {
    200: {"content": {"image/png": {}}, "description": "The picture."}
}
_NOT_KEPT: dict[int | str, dict[str, Any]] = {
    404: {"model": schema.Problem, "description": "Not in memory, or not any more."}
}


def create_app(
    model: Model,
    *,
    limits: Limits | None = None,
    loopback: bool = True,
    names: Iterable[str] = (),
    heat_map: HeatMap | None = None,
) -> Guard:
    """Returns the application of one model, an ASGI application behind its guard.

    Args:
      model: opened.
      limits: of requests; None: the usual ones.
      loopback: whether only this machine can connect.
      names: hosts that it may be asked for, besides addresses and localhost.
      heat_map: draws heat maps; None: the package's own.
    """
    limits = limits or Limits()
    service = Service(model, limits, heat_map=heat_map)

    @contextlib.asynccontextmanager
    async def running(_: FastAPI) -> AsyncIterator[None]:
        await service.start()
        try:
            yield
        finally:
            await service.close()

    app = FastAPI(
        title="allcls_jax",
        version=__version__,
        description=_WHAT,
        openapi_url="/api/v1/openapi.json",
        docs_url=None,  # those of FastAPI load their scripts from elsewhere
        redoc_url=None,
        lifespan=running,
        # Nothing is told to anybody, whatever the environment asks of FastAPI.
        telemetry={
            "tracing": False,
            "metrics": False,
            "logs": False,
            "auto_configure": False,
        },
    )
    _answer_mistakes(app)
    _add_pages(app)
    _add_interface(app, service)
    return Guard(app, limits, loopback=loopback, names=names)


def _add_interface(app: FastAPI, service: Service) -> None:
    """Adds the routes that programs, and the page, call."""

    @app.get("/healthz", response_model=schema.Health, responses={503: _PROBLEMS[503]})
    async def health() -> Any:
        """Tells whether pictures can be sent."""
        if not service.ready:
            raise Refused(503, "the server is not ready", "wait", retry_after=1)
        return {"status": "ok"}

    @app.get("/api/v1/model", response_model=schema.About)
    async def describe() -> Any:
        """Tells of the model: labels, thresholds, training cells, versions, limits."""
        return service.describe()

    @app.post(
        "/api/v1/predict",
        response_model=schema.Answer,
        responses={**_PROBLEMS, 200: {"content": {"text/csv": {}}}},
        openapi_extra=schema.PREDICT_FORM,
    )
    async def predict(request: Request) -> Response:
        """Returns a row for each picture; as CSV where `Accept` is `text/csv`."""
        content_type = request.headers.get("content-type", "")
        answer = await service.predict(request.stream(), content_type)
        if "text/csv" in request.headers.get("accept", ""):
            return Response(_to_csv(answer), media_type="text/csv; charset=utf-8")
        return JSONResponse(answer)

    @app.post(
        "/api/v1/explain",
        response_class=Response,
        responses={**_PROBLEMS, **_PNG},
        openapi_extra=schema.EXPLAIN_FORM,
    )
    async def explain(request: Request) -> Response:
        """Returns where the network looked in one picture, drawn over it (Grad-CAM)."""
        content_type = request.headers.get("content-type", "")
        png = await service.explain(request.stream(), content_type)
        return Response(png, media_type="image/png")

    @app.post("/api/v1/decide", response_model=schema.Decisions, responses=_PROBLEMS)
    def decide(asked: schema.DecideRequest) -> Response:
        """Returns the decisions at another threshold, without computing anew."""
        threshold = None if asked.threshold is None else str(asked.threshold)
        coverage = COVERAGE if asked.coverage is None else asked.coverage
        return JSONResponse(service.decide(asked.probabilities, threshold, coverage))

    @app.get(
        "/api/v1/cells/{name}",
        response_class=Response,
        responses={**_NOT_KEPT, **_PNG},
    )
    async def cell(name: str) -> Response:
        """Returns a kept picture as the network sees it."""
        return Response(service.kept.get(name), media_type="image/png")

    @app.get(
        "/api/v1/cells/{name}/heat_map",
        response_class=Response,
        responses={**_PROBLEMS, **_NOT_KEPT, **_PNG},
    )
    async def heat_map(
        name: str,
        method: str = METHODS[0],
        block: str = "",
        threshold: str | None = None,
    ) -> Response:
        """Returns the heat map of a kept picture."""
        png = await service.explain_kept(
            name, method=method, block=block, threshold=threshold
        )
        return Response(png, media_type="image/png")

    @app.post("/api/v1/forget", response_model=schema.Forgotten, responses=_PROBLEMS)
    async def forget(asked: schema.ForgetRequest) -> Any:
        """Forgets kept pictures."""
        return {"forgotten": service.kept.forget(asked.ids)}

    @app.get("/api/v1/examples.zip", response_class=Response)
    def examples() -> Response:
        """Returns synthetic cells to try it with."""
        return Response(service.examples, media_type="application/zip")


def _add_pages(app: FastAPI) -> None:
    """Adds the files of the page and of the description of the interface."""
    own = importlib.resources.files("allcls_jax.serving.web") / "static"
    served = {
        path: ((own / file).read_bytes(), kind) for path, (file, kind) in _PAGES.items()
    }
    bundled = _swagger_folder()
    for path, (file, kind) in _SWAGGER.items():
        served[path] = ((bundled / file).read_bytes(), kind)
    for path, (content, kind) in served.items():
        _add_file(app, path, content, kind)


def _add_file(app: FastAPI, path: str, content: bytes, kind: str) -> None:
    async def file() -> Response:
        return Response(content, media_type=kind)

    app.add_api_route(
        path, file, methods=["GET"], include_in_schema=False, response_class=Response
    )


def _swagger_folder() -> Path:
    """Returns where the package that brings Swagger's files has them."""
    found = importlib.util.find_spec("fastapi_offline")
    assert found is not None, "looked for by the verb"
    assert found.origin is not None, "a package of Python"
    return Path(found.origin).parent / "static"


def _answer_mistakes(app: FastAPI) -> None:
    """Makes every error an object with what is wrong and what to do."""

    @app.exception_handler(Refused)
    async def refuse(_: Request, error: Refused) -> Response:
        # What the client still sends is not read; its connection ends here.
        headers = {**refusal_headers(error), "connection": "close"}
        return JSONResponse(refusal(error), error.status, headers)

    @app.exception_handler(InputError)
    async def correct(_: Request, error: InputError) -> Response:
        what, remedy = _in_two(str(error).removeprefix("--"))
        return _problem(422, what, remedy)

    @app.exception_handler(RequestValidationError)
    async def explain(_: Request, error: RequestValidationError) -> Response:
        found = error.errors()[:1]
        where = ".".join(str(part) for one in found for part in one["loc"])
        what = "; ".join(str(one["msg"]) for one in found)
        return _problem(422, f"{where}: {what}", "correct it; see /docs")

    @app.exception_handler(HTTPException)
    async def answer(_: Request, error: HTTPException) -> Response:
        what = {"error": str(error.detail), "remedy": "see /docs"}
        return JSONResponse(what, error.status_code, error.headers)

    @app.exception_handler(ClientDisconnect)
    async def nobody(_: Request, __: ClientDisconnect) -> Response:
        return _problem(400, "the upload was broken off", "send it again")

    @app.exception_handler(Exception)
    async def fail(_: Request, error: Exception) -> Response:
        return _problem(
            500,
            f"the server failed ({type(error).__name__})",
            "see what it wrote on its terminal",
        )


def _in_two(text: str) -> tuple[str, str]:
    """Returns what is wrong and what to do, of an error's text."""
    what, _, remedy = text.rpartition("; ")
    return (what, remedy) if what else (text, "correct it and send it again")


def _problem(status: int, what: str, remedy: str) -> Response:
    return JSONResponse({"error": what, "remedy": remedy}, status)


def _to_csv(answer: dict[str, Any]) -> str:
    """Returns the rows as a table that carries the disclaimer and notes."""
    text = io.StringIO()
    # All text in quotes: some spreadsheets would cut it at semicolons.
    table = csv.writer(text, quoting=csv.QUOTE_NONNUMERIC)
    table.writerow([*COLUMNS, "threshold", "model_sha256", "notes", "disclaimer"])
    tail = [
        answer["threshold"],
        answer["model_sha256"],
        "; ".join(answer["notes"]),
        answer["disclaimer"],
    ]
    for row in answer["rows"]:
        cells = [_cell(row[column]) for column in COLUMNS]
        table.writerow([*cells, *tail])
    return text.getvalue()


def _cell(value: Any) -> Any:
    """Returns a value as a spreadsheet should have it: text is never a formula."""
    if isinstance(value, list):
        value = "; ".join(value)
    if isinstance(value, bool):
        return json.dumps(value)
    if isinstance(value, str) and value.startswith(("=", "+", "-", "@")):
        return f"'{value}"
    return value
