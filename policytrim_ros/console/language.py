"""Every text that an operator reads, in English and Chinese: the same two files for the page and the terminal."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Mapping

PAGE = Path(__file__).parent / "page"
LANGUAGES = ("en", "zh")


def strings(language: str) -> dict[str, str]:
    """Texts by key."""
    return json.loads((PAGE / f"strings.{language}.json").read_text(encoding="utf-8"))


def keys() -> dict[str, str]:
    """What each key does, by the name that a browser gives the key."""
    return json.loads((PAGE / "keys.json").read_text(encoding="utf-8"))


def language_of(environment: Mapping[str, str]) -> str:
    """The language that LC_ALL, LC_MESSAGES or LANG asks for."""
    wanted = next((environment[name] for name in ("LC_ALL", "LC_MESSAGES", "LANG") if environment.get(name)), "")
    return "zh" if wanted.lower().startswith("zh") else "en"


class Words:
    """Says things in one language."""

    def __init__(self, language: str):
        self.language, self._table = language, strings(language)

    def say(self, key: str, **values) -> str:
        """The text called ``key`` with {name} replaced; the key itself when there is none."""
        text = self._table.get(key, key)
        for name, value in values.items():
            text = text.replace("{" + name + "}", str(value))
        return text

    def knows(self, key: str) -> bool:
        return key in self._table

    def other(self) -> "Words":
        return Words(LANGUAGES[(LANGUAGES.index(self.language) + 1) % len(LANGUAGES)])
