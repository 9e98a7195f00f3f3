"""The page in a real Chromium with a person's actions, and over HTTP with everybody else's."""

import json
from pathlib import Path

import httpx
import pytest
from browser import chromium
from label_queues import CAMPAIGN, in_process, open_queue, served

from storage.labels import LabelQueues

TOKEN = "a-token-of-some-length-1234"
EVIL = (
    "<script>window.pwned = 1</script><img src=x onerror='window.pwned = 2'><svg onload=window.pwned=3>"
    "<a href='javascript:window.pwned=4'>click me</a><style>body { display: none }</style>"
    "<iframe srcdoc='<script>parent.pwned=5</script>'></iframe>${7*7}{{7*7}}\u202egnp.exe"
)
PAIRS = [
    (EVIL, EVIL + " first", EVIL + " second"),
    *((f"question {index}", f"first answer {index}", f"second answer {index}") for index in range(1, 12)),
]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A root with an open queue of twelve pairs, each for two people."""
    folder = tmp_path_factory.mktemp("page")
    root = str(folder / "root")
    opened = open_queue(folder, root, PAIRS, labels_per_item=2)
    return {"root": root, "folder": folder, "queue": opened.queue, "home": folder / "home"}


@pytest.fixture(scope="module")
def server(place):
    with in_process(place["root"]) as url:
        yield url


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with chromium(tmp_path_factory.mktemp("profile")) as running:
        yield running


def seen(text):
    """The text as the page shows it: what would turn the reading direction is named instead."""
    return text.replace("\u202e", "\u27e8U+202E\u27e9")


def stored(place):
    """The standing labels, as a process of its own reads them from the store."""
    return LabelQueues(place["root"], CAMPAIGN).labels_of(place["queue"]).standing()


def begin(browser, url, name):
    """A person opens the page and says who they are."""
    page = browser.person()
    page.open(url)
    page.until("!document.querySelector('#ask-name').hidden")
    page.click("#annotator")
    page.type(name)
    page.press("Enter")
    page.until("!document.querySelector('#work').hidden")
    return page


def answered(page, count):
    """Wait until the page says how many labels this person gave."""
    page.until(f"/ {count} by you/.test(document.querySelector('#counts').textContent)")
    page.until("!document.querySelector('[data-choice]').disabled")


def test_a_person_labels_by_keys_and_takes_one_back(browser, server, place):
    page = begin(browser, server, "ada")
    # Whatever a model wrote is text, in the prompt and in both answers.
    shown = page.text("#left-text"), page.text("#right-text"), page.text("#conversation .text")
    assert set(shown) == {seen(EVIL), seen(EVIL + " first"), seen(EVIL + " second")}
    assert (
        page.value(
            "document.querySelectorAll('main script, main img, main svg, main a, main iframe, main style').length"
        )
        == 0
    )
    assert page.value("window.pwned") is None

    left_is_first = shown[0].endswith("first")
    page.press("4")
    page.press("2", shift=True)
    page.press("c")
    page.type("because of s and t")
    page.press("Escape")
    page.press("ArrowLeft")
    answered(page, 1)
    [label] = stored(place)
    assert label.annotator == "ada" and label.choice == ("first" if left_is_first else "second")
    assert label.swapped == (not left_is_first) and label.comment == "because of s and t"
    assert (label.first_score, label.second_score) == ((4, 2) if left_is_first else (2, 4))
    assert label.seconds is not None and label.seconds > 0

    page.press("t")
    answered(page, 2)
    page.press("s")
    answered(page, 3)
    right_is_second = page.text("#right-text").startswith("second")
    page.press("ArrowRight")
    answered(page, 4)
    assert [each.choice for each in stored(place)][1:] == ["tie", "skip", "second" if right_is_second else "first"]

    page.press("u")
    answered(page, 3)
    assert "Taken back" in page.text("#notice") and page.text("#conversation .text") == "question 3"
    page.click("[data-choice=tie]")
    answered(page, 4)
    assert [each.choice for each in stored(place)][1:] == ["tie", "skip", "tie"]
    assert page.complaints() == []


def test_two_people_at_once_and_the_statistics(browser, server, place):
    cleo, dan = begin(browser, server, "cleo"), begin(browser, server, "dan")
    # Ada has labelled the first and the second: one more label each, so they hold different ones.
    texts = {page.text("#conversation .text") for page in (cleo, dan)}
    assert texts == {seen(EVIL), "question 1"}
    cleo.press("ArrowLeft")
    answered(cleo, 1)
    dan.press("ArrowLeft")
    answered(dan, 1)
    cleo.click("#show-statistics")
    cleo.until("!document.querySelector('#statistics').hidden")
    names = cleo.value("[...document.querySelectorAll('#people td:first-child')].map((cell) => cell.textContent)")
    assert names == ["ada", "cleo", "dan"]
    assert "Krippendorff" in cleo.text("#facts") and "ada and cleo" in cleo.text("#pairs")
    cleo.click("#hide-statistics")
    cleo.until("!document.querySelector('#work').hidden")
    assert cleo.complaints() == dan.complaints() == []


def refuses_without_token(running):
    """Beyond loopback everything needs the token; shown once, a cookie that doesn't tell it stands for it."""
    for path in ("/", "/page.js", "/api/statistics", "/?token=wrong", "/api/queue?token=" + TOKEN):
        assert httpx.get(running.url + path).status_code == 403, path
    assert post(running.url, "/api/next").status_code == 403
    assert post(running.url, "/api/next", **{"cookie": f"posttrain_label={TOKEN}"}).status_code == 403
    with httpx.Client(base_url=running.url, headers={"origin": running.url}) as person:
        entered = person.get("/", params={"token": TOKEN})
        assert entered.status_code == 303 and entered.headers["location"] == "/"
        cookie = entered.headers["set-cookie"]
        assert "HttpOnly" in cookie and "samesite=lax" in cookie.lower() and TOKEN not in cookie
        assert person.get("/").status_code == 200
        elsewhere = person.post("/api/next", json={"annotator": "gil"}, headers={"origin": "http://evil"})
        assert elsewhere.status_code == 403
    assert "token=YOUR_TOKEN" in running.output


