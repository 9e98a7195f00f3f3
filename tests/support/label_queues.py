"""An open label queue below a root, without a run; and the command that serves it, in a process of its own."""

import re
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import polars as pl
import uvicorn
from graded_rollouts import committed
from pipeline import REPOSITORY, environment

from flows.label_command import make_session
from flows.labelling.server import make_app
from storage.artifacts import Artifact
from storage.labels import LabelQueues, OpenQueue
from storage.records import LabelItem
from tasks.label_queue.choose import item_id_of

CAMPAIGN = "people"


def queue_rows(pairs: list[tuple[str, str, str]]) -> pl.DataFrame:
    """A `label_queue` frame of (question, first, second), in this order."""
    rows = []
    for position, (question, first, second) in enumerate(pairs):
        messages = [{"role": "user", "content": question}]
        rows.append(
            {
                "item_id": item_id_of(messages, first, second),
                "position": position,
                "prompt_id": f"p{position}",
                "cluster_id": f"c{position}",
                "messages": messages,
                "first": first,
                "second": second,
                "first_rollout_id": f"r{2 * position}",
                "second_rollout_id": f"r{2 * position + 1}",
                "iteration": 1,
                "reason": "random",
                "priority": 0.5,
            }
        )
    schema = LabelItem.create_empty().schema
    return (
        pl.DataFrame(rows, schema={name: schema[name] for name in rows[0]})
        .with_columns(pl.lit(None, dtype).alias(name) for name, dtype in schema.items() if name not in rows[0])
        .select(schema.names())
    )


def open_queue(folder: Path, root: str, pairs: list[tuple[str, str, str]], labels_per_item: int = 1) -> OpenQueue:
    """Commit a queue of iteration 1 and offer it."""
    made = committed(folder, "label_queue", root=root, label_queue=queue_rows(pairs))
    return offer(root, made, labels_per_item)


def offer(root: str, queue: Artifact, labels_per_item: int = 1, iteration: int = 1) -> OpenQueue:
    """Open a queue of the campaign."""
    opened = OpenQueue(
        iteration=iteration, queue=queue.id, labels_per_item=labels_per_item, opened_at=datetime.now(UTC)
    )
    return LabelQueues(root, CAMPAIGN).open(opened)


class Served:
    """`posttrain label` in a process of its own."""

    def __init__(self, root: str, home: Path, *options: str, **variables: str) -> None:
        command = [sys.executable, "-m", "flows.cli", "label", CAMPAIGN, "--root", root, "--port", "0", *options]
        self.process = subprocess.Popen(
            command,
            cwd=REPOSITORY,
            env=environment(home, PYTHONUNBUFFERED="1", **variables),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.output = ""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.output += line
            if found := re.search(r"http://[^ ]*:(\d+)/", line):
                self.port = int(found[1])
                break
        else:
            raise AssertionError(f"the page didn't come up:\n{self.output}")
        threading.Thread(target=self._drain, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def kill(self) -> None:
        """As a crash ends it."""
        self.process.kill()
        self.process.wait()

    def _drain(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.output += line


@contextmanager
def in_process(root: str, port: int = 0, token: str | None = None) -> Iterator[str]:
    """The same page from a thread of this process; yields its address."""
    queues = LabelQueues(root, CAMPAIGN)
    opened = queues.newest()
    frame = Artifact.at(root, opened.queue).read("label_queue")
    app = make_app(
        make_session(frame, queues, opened), title=f"{CAMPAIGN}, iteration 1", max_score=opened.max_score, token=token
    )
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning"))
    with socket.create_server(("127.0.0.1", port)) as listener:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join()


@contextmanager
def served(root: str, home: Path, *options: str, **variables: str) -> Iterator[Served]:
    """The command, ended with the test."""
    server = Served(root, home, *options, **variables)
    try:
        yield server
    finally:
        server.kill()
