"""From a request's bytes to its answer: a picture, JSON, or events on the way to it."""

import asyncio
import base64
import io
import json
import math
import time
from collections.abc import AsyncIterator, Mapping
from typing import Any, NamedTuple

from fastapi import Request as Http
from fastapi.responses import Response, StreamingResponse
from PIL import Image
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sb.app.body import body_of, parts_of
from sb.app.counting import Counters
from sb.app.jobs import Closed, Event, Full, Job, Jobs
from sb.app.limits import Limits
from sb.app.reading import Fields, Refused, read_fields, read_requests
from sb.inpaint import Inpainter
from sb.pictures import encoded, like_source, loss_of
from sb.preview import Progress
from sb.types import Request, Result

STREAM = "text/event-stream"
FAILURES = {
    "refused": (422, ""), "failed": (500, "painting failed; the server's log says why"),
    "late": (504, "this took longer than a request may take here"), "closed": (503, "the server is shutting down"),
}
HELD = "sb.held"  # in the scope of a request that counts as held
POLL_S = 0.25  # between two looks whether the client is still there


class Wish(NamedTuple):
    """What the answer to a job must look like."""

    job: Job
    source: Image.Image
    form: str
    note: str | None  # the model's name where pictures say that they are generated


class Answering:
    """Reads requests to paint, queues them and answers them."""

    def __init__(
        self, models: Mapping[str, Inpainter], limits: Limits, jobs: Jobs, counters: Counters, provenance: bool
    ):
        self.models, self.limits, self.jobs, self.counters = models, limits, jobs, counters
        self.provenance = provenance
        self.arriving = 0  # requests that are read and decoded: they hold a place in the queue already
        self.held = 0  # accepted requests whose answers are not yet sent

    async def inpaint(self, http: Http) -> Response:
        """The answer to one request; raises Refused."""
        began = time.monotonic()
        accept = http.headers.get("accept", "")
        client = Client(http, self.limits if STREAM in accept else None)
        try:
            wish = await self._queued(http, client, began, accept)
            if client.streams:
                return StreamingResponse(
                    self._events(client, wish, began), media_type=STREAM, headers={"X-Accel-Buffering": "no"}
                )
            results = await client.results(wish.job)
            if accept.startswith("image/"):
                content, kind = await asyncio.to_thread(_picture, results[0], wish)
                lossy = {"X-Lossy": "true"} if wish.form == "jpeg" else {}
                answer = Response(content, media_type=kind, headers={"X-Seed": str(results[0].seed), **lossy})
            else:
                content = (await asyncio.to_thread(_answer, results, wish)).encode()
                answer = Response(content, media_type="application/json")
        except Refused as error:
            self.counters.answered(error.status)
            raise
        self.counters.answered(200, time.monotonic() - began)
        return answer

    async def _queued(self, http: Http, client: "Client", began: float, accept: str) -> Wish:
        in_the_house = self.limits.queue + 2 * self.limits.batch  # one batch being painted, one being sent
        if len(self.jobs) + self.arriving >= self.limits.queue or self.held >= in_the_house:
            await body_of(http, self.limits, keep=False)
            raise self._busy()
        self.arriving += 1
        self.held += 1
        http.scope[HELD] = True
        try:
            parts = await parts_of(http, await body_of(http, self.limits))
            fields = read_fields(parts.fields, parts.typed, self.limits)
            if accept.startswith("image/") and fields.variations > 1:
                raise Refused(422, f"variations: Accept: {accept[:40]} asks for one picture; accept application/json")
            name, painter = self._chosen(fields)
            requests, source, size = await asyncio.to_thread(self._read, parts.files, fields, painter)
            options = {
                key: value for key in ("steps", "guidance")
                if (value := getattr(fields, key)) not in (None, getattr(painter.options, key))
            }
            job = Job(name, requests, options, client.tell, began + self.limits.seconds, size)
            client.ahead = self.jobs.put(job)
        except Full:
            raise self._busy() from None
        except Closed:
            raise Refused(*FAILURES["closed"]) from None
        finally:
            self.arriving -= 1
        form = fields.format or ("jpeg" if accept.startswith("image/jpeg") else "png")
        return Wish(job, source, form, name if self.provenance else None)

    def _chosen(self, fields: Fields) -> tuple[str, Inpainter]:
        name = next(iter(self.models)) if fields.model is None else fields.model
        if name not in self.models:
            raise Refused(404, "model: there is none of this id; GET /v1/models lists them")
        painter = self.models[name]
        if fields.task and fields.task not in painter.tasks:
            raise Refused(422, f"task: this model knows {', '.join(painter.tasks) or 'none'}")
        return name, painter

    def _read(
        self, files: Mapping[str, bytes], fields: Fields, painter: Inpainter
    ) -> tuple[list[Request], Image.Image, tuple[int, int]]:
        requests, source = read_requests(
            files.get("image"), files.get("mask"), fields, painter.ladder.num_levels, self.limits
        )
        return requests, source, painter.frame(requests[0].mask).size

    def _busy(self) -> Refused:
        line = f"the queue is full ({self.limits.queue} requests wait): try again in a moment"
        batches = len(self.jobs) / self.limits.batch
        return Refused(429, line, max(1, math.ceil(batches * self.jobs.pace)))

    async def _events(self, client: "Client", wish: Wish, began: float) -> AsyncIterator[str]:
        def say(kind: str, content: str) -> str:
            return f"event: {kind}\ndata: {content}\n\n"

        try:
            yield say("queued", json.dumps({"ahead": client.ahead}))
            while (event := await client.next(wish.job)).kind == "progress":
                yield say("progress", json.dumps(event.value))
            yield say("done", await asyncio.to_thread(_answer, event.value, wish))
            self.counters.answered(200, time.monotonic() - began)
        except asyncio.CancelledError:
            self.counters.answered(499)
            raise
        except Refused as error:
            self.counters.answered(error.status)
            yield say("error", json.dumps({"detail": str(error), "status": error.status}))
        finally:
            wish.job.cancelled = True  # done, or the client went away


