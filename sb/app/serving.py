"""A server process for an app: its address is known before it starts, and its end keeps nobody waiting."""

import math
import socket

import uvicorn
from fastapi import FastAPI


class Server(uvicorn.Server):
    """Those that wait in the queue are told at once when it shuts down, what is being painted is finished."""

    def __init__(self, app: FastAPI):
        patience = math.ceil(app.state.limits.seconds)
        super().__init__(uvicorn.Config(
            app, log_level="warning", server_header=False, timeout_graceful_shutdown=patience
        ))
        self.jobs = app.state.jobs

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Called by uvicorn on SIGINT and SIGTERM."""
        self.jobs.close()
        await super().shutdown(sockets)


def listen(host: str, port: int) -> tuple[socket.socket, str]:
    """A bound socket and its address for a browser; port 0 finds a free one. OSError where it is taken."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    bound = socket.create_server((host, port), family=family, backlog=2048)
    name = f"[{host}]" if ":" in host else host
    return bound, f"http://{name}:{bound.getsockname()[1]}"