def test_a_killed_server_loses_nothing_and_the_page_goes_on_by_itself(browser, place):
    with served(place["root"], place["home"], "--host", "0.0.0.0", POSTTRAIN_LABEL_TOKEN=TOKEN) as first:
        refuses_without_token(first)
        page = begin(browser, f"{first.url}/?token={TOKEN}", "eve")
        assert page.value("location.href") == f"{first.url}/" and page.value("document.cookie") == ""
        begun = page.text("#conversation .text")
        page.press("ArrowLeft")
        answered(page, 1)
        second = page.text("#conversation .text")
        first.kill()
        before = stored(place)
        assert [each.annotator for each in before].count("eve") == 1
        page.press("t")  # into the void: the page must not go on
        page.until("/Not stored yet/.test(document.querySelector('#notice').textContent)")
        assert page.text("#conversation .text") == second and stored(place) == before
        # Served by somebody who chose another token: the label waits until the right one is back.
        with in_process(place["root"], first.port, TOKEN[::-1]):
            page.until("/this page needs its token/.test(document.querySelector('#notice').textContent)")
            waiting = page.value("Object.keys(localStorage).filter((key) => key.startsWith('posttrain-label-unsent'))")
            assert waiting == [f"posttrain-label-unsent:{CAMPAIGN}/{place['queue'].rpartition('/')[2]}"]
        with in_process(place["root"], first.port, TOKEN):
            answered(page, 2)
            assert page.text("#conversation .text") not in (begun, second)
    assert [each.choice for each in stored(place) if each.annotator == "eve"][1] == "tie"
    assert TOKEN not in first.output
    assert TOKEN not in json.dumps([label.model_dump(mode="json") for label in stored(place)])


def test_a_phone_and_a_desk_show_everything(browser, server, place, request):
    page = begin(browser, server, "fay")
    folder = Path(request.config.getoption("basetemp") or place["folder"])
    for width, height in ((1440, 900), (390, 844)):
        page.resize(width, height)
        page.screenshot(folder / f"label-{width}.png")
        assert page.value("document.documentElement.scrollWidth") <= width
        boxes = page.value(
            "[...document.querySelectorAll('.dock button')].map((e) => e.getBoundingClientRect().toJSON())"
        )
        assert len(boxes) == 5 and all(box["left"] >= 0 and box["right"] <= width for box in boxes)
        assert all(box["bottom"] <= height for box in boxes)
    lefts = page.value("['left', 'right'].map((id) => document.getElementById(id).getBoundingClientRect().left)")
    assert lefts[0] == lefts[1]  # one below the other on a phone


def post(server, path, body=None, origin=None, **headers):
    given = {"origin": server if origin is None else origin, **headers}
    return httpx.post(f"{server}{path}", json={"annotator": "mallory"} if body is None else body, headers=given)


def test_headers_origin_host_and_size(server, place):
    page = httpx.get(server)
    policy = page.headers["content-security-policy"]
    assert "default-src 'none'" in policy and "unsafe" not in policy and "frame-ancestors 'none'" in policy
    assert page.headers["x-content-type-options"] == "nosniff" and page.headers["referrer-policy"] == "same-origin"
    assert "<script>" not in page.text and " onclick" not in page.text and "style=" not in page.text
    assert "policy" not in post(server, "/api/next").text and "score" not in post(server, "/api/next").json()["item"]
    for origin in ("https://evil.example", "null", "", "http://127.0.0.1:1", "http://[::1"):
        assert post(server, "/api/next", origin=origin).status_code == 403
    # A name that somebody made to point at this machine.
    assert httpx.get(server, headers={"host": "evil.example"}).status_code == 403
    assert httpx.get(f"{server}/docs").status_code == httpx.get(f"{server}/openapi.json").status_code == 404
    assert post(server, "/api/next", **{"content-type": "text/plain"}).status_code == 415
    assert post(server, "/api/label", {"annotator": "m", "comment": "x" * 70_000}).status_code == 413
    count = len(stored(place))
    item = post(server, "/api/next").json()["item"]["item_id"]
    for bad in ({"choice": "first"}, {"choice": "left", "left_score": 9}, {"choice": "left", "left_score": "NaN"}):
        assert post(server, "/api/label", {"annotator": "mallory", "item_id": item, **bad}).status_code == 422
    assert post(server, "/api/label", {"annotator": "mallory", "item_id": "x", "choice": "left"}).status_code == 404
    assert post(server, "/api/next", {"annotator": "  "}).status_code == 422
    assert len(stored(place)) == count
