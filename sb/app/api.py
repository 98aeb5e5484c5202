"""The REST interface and the page: what can be asked, under which address, and who may."""

import asyncio
import hmac
from collections.abc import AsyncIterator, Collection, Mapping
from contextlib import asynccontextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from fastapi import Depends, FastAPI, Request as Http
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.responses import FileResponse, JSONResponse, Response
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from fastapi.staticfiles import StaticFiles
from starlette.exceptions import HTTPException

from sb.app.answering import STREAM, Answering, Sending
from sb.app.counting import Counters
from sb.app.guard import Guard
from sb.app.jobs import Jobs
from sb.app.limits import Limits
from sb.app.reading import Fields, Refused
from sb.inpaint import Inpainter

PAGE = Path(__file__).parent / "page"
BLUE = (  # a picture of 16 x 16 px, to try the interface with
    "iVBORw0KGgoAAAANSUhEUgAAABAAAAAQCAIAAACQkWg2AAAAGklEQVR4"
    "2mOsWHCCgRTAxEAiGNUwqmHoaAAA7ksCAPiGx6cAAAAASUVORK5CYII="
)
LINE = {"application/json": {"schema": {
    "type": "object", "required": ["detail"], "properties": {"detail": {"type": "string"}},
}}}
REFUSALS = {
    400: "a broken body", 401: "no token", 403: "another site's request", 404: "no such model",
    408: "the request arrived too slowly", 413: "too large", 415: "not a picture", 422: "wrong fields",
    429: "the queue is full: ask again after Retry-After seconds", 500: "painting failed",
    503: "the server is shutting down", 504: "out of time",
}


def create_app(
    models: Mapping[str, Inpainter], limits: Limits = Limits(), token: str | None = None, provenance: bool = True,
    hosts: Collection[str] | None = None,
) -> FastAPI:
    """The app for these models by id, the first being the default. token: what a client must send as a bearer.
    provenance: say in every picture that it is generated, by what model and seed. hosts: the names that browsers may
    call this server by, None for any. Its ``state`` holds ``jobs``, ``limits`` and ``answering``.
    """
    if not models:
        raise ValueError("app: needs a model")
    counters = Counters()
    jobs = Jobs(models, limits, counters.painted)
    counters.watch(jobs)
    answering = Answering(models, limits, jobs, counters, provenance)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        jobs.close()
        await asyncio.to_thread(jobs.join)

    app = FastAPI(
        redirect_slashes=False,
        title="sb", description="Text- and shape-guided inpainting with mask precision.", version="1",
        docs_url=None, redoc_url=None, lifespan=lifespan,
    )
    app.state.jobs = jobs
    app.state.limits, app.state.answering = limits, answering
    app.add_middleware(Sending, answering=answering)
    app.add_middleware(Guard, hosts=hosts)

    @app.exception_handler(HTTPException)
    async def said(http: Http, error: HTTPException) -> Response:
        return JSONResponse({"detail": str(error.detail)}, error.status_code, error.headers)

    @app.exception_handler(Refused)
    async def refused(http: Http, error: Refused) -> Response:
        headers = None if error.retry_after is None else {"Retry-After": str(error.retry_after)}
        return JSONResponse({"detail": str(error)}, error.status, headers)

    @app.exception_handler(Exception)
    async def failed(http: Http, error: Exception) -> Response:
        counters.answered(500)
        return JSONResponse({"detail": "the server failed; its log says why"}, 500)

    def known(sent: HTTPAuthorizationCredentials | None = Depends(HTTPBearer(auto_error=False))) -> None:
        if sent is None or not hmac.compare_digest(sent.credentials.encode(), (token or "").encode()):
            raise HTTPException(401, "a bearer token is needed", {"WWW-Authenticate": "Bearer"})

    _add_routes(app, models, answering, counters, [Depends(known)] if token else [])
    _add_pages(app)
    return app


def describe(name: str, painter: Inpainter) -> dict[str, Any]:
    """What a client should know of a model."""
    options = asdict(painter.options)
    return {
        "id": name, "native_px": painter.native_px, "levels": painter.ladder.num_levels, "tasks": list(painter.tasks),
        "without_object": [task for task, has_object in painter.tasks.items() if not has_object],
        "steps": options["steps"], "guidance": options["guidance"], "licence": painter.about.get("licence"),
    }


def _add_routes(
    app: FastAPI, models: Mapping[str, Inpainter], answering: Answering, counters: Counters, needs: list[Any]
) -> None:
    unknown: dict[int | str, dict[str, Any]] = _refusals(401, 403) if needs else _refusals(403)

    @app.get("/healthz", summary="Whether the server answers", responses=_refusals(403))
    async def healthz() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/metrics", summary="Counters for Prometheus", dependencies=needs, response_class=Response, responses={
        200: {"content": {"text/plain": {"schema": {"type": "string"}}}}, **unknown
    })
    async def metrics() -> Response:
        return Response(counters.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    @app.get("/v1/models", summary="The models that can be asked", dependencies=needs, responses=unknown)
    async def listed() -> list[dict[str, Any]]:
        return [describe(name, painter) for name, painter in models.items()]

    @app.post("/v1/inpaint", summary="Paint an object into a picture, or remove one", dependencies=needs,
              response_class=Response, openapi_extra=_body(), responses={
                  200: {"description": "the pictures, or events on the way to them", "content": {
                      kind: {} for kind in ("application/json", "image/png", "image/jpeg", STREAM)
                  }}, **_refusals(*REFUSALS),
              })
    async def inpaint(http: Http) -> Response:
        return await answering.inpaint(http)


def _add_pages(app: FastAPI) -> None:
    from swagger_ui_bundle import swagger_ui_path

    @app.get("/", include_in_schema=False)
    async def page() -> Response:
        return FileResponse(PAGE / "index.html")

    @app.get("/docs", include_in_schema=False)
    async def docs() -> Response:
        return get_swagger_ui_html(
            openapi_url="/openapi.json", title="sb", swagger_js_url="/swagger/swagger-ui-bundle.js",
            swagger_css_url="/swagger/swagger-ui.css", swagger_favicon_url="/swagger/favicon-32x32.png",
        )

    app.mount("/page", StaticFiles(directory=PAGE), name="page")
    app.mount("/swagger", StaticFiles(directory=swagger_ui_path), name="swagger")


def _refusals(*statuses: int) -> dict[int | str, dict[str, Any]]:
    return {status: {"description": REFUSALS[status], "content": LINE} for status in statuses}


def _body() -> dict[str, Any]:
    """What OpenAPI should say of a body that is read by hand."""
    fields = Fields.model_json_schema()["properties"]
    example = {"image": BLUE, "box": "4,4,8,8", "text": "red star"}
    binary, text = {"type": "string", "format": "binary"}, {"type": "string", "contentEncoding": "base64"}
    kinds: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
        "multipart/form-data": ({"image": binary, "mask": binary}, {}),
        "application/json": ({"image": text, "mask": {"anyOf": [text, {"type": "null"}]}}, {"example": example}),
    }
    return {"requestBody": {"required": True, "content": {
        kind: {"schema": {
            "type": "object", "required": ["image"], "properties": {**files, **fields}, "additionalProperties": False,
        }, **more} for kind, (files, more) in kinds.items()
    }}}
