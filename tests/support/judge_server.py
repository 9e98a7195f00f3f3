"""An OpenAI-compatible chat completions server whose answers a test scripts."""

import json
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

BOUNDARY = re.compile(r"\[\[([0-9a-f]{16}) begin ([\w ]+)\]\]\n(.*?)\n\[\[\1 end \2\]\]", re.DOTALL)
USAGE = {"prompt_tokens": 100, "completion_tokens": 10}


@dataclass
class Asked:
    """One request as a script sees it; `number` counts from 0, `attempt` how often this body came before."""

    body: dict[str, Any]
    headers: dict[str, str]
    number: int
    attempt: int

    @property
    def system(self) -> str:
        return self.body["messages"][0]["content"]

    @property
    def user(self) -> str:
        return self.body["messages"][1]["content"]

    @property
    def parts(self) -> dict[str, str]:
        """The delimited parts of the user's message by name."""
        return {name: text for _, name, text in BOUNDARY.findall(self.user)}

    @property
    def code(self) -> str:
        return BOUNDARY.search(self.user).group(1)

    def verdict(self, **fields: Any) -> str:
        """A verdict in the form that was asked for."""
        return json.dumps({"id": self.code, **fields})


@dataclass
class Raw:
    """A response that is no plain answer. `cut`: the connection ends in the middle of the body."""

    status: int = 200
    body: str = ""
    headers: dict[str, str] = field(default_factory=dict)
    delay_s: float = 0.0
    cut: bool = False


def completion(content: Any, finish_reason: str = "stop", usage: Any = USAGE) -> str:
    """The JSON of a chat completion."""
    message = {"role": "assistant", "content": content}
    return json.dumps({"choices": [{"index": 0, "message": message, "finish_reason": finish_reason}], "usage": usage})


Script = Callable[[Asked], str | Raw]


class JudgeServer(ThreadingHTTPServer):
    """Answers as its script says and remembers what it was asked."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, script: Script) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.script = script
        self.asked: list[Asked] = []
        self.in_flight = self.most_in_flight = 0
        self.lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that hung up is no news."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: JudgeServer

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.server.lock:
            before = [one for one in self.server.asked if one.body == body]
            asked = Asked(body, dict(self.headers), len(self.server.asked), len(before))
            self.server.asked.append(asked)
            self.server.in_flight += 1
            self.server.most_in_flight = max(self.server.most_in_flight, self.server.in_flight)
        try:
            assert self.path == "/v1/chat/completions"
            answer = self.server.script(asked)
            self._send(answer if isinstance(answer, Raw) else Raw(body=completion(answer)))
        finally:
            with self.server.lock:
                self.server.in_flight -= 1

    def _send(self, raw: Raw) -> None:
        time.sleep(raw.delay_s)
        content = raw.body.encode()
        self.send_response(raw.status)
        for name, value in raw.headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content[: len(content) // 2] if raw.cut else content)
        if raw.cut:
            self.close_connection = True

    def log_message(self, *arguments: Any) -> None:
        pass


@contextmanager
def judge_server(script: Script) -> Iterator[JudgeServer]:
    """A running server."""
    server = JudgeServer(script)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
