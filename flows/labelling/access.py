"""Who may use the page: a token beyond loopback, this machine's names on loopback, and only the page's own posts."""

import hashlib
import hmac
import ipaddress
import os
from http.cookies import CookieError, SimpleCookie
from urllib.parse import SplitResult, urlsplit

from starlette.requests import Request

from storage.errors import InputError

TOKEN_VARIABLE = "POSTTRAIN_LABEL_TOKEN"
SHORTEST_TOKEN = 16
COOKIE = "posttrain_label"
HEADERS = {
    # Nothing but the page's own two files runs or styles; text of a model's output can't become markup.
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; "
    "trusted-types 'none'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches what is bound to that host."""
    name = host.strip("[]")
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return name == "localhost"


def token_for(host: str, token: str | None) -> str | None:
    """The token to ask for: the given one, else `$POSTTRAIN_LABEL_TOKEN`; none is needed on loopback.

    Raises `InputError` for a host that others reach without one, and for one that can be guessed.
    """
    chosen = token or os.environ.get(TOKEN_VARIABLE) or None
    if chosen is None and not is_loopback(host):
        raise InputError(
            f"--host {host}: others can reach the page there, and it has no token. Set ${TOKEN_VARIABLE} (or --token) "
            f"to {SHORTEST_TOKEN} characters or more that nobody guesses, such as those of `openssl rand -hex 16`"
        )
    if chosen is not None and len(chosen) < SHORTEST_TOKEN:
        raise InputError(f"the token has {len(chosen)} characters, expected {SHORTEST_TOKEN} or more")
    return chosen


class Access:
    """Says of a request whether it may pass. A token is compared in constant time and never stands in a cookie."""

    def __init__(self, token: str | None) -> None:
        self._token = token.encode() if token else None

    @property
    def cookie(self) -> tuple[str, str]:
        """Name and value of what a browser shows after it has shown the token once: of no use elsewhere.

        Two servers on one machine share its cookies, so the name is this token's own.
        """
        proof = hmac.new(self._token or b"", COOKIE.encode(), hashlib.sha256).hexdigest()
        return f"{COOKIE}_{proof[:8]}", proof[8:]

    def takes(self, token: str) -> bool:
        """Whether this is the token."""
        return self._token is not None and hmac.compare_digest(token.encode(), self._token)

    def refuses(self, request: Request) -> str | None:
        """Why a request may not pass, or None.

        Without a token the request has to name this machine: a page elsewhere whose name was made to point here is
        refused. A post has to come from the page itself.
        """
        host = request.headers.get("host", "")
        if self._token is None and not is_loopback(_split(f"//{host}").hostname or ""):
            return f"the host {host!r} isn't this machine"
        if self._token is not None and not self._knows_token(request):
            return "this page needs its token: open the address with ?token=... once"
        if request.method == "POST" and _split(request.headers.get("origin", "")).netloc != host:
            return "the request comes from another page"
        return None

    def _knows_token(self, request: Request) -> bool:
        cookies: SimpleCookie = SimpleCookie()
        try:
            cookies.load(request.headers.get("cookie", ""))
        except CookieError:
            return False
        name, value = self.cookie
        shown = cookies[name].value if name in cookies else ""
        return hmac.compare_digest(shown.encode(), value.encode())


def _split(address: str) -> SplitResult:
    """The parts of an address; none of one that isn't an address."""
    try:
        return urlsplit(address)
    except ValueError:
        return SplitResult("", "", "", "", "")
