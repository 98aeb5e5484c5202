"""A request's body: its files and fields, from multipart or JSON, never more of it than the limit is kept."""

import asyncio
import json
from typing import Any, NamedTuple

from fastapi import Request as Http
from python_multipart.multipart import parse_options_header
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException
from starlette.requests import ClientDisconnect

from sb.app.limits import Limits
from sb.app.reading import Refused, decoded, printable

FILES = ("image", "mask")
FIELD_BYTES = 2**16  # of a multipart field that is no file
DRAINED = 4  # times max_bytes: read on so far for a client that must have sent all before it listens


async def body_of(http: Http, limits: Limits, keep: bool = True) -> bytes:
    """All of a body; Refused with 413, 408 or 499 where it is too large, too slow or breaks off. ``keep=False`` reads
    it to its end for nothing."""
    content, size = bytearray(), 0
    try:
        async with asyncio.timeout(limits.arrival):
            async for piece in http.stream():
                size += len(piece)
                if keep and size <= limits.max_bytes:
                    content += piece
                elif size > DRAINED * limits.max_bytes:
                    break
    except TimeoutError:
        raise Refused(408, f"the request did not arrive within {limits.arrival:g} s") from None
    except ClientDisconnect:
        raise Refused(499, "the client went away") from None
    if size > limits.max_bytes:
        raise Refused(413, f"the request is too large: at most {limits.max_bytes:,} bytes here")
    return bytes(content)


class Parts(NamedTuple):
    """The files by name, the fields as they were sent, and whether these have types of their own."""

    files: dict[str, bytes]
    fields: dict[str, Any]
    typed: bool


async def parts_of(http: Http, content: bytes) -> Parts:
    """What a body holds; Refused where it is none."""
    kind, options = parse_options_header(http.headers.get("content-type", ""))
    if kind == b"application/json":
        return await asyncio.to_thread(_from_json, content)
    if kind != b"multipart/form-data":
        raise Refused(415, "send multipart/form-data or application/json")
    if options.get(b"charset", b"utf-8").lower() not in (b"utf-8", b"us-ascii"):
        raise Refused(415, "send multipart/form-data in utf-8")
    return await asyncio.to_thread(asyncio.run, _from_multipart(http, content))  # parsing must not hold the others up


def _from_json(content: bytes) -> Parts:
    try:
        values = json.loads(content)
    except (ValueError, RecursionError):
        raise Refused(400, "the body is not JSON") from None
    if not isinstance(values, dict):
        raise Refused(422, "the body must be an object of fields")
    files = {name: decoded(found, name) for name in FILES if (found := values.pop(name, None)) is not None}
    return Parts(files, values, True)


async def _from_multipart(http: Http, content: bytes) -> Parts:
    async def once() -> dict[str, Any]:
        return {"type": "http.request", "body": content, "more_body": False}

    files: dict[str, bytes] = {}
    fields: dict[str, Any] = {}
    try:
        async with Http(http.scope, once).form(max_files=2, max_fields=20, max_part_size=FIELD_BYTES) as form:
            for name, value in form.multi_items():
                if isinstance(value, UploadFile) != (name in FILES):
                    raise Refused(422, "image and mask are files; the other fields are not")
                if name in files or name in fields:
                    raise Refused(422, f"{printable(name)}: given twice")
                if isinstance(value, UploadFile):
                    files[name] = await value.read()
                else:
                    fields[name] = value
    except Refused:
        raise
    except MultiPartException as error:
        raise Refused(400, f"the multipart body is broken: {error.message}") from None
    except Exception:  # a parser meets anything
        raise Refused(400, "the multipart body is broken") from None
    return Parts(files, {name: value for name, value in fields.items() if value != ""}, False)
