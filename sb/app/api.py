"""The REST interface and the page: requests in, pictures out, through one queue."""

import asyncio
import base64
import hmac
import io
import json
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request as Http
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.responses import FileResponse, JSONResponse, Response, StreamingResponse
from fastapi.staticfiles import StaticFiles
from PIL import Image
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException
from starlette.requests import Request as Body

from sb.app.counting import Counters
from sb.app.jobs import Event, Full, Job, Jobs
from sb.app.limits import Limits
from sb.app.reading import Fields, Refused, decoded, read_fields, read_requests
from sb.inpaint import Inpainter
from sb.pictures import encoded, like_source
from sb.types import Result

PAGE = Path(__file__).parent / "page"
STREAM = "text/event-stream"
POLL_S = 0.25  # between two looks whether the client is still there
FILES = ("image", "mask")


def create_app(
    models: Mapping[str, Inpainter], limits: Limits = Limits(), token: str | None = None, provenance: bool = True
) -> FastAPI:
    """The app for these models by id, the first being the default. token: what a client must send as a bearer.
    provenance: say in every picture that it is generated, by what model and seed."""
    if not models:
        raise ValueError("app: needs a model")
    counters = Counters()
    jobs = Jobs(models, limits, counters.painted)
    counters.watch(jobs)
    server = _Server(models, limits, jobs, counters, provenance)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(jobs.close)

    app = FastAPI(
        title="sb", description="Text- and shape-guided inpainting with mask precision.", version="1",
        docs_url=None, redoc_url=None, lifespan=lifespan,
    )

    @app.exception_handler(HTTPException)
    async def said(http: Http, error: HTTPException) -> Response:
        return JSONResponse({"detail": str(error.detail)}, error.status_code, error.headers)

    @app.exception_handler(Refused)
    async def refused(http: Http, error: Refused) -> Response:
        counters.answered(error.status)
        return _refusal(error)

    @app.middleware("http")
    async def guard(http: Http, call_next: Any) -> Response:
        if token and http.url.path.startswith(("/v1/", "/metrics")):
            sent = http.headers.get("authorization", "").encode()
            if not hmac.compare_digest(sent, f"Bearer {token}".encode()):
                detail = {"detail": "a bearer token is needed"}
                return JSONResponse(detail, 401, {"WWW-Authenticate": "Bearer"})
        return await call_next(http)

    @app.get("/", include_in_schema=False)
    async def page() -> Response:
        return FileResponse(PAGE / "index.html")

    app.mount("/page", StaticFiles(directory=PAGE), name="page")

    @app.get("/healthz", summary="Whether the server answers")
    async def healthz() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/metrics", summary="Counters for Prometheus")
    async def metrics() -> Response:
        return Response(counters.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    @app.get("/v1/models", summary="The models that can be asked")
    async def listed() -> list[dict[str, Any]]:
        return [describe(name, painter) for name, painter in models.items()]

    @app.post("/v1/inpaint", summary="Paint an object into a picture", openapi_extra=_schema())
    async def inpaint(http: Http) -> Response:
        return await server.inpaint(http)

    @app.get("/docs", include_in_schema=False)
    async def docs() -> Response:
        return get_swagger_ui_html(
            openapi_url="/openapi.json", title="sb", swagger_js_url="/swagger/swagger-ui-bundle.js",
            swagger_css_url="/swagger/swagger-ui.css", swagger_favicon_url="/swagger/favicon-32x32.png",
        )

    from swagger_ui_bundle import swagger_ui_path

    app.mount("/swagger", StaticFiles(directory=swagger_ui_path), name="swagger")
    return app


def describe(name: str, painter: Inpainter) -> dict[str, Any]:
    """What a client should know of a model."""
    options = asdict(painter.options)
    return {
        "id": name, "native_px": painter.native_px, "levels": painter.ladder.num_levels, "tasks": painter.tasks,
        "steps": options["steps"], "guidance": options["guidance"], "licence": painter.about.get("licence"),
    }


@dataclass(frozen=True)
class _Server:
    """What answers a request to paint."""

    models: Mapping[str, Inpainter]
    limits: Limits
    jobs: Jobs
    counters: Counters
    provenance: bool

    async def inpaint(self, http: Http) -> Response:
        """From a request's bytes to the picture, the JSON or the events that it asks for."""
        began = time.monotonic()
        files, values = await _parts(http, self.limits)
        fields = read_fields(values, self.limits)
        name = next(iter(self.models)) if fields.model is None else fields.model
        if name not in self.models:
            raise Refused(404, "model: there is none of this id; GET /v1/models lists them")
        painter = self.models[name]
        if fields.task and fields.task not in painter.tasks:
            raise Refused(422, f"task: this model knows {', '.join(painter.tasks) or 'none'}")
        requests, source = await asyncio.to_thread(
            read_requests, files.get("image"), files.get("mask"), fields, painter.ladder.num_levels, self.limits
        )
        wanted = http.headers.get("accept", "")
        client = _Client(http, STREAM in wanted)
        options = {key: value for key in ("steps", "guidance") if (value := getattr(fields, key)) is not None}
        job = Job(name, requests, options, client.tell)
        try:
            client.ahead = self.jobs.put(job)
        except Full:
            line = f"the queue is full ({self.limits.queue} requests wait): try again in a moment"
            raise Refused(429, line) from None
        except RuntimeError:
            raise Refused(503, "the server is shutting down") from None
        note = name if self.provenance else None
        if client.streams:
            return StreamingResponse(_stream(client, job, source, fields, note, self.counters), media_type=STREAM)
        event = await client.wait(job)
        _raise_for(event)
        self.counters.answered(200, time.monotonic() - began)
        if wanted.startswith("image/"):
            content, kind = await asyncio.to_thread(_picture, event.value[0], source, fields.format, note)
            return Response(content, media_type=kind, headers={"X-Seed": str(event.value[0].seed)})
        return JSONResponse(await asyncio.to_thread(_answer, event.value, source, fields, note, name))


class _Client:
    """The other end of a job: hears from the painter's thread, waits in the server's loop."""

    def __init__(self, http: Http, streams: bool):
        self.http, self.streams, self.ahead = http, streams, 0
        self.heard: asyncio.Queue[Event] = asyncio.Queue()
        self.loop = asyncio.get_running_loop()

    def tell(self, event: Event) -> None:
        if event.kind == "progress":
            if not self.streams:
                return
            progress = event.value
            previews = [] if progress.step == 0 else [
                base64.b64encode(encoded(Image.fromarray(p.permute(1, 2, 0).numpy()), "jpeg")).decode()
                for p in progress.pictures()
            ]
            event = Event("progress", {"step": progress.step, "steps": progress.steps, "previews": previews})
        self.loop.call_soon_threadsafe(self.heard.put_nowait, event)

    async def wait(self, job: Job) -> Event:
        """The next event; the job is cancelled when the client goes away."""
        while True:
            try:
                return await asyncio.wait_for(self.heard.get(), POLL_S)
            except TimeoutError:
                if await self.http.is_disconnected():
                    job.cancelled = True
                    raise Refused(499, "the client went away") from None


async def _stream(
    client: _Client, job: Job, source: Image.Image, fields: Fields, note: str | None, counters: Counters
) -> AsyncIterator[str]:
    def say(kind: str, value: Any) -> str:
        return f"event: {kind}\ndata: {json.dumps(value)}\n\n"

    began = time.monotonic()
    try:
        yield say("queued", {"ahead": client.ahead})
        while True:
            event = await client.heard.get()
            if event.kind == "progress":
                yield say("progress", event.value)
                continue
            try:
                _raise_for(event)
            except Refused as error:
                counters.answered(error.status)
                yield say("error", {"detail": str(error), "status": error.status})
                return
            counters.answered(200, time.monotonic() - began)
            yield say("done", await asyncio.to_thread(_answer, event.value, source, fields, note, job.model))
            return
    finally:
        job.cancelled = True  # done, or the client went away


def _raise_for(event: Event) -> None:
    if event.kind == "late":
        raise Refused(504, "this took longer than a request may take here")
    if event.kind == "error":
        raise Refused(503 if "shutting down" in event.value else 422, event.value)


def _refusal(error: Refused) -> Response:
    headers = {"Retry-After": "2"} if error.status == 429 else None
    return JSONResponse({"detail": str(error)}, error.status, headers)


async def _parts(http: Http, limits: Limits) -> tuple[dict[str, bytes], dict[str, Any]]:
    """Files and fields of a multipart or JSON body; never more of it than the limit is read."""
    content = bytearray()
    async for piece in http.stream():
        content += piece
        if len(content) > limits.max_bytes:
            raise Refused(413, f"the request is too large: at most {limits.max_bytes:,} bytes here")
    kind = http.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == "application/json":
        try:
            values = json.loads(bytes(content))
        except (ValueError, RecursionError):
            raise Refused(400, "the body is not JSON") from None
        if not isinstance(values, dict):
            raise Refused(422, "the body must be an object of fields")
        return {name: decoded(values.pop(name), name) for name in FILES if values.get(name) is not None}, values
    if kind != "multipart/form-data":
        raise Refused(415, "send multipart/form-data or application/json")

    async def once() -> dict[str, Any]:
        return {"type": "http.request", "body": bytes(content), "more_body": False}

    files: dict[str, bytes] = {}
    fields: dict[str, Any] = {}
    try:
        form = await Body(http.scope, once).form(max_files=2, max_fields=20, max_part_size=limits.max_bytes)
        for name, value in form.multi_items():
            if isinstance(value, UploadFile) != (name in FILES):
                raise Refused(422, "image and mask are files; the other fields are not")
            if isinstance(value, UploadFile):
                files[name] = await value.read()
            else:
                fields[name] = value
        await form.close()
    except (MultiPartException, HTTPException, UnicodeDecodeError, KeyError):
        raise Refused(400, "the multipart body is broken") from None
    return files, {name: value for name, value in fields.items() if value != ""}


def _picture(result: Result, source: Image.Image, form: str, note: str | None) -> tuple[bytes, str]:
    said = None if note is None else f"generated by sb, model {note}, seed {result.seed}"
    return encoded(like_source(result.image, source), form, said), f"image/{form}"


def _answer(
    results: list[Result], source: Image.Image, fields: Fields, note: str | None, model: str
) -> dict[str, Any]:
    def one(result: Result) -> dict[str, Any]:
        content, kind = _picture(result, source, fields.format, note)
        seen = result.predicted_mask
        buffer = io.BytesIO()
        if seen is not None:
            seen.save(buffer, format="PNG")
        return {
            "image": base64.b64encode(content).decode(), "media_type": kind, "seed": result.seed,
            "predicted_mask": base64.b64encode(buffer.getvalue()).decode() if seen is not None else None,
            "seconds": result.seconds,
        }

    return {"model": model, "results": [one(result) for result in results], "lossy": fields.format == "jpeg"}


def _schema() -> dict[str, Any]:
    """What OpenAPI should say of a body that is read by hand."""
    fields = Fields.model_json_schema()["properties"]
    kinds = {
        "multipart/form-data": {"type": "string", "format": "binary"},
        "application/json": {"type": "string", "format": "byte"},
    }
    return {
        "requestBody": {"required": True, "content": {
            kind: {"schema": {
                "type": "object", "required": ["image"], "properties": {**{name: file for name in FILES}, **fields},
                "additionalProperties": False,
            }} for kind, file in kinds.items()
        }},
        "responses": {str(status): {"description": what} for status, what in {
            200: "the pictures, or events where text/event-stream is accepted", 400: "a broken body",
            401: "no token", 404: "no such model", 413: "too large", 415: "not a picture", 422: "wrong fields",
            429: "the queue is full", 503: "shutting down", 504: "out of time",
        }.items()},
    }