class Sending:
    """ASGI middleware: a request is held until all of its answer is sent, which may take so many seconds."""

    def __init__(self, app: ASGIApp, answering: Answering):
        self.app, self.answering = app, answering

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def timed(message: Message) -> None:
            async with asyncio.timeout(self.answering.limits.seconds):
                await send(message)

        try:
            await self.app(scope, receive, timed)
        finally:
            self.answering.held -= bool(scope.get(HELD))


class Client:
    """The other end of a job: hears from the painter's thread, waits in the server's loop. limits: of the previews of
    one who wants to hear of progress, None for one who does not."""

    def __init__(self, http: Http, limits: Limits | None):
        self.http, self.limits, self.ahead = http, limits, 0
        self.heard: asyncio.Queue[Event] = asyncio.Queue()
        self.loop = asyncio.get_running_loop()
        self.shown = -math.inf  # when the last previews were drawn

    @property
    def streams(self) -> bool:
        """Whether the client wants to hear of progress."""
        return self.limits is not None

    def tell(self, event: Event) -> None:
        """Called from the painter's thread."""
        if event.kind == "progress":
            if self.limits is None:
                return
            event = Event("progress", self._seen(event.value, self.limits))
        self.loop.call_soon_threadsafe(self.heard.put_nowait, event)

    def _seen(self, progress: Progress, limits: Limits) -> dict[str, Any]:
        previews: list[str] = []
        if progress.step > 0 and time.monotonic() - self.shown >= limits.preview_seconds:
            previews = [_preview(picture.permute(1, 2, 0).numpy(), limits) for picture in progress.pictures()]
            self.shown = time.monotonic()
        return {"step": progress.step, "steps": progress.steps, "previews": previews}

    async def next(self, job: Job) -> Event:
        """The next progress, or the end; Refused, and the job cancelled, where it failed, is late, or the client went
        away."""
        try:
            while True:
                try:
                    event = await asyncio.wait_for(self.heard.get(), POLL_S)
                    break
                except TimeoutError:
                    if await self.http.is_disconnected():
                        raise Refused(499, "the client went away") from None
                    if time.monotonic() > job.deadline + POLL_S:
                        event = Event("late")
                        break
            if event.kind in FAILURES:
                status, line = FAILURES[event.kind]
                raise Refused(status, event.value or line)
            return event
        except BaseException:
            job.cancelled = True
            raise

    async def results(self, job: Job) -> list[Result]:
        """The end of a job."""
        while (event := await self.next(job)).kind == "progress":
            pass
        return event.value


def _preview(pixels: Any, limits: Limits) -> str:
    picture = Image.fromarray(pixels)
    picture.thumbnail((limits.preview_px, limits.preview_px))
    content = io.BytesIO()
    picture.save(content, format="JPEG", quality=92, subsampling=0)
    return base64.b64encode(content.getvalue()).decode()


def _picture(result: Result, wish: Wish) -> tuple[bytes, str]:
    said = None if wish.note is None else f"generated by sb, model {wish.note}, seed {result.seed}"
    return encoded(like_source(result.image, wish.source), wish.form, said), f"image/{wish.form}"


def _answer(results: list[Result], wish: Wish) -> str:
    """The answer in JSON, made where it holds nobody else up."""
    def one(result: Result) -> dict[str, Any]:
        content, kind = _picture(result, wish)
        seen = result.predicted_mask
        buffer = io.BytesIO()
        if seen is not None:
            seen.save(buffer, format="PNG")
        return {
            "image": base64.b64encode(content).decode(), "media_type": kind, "seed": result.seed,
            "predicted_mask": base64.b64encode(buffer.getvalue()).decode() if seen is not None else None,
            "seconds": result.seconds,
        }

    return json.dumps({
        "model": wish.job.model, "results": [one(result) for result in results], "lossy": wish.form == "jpeg",
        "converted": loss_of(wish.source),
    })
