"""`posttrain label`: people label a campaign's queue in a browser."""

import errno
import json
import socket
from pathlib import Path
from typing import Annotated

import polars as pl
import typer
from rich.console import Console

from flows.config import ROOT_VARIABLE, default_root
from flows.environment import embedded
from flows.labelling.session import LEASE_S, Item, Session
from storage import campaigns
from storage.artifacts import Artifact
from storage.errors import InputError
from storage.home import home
from storage.labels import LabelQueues, OpenQueue

LOOPBACK = "127.0.0.1"


def register(app: typer.Typer) -> None:
    """Add the command to an app."""
    app.command()(label)


def label(
    campaign: Annotated[str, typer.Argument(help="Name of the campaign.")],
    root: Annotated[str | None, typer.Option(help=f"Of the campaign; ${ROOT_VARIABLE} by default.")] = None,
    iteration: Annotated[int | None, typer.Option(min=1, help="Whose queue; the newest by default.")] = None,
    port: Annotated[int, typer.Option(help="0 takes any free one.")] = 8400,
    host: Annotated[str, typer.Option(help="Other than loopback needs a token.")] = LOOPBACK,
    token: Annotated[
        str | None, typer.Option(help="Better in $POSTTRAIN_LABEL_TOKEN: other users see a command's options.")
    ] = None,
    lease_s: Annotated[
        float, typer.Option(min=1, help="Seconds after which an item that nobody looks at is free.")
    ] = LEASE_S,
    export: Annotated[
        Path | None, typer.Option("--export-label-studio", help="Write the queue and its labels as JSON; no page.")
    ] = None,
    imported: Annotated[
        Path | None, typer.Option("--import-label-studio", help="Take the annotations of a JSON export; no page.")
    ] = None,
) -> None:
    """Serve a page on which people compare two answers; every label is stored before the next pair is shown."""
    where = root or default_root()
    if where.startswith("s3://"):
        embedded(home())
    if export is not None and imported is not None:
        raise InputError("give --export-label-studio or --import-label-studio, not both")
    queues, opened = _queue(where, campaign, iteration)
    frame = Artifact.at(where, opened.queue).read("label_queue").sort("position")
    if imported is not None:
        _import(imported, frame, queues, opened)
    elif export is not None:
        _export(export, frame, queues, opened)
    else:
        _serve(frame, queues, opened, (host, port), token, lease_s)


def make_session(frame: pl.DataFrame, queues: LabelQueues, opened: OpenQueue, lease_s: float = LEASE_S) -> Session:
    """A queue's session, with what is labelled already, there and in the campaign's other queues."""
    columns = ("item_id", "messages", "first", "second")
    others = [other for other in queues.all() if other.queue != opened.queue]
    return Session(
        items=[Item(*row) for row in frame.select(columns).iter_rows()],
        labels=queues.labels_of(opened.queue),
        labels_per_item=opened.labels_per_item,
        elsewhere=[label for other in others for label in queues.labels_of(other.queue).standing()],
        lease_s=lease_s,
    )


def _queue(root: str, campaign: str, iteration: int | None) -> tuple[LabelQueues, OpenQueue]:
    known = campaigns.names(root)
    if campaign not in known:
        raise InputError(f"campaign {campaign!r}: unknown below {root}; there are {', '.join(known) or 'none'}")
    queues = LabelQueues(root, campaign)
    return queues, queues.newest(iteration)


def _serve(
    frame: pl.DataFrame,
    queues: LabelQueues,
    opened: OpenQueue,
    address: tuple[str, int],
    token: str | None,
    lease_s: float,
) -> None:
    import uvicorn

    from flows.labelling.access import is_loopback, token_for
    from flows.labelling.server import make_app

    host = address[0].strip("[]")
    secret = token_for(host, token)
    session = make_session(frame, queues, opened, lease_s)
    title = f"{queues.campaign}, iteration {opened.iteration}"
    app = make_app(session, title=title, max_score=opened.max_score, token=secret)
    # The access log would hold the address, and with it the token.
    config = uvicorn.Config(app, access_log=False, log_level="warning", server_header=False)
    with _listening(host, address[1]) as listener:
        shown = f"[{host}]" if ":" in host else host
        console = Console(highlight=False, soft_wrap=True)
        progress = session.progress("")
        console.print(f"{title}: {progress['labels']} of {progress['wanted']} labels are there")
        console.print(f"http://{shown}:{listener.getsockname()[1]}/{'?token=YOUR_TOKEN' if secret else ''}")
        if not is_loopback(host):
            console.print("what travels isn't encrypted: put a proxy with TLS before it, or use a tunnel")
        console.print("Ctrl-C ends it; every label that the page took is stored")
        uvicorn.Server(config).run(sockets=[listener])


def _listening(host: str, port: int) -> socket.socket:
    """A socket that takes connections from now on. Raises `InputError` for an address that can't be had."""
    from flows.services.processes import port_owner

    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError as error:
        taken = f": it is taken by {port_owner(port)}" if error.errno == errno.EADDRINUSE else f" ({error})"
        raise InputError(f"can't listen on {host}:{port}{taken}; choose another with --port and --host") from error


def _export(path: Path, frame: pl.DataFrame, queues: LabelQueues, opened: OpenQueue) -> None:
    from flows.labelling.label_studio import tasks_of

    labels = queues.labels_of(opened.queue).standing()
    path.write_text(json.dumps(tasks_of(frame, labels), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    Console().print(f"{path}: {len(frame)} tasks, {len(labels)} annotations", highlight=False, soft_wrap=True)


def _import(path: Path, frame: pl.DataFrame, queues: LabelQueues, opened: OpenQueue) -> None:
    from flows.labelling.label_studio import annotations_of, import_annotations

    try:
        content = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 at byte {error.start}") from None
    found = annotations_of(content, str(path), opened.max_score)
    new, there = import_annotations(found, frame, queues.labels_of(opened.queue))
    Console().print(f"{path}: {new} labels stored, {there} stood already", highlight=False, soft_wrap=True)
