"""Where the operator and the protocol meet: go, the outcome by one key, undo; and what there is to be seen of the trial.

The protocol's thread calls `begin`, `phase`, `may_go`, `end`; the operator's thread (console, terminal) gives orders. An order that
makes no sense at the moment raises NotNow with a sentence. Without an operator (``attended=False``) go is given at once.
"""

from __future__ import annotations

import threading
import time
from contextlib import suppress
from dataclasses import replace
from typing import Any, Callable

from policytrim_ros.trials.canary import Canary
from policytrim_ros.trials.session import Trial
from policytrim_ros.trials.store import UNLABELLED, Row, Store, StoreError

BY_HAND = ("success", "failure", "invalid")
LONGEST_REASON = 500


class NotNow(RuntimeError):
    """The order does not fit what is going on; the message says why."""


class Desk:
    """One run of trials as an operator sees it. ``changed``: called after every change, from whatever thread made it."""

    def __init__(
        self,
        store: Store | None = None,
        attended: bool = False,
        records: bool = False,
        hands: bool = False,
        changed: Callable = lambda: None,
    ):
        """``hands``: whether hands may be near the arm between two trials, so that it waits for a go before it moves home, too."""
        self.store, self.attended, self.records, self.hands = store, attended, records, hands
        self.verdict: tuple[str, str, str] | None = None  # outcome, reason, who
        self.trial: Trial | None = None
        self.recording = self.session = self.left = ""
        self.last: Row | None = None  # the newest finished trial
        self.alarms: list[str] = []
        self.canary: Canary | None = None
        self.began = False  # whether the trial has come to its go
        self._stopped = False  # whether something stopped the last trial
        self._phase, self._go, self._lock, self._changed = "idle", False, threading.RLock(), changed
        self._since = time.monotonic()

    # ---- the protocol ------------------------------------------------------------------------------------------------

    def begin(self, trial: Trial, session: str, recording: str, left: str) -> None:
        with self._lock:
            self.trial, self.session, self.recording, self.left = trial, session, recording, left
            self.verdict, self._go = None, False
        self.phase("preparing")

    def phase(self, name: str) -> None:
        """idle | homing | preparing | ready | running | ending | labelling | done | complete; in ``ending`` the verdict stays as it is"""
        with self._lock:
            self.began = name in ("running", "labelling") or (self.began and name not in ("homing", "preparing"))
            self._go = False  # each go is for one motion
            self._phase, self._since = name, time.monotonic()
        self._changed()

    def may_go(self) -> bool:
        with self._lock:
            self._go = not self.unlabelled and (self._go or not self.attended)
            return self._go

    @property
    def asks_before_home(self) -> bool:
        """Whether the arm moves home only after a go: hands may be near, or something, a hold for instance, has stopped the last trial."""
        return self.attended and (self.hands or self._stopped or (self.last is not None and self.last.outcome == "aborted"))

    def end(self, row: Row) -> None:
        with self._lock:
            self._stopped = row.outcome == "aborted"
            if not self.unlabelled:  # that one is asked for first: nothing else leads back to it
                self.last = row
        self.phase("done")

    def alarm(self, text: str) -> None:
        """Something that a person must know; it stays until it is read."""
        with self._lock:
            new = text not in self.alarms
            self.alarms = [*(one for one in self.alarms if one != text), text][-10:]
        self._changed()
        if new and self.store is not None:
            with suppress(StoreError):  # the disk may be what the alarm is about
                self.store.note(self.session, "alarm", text=text)

    def all_clear(self, text: str) -> None:
        """What the alarm ``text`` was about is over; nothing happens when there was none."""
        with self._lock:
            if text not in self.alarms:
                return
            self.alarms = [one for one in self.alarms if one != text]
        self._changed()

    def watch(self, canary: Canary | None) -> Canary | None:
        """What has become of a canary session's candidate so far, to be seen from the next change on; ``canary``."""
        with self._lock:
            self.canary = canary
        return canary

    # ---- the operator --------------------------------------------------------------------------------------------------

    @property
    def unlabelled(self) -> bool:
        """Whether the last trial's outcome was taken back and waits for another."""
        return self.last is not None and self.last.outcome == UNLABELLED

    def go(self) -> None:
        with self._lock:
            if self._phase not in ("homing", "ready"):
                raise NotNow(f"go is given when a trial is ready, not while it is {self._phase}")
            if self.unlabelled:
                raise NotNow(f"trial {self.last.number} has no outcome; give it one first")
            self._go = True

    def label(self, outcome: str, reason: str, who: str) -> None:
        """The outcome of the running trial, or of the last one after an undo."""
        if outcome not in BY_HAND:
            raise NotNow(f"outcome '{outcome}': choose one of {', '.join(BY_HAND)}")
        reason = reason.strip()[:LONGEST_REASON]
        if outcome == "invalid" and not reason:
            raise NotNow("say why the trial is invalid")
        with self._lock:
            if self.unlabelled:
                self.store.label(self.last.id, outcome, reason, who)
                self.last = replace(self.last, outcome=outcome, reason=reason, labelled_by=who)
            elif self._phase in ("running", "labelling"):
                self.verdict = (outcome, reason or f"said by {who}", who)
            elif self._phase == "ending":
                raise NotNow("the trial has ended already; when it is stored, undo takes its outcome back, then give yours")
            else:
                raise NotNow("no trial is running; undo takes the last outcome back")
        self._changed()

    def undo(self, who: str) -> None:
        """Takes the last trial's outcome back; the record keeps it."""
        with self._lock:
            if self._go or self._phase in ("running", "labelling"):
                raise NotNow("a trial is running; end it first")
            if self._phase == "ending":
                raise NotNow("the trial is being stored; undo takes its outcome back when that is done")
            if self.last is None or not self.last.id or self.unlabelled:
                raise NotNow("there is no outcome to take back")
            self.store.label(self.last.id, UNLABELLED, "undo", who)
            self.last = replace(self.last, outcome=UNLABELLED, reason="undo", labelled_by=who)
        self._changed()

    # ---- what there is to be seen ----------------------------------------------------------------------------------------

    def seen(self, blind: bool) -> dict[str, Any]:
        """The trial for a page or a topic; of a blind session nothing that tells its arm."""
        with self._lock:
            trial, last = self.trial, self.last
            card = None
            if trial is not None:
                card = {
                    name: getattr(trial, name) for name in ("number", "code", "task", "setting", "seed", "timeout_s", "disturb_s")
                }
                card |= {} if blind else {"arm": trial.arm.label}
            return {
                "session": self.session,
                "phase": self._phase,
                "since_s": round(time.monotonic() - self._since, 2),
                "recording": self.recording,
                "card": card,
                "left_s": self.left,
                "unlabelled": self.last.number if self.unlabelled else None,
                "last": None
                if last is None
                else {name: getattr(last, name) for name in ("number", "code", "outcome", "reason", "seconds")},
                "alarms": self.alarms,
                "canary": None if blind or self.canary is None else self.canary.seen(),
            }
