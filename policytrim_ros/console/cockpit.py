"""What the console asks of the system behind it: a state to show, orders to give, pictures and reports.

The server calls a cockpit from several threads at once. `state` and `picture` are asked many times a second and answer at once; an
order may take seconds. `hold` is given while other orders are still being carried out and must not wait for them.
"""

from __future__ import annotations

from typing import Any, Mapping, Protocol

LONGEST_TEXT = 2000
"""Characters of one text in an order."""

NEEDED = object()
"""Stands for the default of a detail that has none."""

ORDERS: dict[str, dict[str, tuple[type, Any]]] = {  # order: its details, each with type and default
    "start": {"plan": (dict, NEEDED), "attended": (bool, True)},
    "resume": {"session": (str, NEEDED), "attended": (bool, True)},
    "go": {},
    "label": {"outcome": (str, NEEDED), "reason": (str, "")},
    "undo": {},
    "confirm": {},
    "hold": {},
    "pause": {},
    "lock": {"session": (str, NEEDED), "reason": (str, "")},
    "swap": {"checkpoint": (str, NEEDED)},
    "roll_back": {},
    "clear_fault": {},
    "home": {},
}


class Refused(RuntimeError):
    """What was asked for is not done; the message, a sentence for whoever asked, says why."""


class Malformed(ValueError):
    """An order that is none; the message names what is wrong with it."""


class Cockpit(Protocol):
    """The system as its operator sees it. Thread-safe."""

    def state(self) -> Mapping[str, Any]:
        """Everything there is to be seen, as plain JSON values (docs/console.md); of a blind session nothing that tells its arms."""

    def order(self, name: str, details: Mapping[str, Any], who: str) -> str:
        """Does one of ORDERS, whose details are complete and of the right types; returns a sentence, raises Refused, or Malformed
        when a detail makes no sense."""

    def note(self, kind: str, detail: Mapping[str, Any]) -> None:
        """Keeps in the record what the server itself has done: who is in control, who asked for it, what it refused."""

    def picture(self, camera: str) -> tuple[bytes, float] | None:
        """Newest picture of a camera as JPEG, and its stamp in unix s; None before the first."""

    def card(self, camera: str) -> bytes | None:
        """JPEG of the scene that is wanted, as that camera would see it; None when there is none."""

    def report(self, session: str, html: bool = True) -> str:
        """The report of a session as one self-contained HTML page, or as Markdown; raises Refused while it is blind, or when it cannot
        be made. May take minutes, at the cost of nobody else."""


def checked(name: str, details: Mapping[str, Any]) -> dict[str, Any]:
    """``details`` of order ``name`` with defaults filled in; Malformed when one is unknown, missing or of a wrong type."""
    if name not in ORDERS:
        raise Malformed(f"unknown order '{name[:40]}'; orders: {', '.join(ORDERS)}")
    known = ORDERS[name]
    return checked_fields(details, known, f"order {name}")


def checked_fields(given: Mapping[str, Any], known: Mapping[str, tuple[type, Any]], where: str) -> dict[str, Any]:
    """The fields ``known`` (name -> type and default) of ``given``; Malformed when one is unknown, missing or of a wrong type."""
    for key, value in given.items():
        if key not in known:
            raise Malformed(f"{where}: unknown field '{key[:40]}'; known: {', '.join(known) or 'none'}")
        if type(value) is not known[key][0]:
            raise Malformed(f"{where}: '{key}' must be of type {known[key][0].__name__}")
        if isinstance(value, str) and len(value) > LONGEST_TEXT:
            raise Malformed(f"{where}: '{key}' is longer than {LONGEST_TEXT} characters")
    whole = {key: given.get(key, default) for key, (_, default) in known.items()}
    if missing := [key for key, value in whole.items() if value is NEEDED]:
        raise Malformed(f"{where}: '{missing[0]}' is missing")
    return whole
