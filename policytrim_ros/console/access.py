"""Who may look, who may give orders, and who is in control.

A token (POLICYTRIM_TOKEN) lets a person in from another host. Against pages of other sites in the operator's own browser it is of no
use; for those there are the Host header (a name that a stranger's DNS points at this machine is refused) and the Origin header.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import re
import socket
from typing import Any, Mapping

from policytrim_ros.console.cockpit import Malformed, Refused
from policytrim_ros.core.listening import objection

COOKIE = "policytrim_console"
GONE_S = 10.0
"""Whoever is in control and has not been heard of for this long has left."""


class ConsoleError(RuntimeError):
    """The console cannot be served or reached; the message says why and what to do."""


class Access:
    """The token and what is asked of every request. ``host``: address that is listened on."""

    def __init__(self, host: str, token: str):
        if why_not := objection(host, token):
            raise ConsoleError(why_not)
        own = socket.gethostname().lower()
        self._names = {"localhost", own, f"{own}.local", host.lower()}
        self._token = token
        self.cookie = hmac.new(token.encode(), b"cookie of the console", hashlib.sha256).hexdigest()

    def is_token(self, shown: str) -> bool:
        """Whether ``shown`` is the token; takes equally long for every wrong one, whatever its length or its beginning."""
        return hmac.compare_digest(hashlib.sha256(_bytes(shown)).digest(), hashlib.sha256(self._token.encode()).digest())

    def has_token(self, headers: Mapping[str, str], cookies: Mapping[str, str]) -> bool | None:
        """Whether a request shows the token, or needs none; None when it shows none at all."""
        if not self._token:
            return True
        kind, _, shown = headers.get("Authorization", "").partition(" ")
        if kind.lower() == "bearer":
            return self.is_token(shown.strip())
        if COOKIE in cookies:
            return hmac.compare_digest(_bytes(cookies[COOKIE]), self.cookie.encode())
        return None

    def knows_host(self, host: str) -> bool:
        """Whether a Host header names this machine: by an IP address, which no DNS server can point elsewhere, or by its own name."""
        match = re.fullmatch(r"(?:\[([0-9a-fA-F:.]+)\]|([^\[\]:@/\s]+))(?::\d{1,5})?", host)
        if match is None:
            return False
        try:
            ipaddress.ip_address(match[1] or match[2])
            return True
        except ValueError:
            return (match[2] or "").lower() in self._names

    @staticmethod
    def same_site(headers: Mapping[str, str]) -> bool:
        """Whether a request comes from the page itself or from no page at all."""
        origin = headers.get("Origin")
        if origin is not None and origin not in (f"http://{headers.get('Host')}", f"https://{headers.get('Host')}"):
            return False
        return headers.get("Sec-Fetch-Site", "none") in ("none", "same-origin")


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


def checked_name(who: str) -> str:
    """A display name as it enters the record; Malformed when it is empty, long or cannot be printed."""
    who = who.strip()
    if not 1 <= len(who) <= 40 or not who.isprintable():
        raise Malformed("'who': a name of 1 to 40 printable characters")
    return who


def checked_client(client: str) -> str:
    """What a client calls itself, a secret of its own; Malformed when it can be guessed or is no such thing."""
    if not re.fullmatch(r"[0-9a-zA-Z]{16,64}", client):
        raise Malformed("'client': 16 to 64 random letters and digits, the same for all requests of a client")
    return client


class Control:
    """One client is in control; it stays there until it gives control away or has been gone for GONE_S.

    ``client``: the secret of a client; ``now``: monotonic seconds.
    """

    def __init__(self):
        self._holder = self._asking = ""  # clients
        self._names: dict[str, str] = {}
        self._heard: dict[str, float] = {}
        self._since = 0.0

    def hear(self, client: str, now: float) -> None:
        """A sign of life."""
        self._forget(now)
        self._heard[client] = now

    def operate(self, client: str, who: str, now: float) -> None:
        """Checks that an order may be given; takes control when nobody has it, raises Refused when somebody else has."""
        self.hear(client, now)
        if self._holder not in ("", client):
            raise Refused(f"{self._names[self._holder]} is in control; ask for it")
        if not self._holder:
            self._holder, self._since = client, now
        self._names[client] = who
        if self._asking == client:
            self._asking = ""

    def ask(self, client: str, who: str, now: float) -> str:
        """Takes control when nobody has it; otherwise the holder sees that it is asked for."""
        try:
            self.operate(client, who, now)
            return "you are in control"
        except Refused:
            self._asking, self._names[client] = client, who
            return f"{self._names[self._holder]} was asked for control"

    def give(self, client: str, now: float) -> str:
        """Gives control to whoever asked for it, or to nobody; Refused unless ``client`` has it."""
        self.hear(client, now)
        if self._holder != client:
            raise Refused("only whoever is in control can give it away")
        self._holder, self._asking, self._since = self._asking, "", now
        return f"{self._names[self._holder]} is in control" if self._holder else "nobody is in control"

    def keep(self, client: str, now: float) -> str:
        """Does not give it to whoever asked."""
        self.hear(client, now)
        if self._holder != client:
            raise Refused("only whoever is in control can keep it")
        self._asking = ""
        return "you stay in control"

    def is_holder(self, client: str) -> bool:
        return bool(client) and client == self._holder

    def seen(self, now: float) -> dict[str, Any]:
        """{"holder", "since_s", "asking"}: names, '' for nobody."""
        self._forget(now)
        name = lambda client: self._names[client] if client else ""  # noqa: E731
        since_s = round(now - self._since) if self._holder else 0
        return {"holder": name(self._holder), "since_s": since_s, "asking": name(self._asking)}

    def _forget(self, now: float) -> None:
        """Drops everybody who has been gone for too long."""
        for client in [client for client, heard in self._heard.items() if now - heard > GONE_S]:
            del self._heard[client]
            self._names.pop(client, None)
            if self._holder == client:
                self._holder, self._since = "", now
            if self._asking == client:
                self._asking = ""
