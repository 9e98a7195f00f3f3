"""A job API over real HTTP, for tests of slow graders."""

import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote

from tasks.grading.config import GraderConfig


class Jobs:
    """A job API that remembers what it was asked: a job is done once `scores` holds its text."""

    def __init__(self):
        self.scores, self.jobs, self.posts, self.fail_after, self.keys = {}, {}, 0, None, []

    def post(self, body, headers):
        if headers.get("Authorization") != "Bearer secret":
            return 401, {}
        self.posts += 1
        if self.fail_after is not None and self.posts > self.fail_after:
            return 503, {"busy": True}
        if body["text"] == "nonsense":
            return 200, {"no": "id"}
        self.keys.append(headers["Idempotency-Key"])
        job = f"job {len(self.jobs)}/x"
        self.jobs[job] = body["text"]
        return 200, {"id": job}

    def get(self, job):
        if job not in self.jobs:
            return 404, {"error": "unknown"}
        text = self.jobs[job]
        return (200, self.scores[text]) if text in self.scores else (200, {"status": "running"})


@contextmanager
def serving(jobs):
    """The API's address while it runs."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            self.reply(*jobs.post(body, self.headers))

        def do_GET(self):
            self.reply(*jobs.get(unquote(self.path.removeprefix("/jobs/"))))

        def reply(self, code, document):
            content = json.dumps(document).encode()
            self.send_response(code)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *arguments):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/jobs"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def http(jobs, **changes):
    """A grader that asks it."""
    return GraderConfig(
        grader="http_jobs", latency="slow", params={"url": jobs.url, "key_env": "JOB_KEY", "at_once": 1}, **changes
    )
