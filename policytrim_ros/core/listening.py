"""Where a server of ours, the console or a policy's, may listen: on this machine, or elsewhere with a token that nobody guesses."""

from __future__ import annotations

TOKEN = "POLICYTRIM_TOKEN"
"""Environment variable, on both sides."""

LOCAL = ("127.0.0.1", "localhost", "::1")
LEAST = 16
"""Characters of a token that lets other machines in; `openssl rand -hex 16` has 32."""


def objection(host: str, token: str) -> str:
    """Why not to listen on ``host`` with ``token``, and what to do; empty when nothing speaks against it."""
    if host in LOCAL or len(token) >= LEAST:
        return ""
    here = "or listen on 127.0.0.1 (the default)"
    if not token:
        return f"listening on {host} lets everybody in: set {TOKEN}, {here}"
    return f"the {len(token)} characters of {TOKEN} can be guessed from another machine: set {LEAST} or more (openssl rand -hex 16), {here}"
