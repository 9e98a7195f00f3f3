"""The page over HTTP: three static files, and a few posts that give the next item, store a label, take one back."""

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Annotated, Any

from fastapi import FastAPI, HTTPException, Request
from fastapi.responses import JSONResponse, RedirectResponse, Response
from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from flows.labelling.access import HEADERS, Access
from flows.labelling.session import Said, Session, Shown, Side, UnknownItem, shown_before
from flows.labelling.statistics import statistics
from storage.errors import PosttrainError

FOLDER = Path(__file__).parent
PAGES = {"page.html": "text/html", "page.css": "text/css", "page.js": "text/javascript"}
LARGEST_POST_BYTES = 1 << 16
MAX_COMMENT = 10_000

Annotator = Annotated[
    str, StringConstraints(strip_whitespace=True, min_length=1, max_length=64, pattern=r"^[^\x00-\x1f]+$")
]


class Asks(BaseModel):
    """Whoever labels."""

    model_config = ConfigDict(extra="forbid")

    annotator: Annotator


class Holds(Asks):
    """Whoever still looks at an item."""

    item_id: str = Field(max_length=64)


class Answers(Holds):
    """What is said of an item, by the sides on which the answers stood."""

    choice: Side
    left_score: float | None = None
    right_score: float | None = None
    comment: str = Field("", max_length=MAX_COMMENT)
    seconds: float | None = Field(None, ge=0, le=86_400, allow_inf_nan=False)


def make_app(session: Session, *, title: str, max_score: int, token: str | None = None) -> FastAPI:
    """The application. It answers a label only once the label is in the store."""
    app = FastAPI(title="posttrain label", docs_url=None, redoc_url=None, openapi_url=None)
    _guard(app, Access(token))
    _serve_page(app)

    def turn(annotator: str, shown: Shown | None, **more: Any) -> dict[str, Any]:
        return {"item": _item(shown), "progress": session.progress(annotator), **more}

    @app.get("/api/queue")
    def queue() -> dict[str, Any]:
        return {
            "id": f"{session.labels.campaign}/{session.labels.queue}",
            "title": title,
            "max_score": max_score,
            "labels_per_item": session.labels_per_item,
        }

    @app.post("/api/next")
    def following(asks: Asks) -> dict[str, Any]:
        return turn(asks.annotator, session.next(asks.annotator))

    @app.post("/api/label")
    def label(answer: Answers) -> dict[str, Any]:
        scores = (answer.left_score, answer.right_score)
        if any(score is not None and not 1 <= score <= max_score for score in scores):
            raise HTTPException(422, f"scores: expected 1 to {max_score}, found {scores}")
        said = Said(answer.item_id, answer.choice, *scores, answer.comment.strip(), answer.seconds)
        stored, ours = session.save(answer.annotator, said)
        return turn(answer.annotator, session.next(answer.annotator), saved=stored.label_id, kept=not ours)

    @app.post("/api/undo")
    def undo(asks: Asks) -> dict[str, Any]:
        taken_back = session.undo(asks.annotator)
        shown = taken_back or session.next(asks.annotator)
        return turn(asks.annotator, shown, undone=taken_back is not None)

    @app.post("/api/renew")
    def renew(holds: Holds) -> dict[str, bool]:
        return {"held": session.renew(holds.annotator, holds.item_id)}

    @app.get("/api/statistics")
    def numbers() -> dict[str, Any]:
        return {**statistics(session.standing()), "progress": session.progress("")}

    return app


def _serve_page(app: FastAPI) -> None:
    contents = {name: (FOLDER / name).read_bytes() for name in PAGES}

    def page(name: str) -> Callable[[], Response]:
        return lambda: Response(contents[name], media_type=f"{PAGES[name]}; charset=utf-8")

    for name in PAGES:
        app.get("/" if name == "page.html" else f"/{name}", response_class=Response)(page(name))


def _guard(app: FastAPI, access: Access) -> None:
    """Every answer carries the headers; every request is looked at first, the one that shows the token too."""

    @app.middleware("http")
    async def guard(request: Request, follow: Callable[[Request], Awaitable[Response]]) -> Response:
        response = _shows_token(request, access) or _refused(request, access) or await follow(request)
        response.headers.update(HEADERS)
        return response

    @app.exception_handler(UnknownItem)
    def unknown(_request: Request, error: UnknownItem) -> JSONResponse:
        return JSONResponse({"error": str(error)}, 404)

    @app.exception_handler(PosttrainError)
    def not_stored(_request: Request, error: PosttrainError) -> JSONResponse:
        return JSONResponse({"error": str(error)}, 503)


def _shows_token(request: Request, access: Access) -> Response | None:
    """The token was right: a cookie, and the page without the token in its address."""
    if request.method != "GET" or request.url.path != "/" or not access.takes(request.query_params.get("token", "")):
        return None
    response = RedirectResponse("/", 303)
    name, value = access.cookie
    # Not strict: that one isn't sent on the redirect when the link stood in a mail. Posts are checked by their origin.
    response.set_cookie(name, value, httponly=True, samesite="lax", secure=request.url.scheme == "https")
    return response


def _refused(request: Request, access: Access) -> Response | None:
    why = access.refuses(request)
    if why is not None:
        return JSONResponse({"error": why}, 403)
    if request.method == "POST" and not request.headers.get("content-type", "").startswith("application/json"):
        return JSONResponse({"error": "expected application/json"}, 415)
    length = request.headers.get("content-length", "")
    if request.method == "POST" and (not length.isdigit() or int(length) > LARGEST_POST_BYTES):
        return JSONResponse({"error": f"expected at most {LARGEST_POST_BYTES} bytes, and their number"}, 413)
    return None


def _item(shown: Shown | None) -> dict[str, Any] | None:
    """What the page shows; nothing that tells a policy or a score, which would bias whoever looks."""
    if shown is None:
        return None
    return {
        "item_id": shown.item.item_id,
        "messages": [dict(message) for message in shown.item.messages],
        "left": shown.left,
        "right": shown.right,
        "before": shown_before(shown),
    }
