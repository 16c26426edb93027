"""Every text that an operator reads, in English and Chinese: the same two files for the page and the terminal."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Mapping

PAGE = Path(__file__).parent / "page"
LANGUAGES = ("en", "zh")


def strings(language: str) -> dict[str, str]:
    """Texts by key."""
    return json.loads((PAGE / f"strings.{language}.json").read_text(encoding="utf-8"))


def answers(language: str) -> dict[str, str]:
    """What the processes say in English, with {gaps}, and the same in ``language``."""
    return json.loads((PAGE / f"answers.{language}.json").read_text(encoding="utf-8"))


def keys() -> dict[str, str]:
    """What each key does, by the name that a browser gives the key."""
    return json.loads((PAGE / "keys.json").read_text(encoding="utf-8"))


def language_of(environment: Mapping[str, str]) -> str:
    """The language that LC_ALL, LC_MESSAGES or LANG asks for."""
    wanted = next((environment[name] for name in ("LC_ALL", "LC_MESSAGES", "LANG") if environment.get(name)), "")
    return "zh" if wanted.lower().startswith("zh") else "en"


def filled(text: str, values: Mapping[str, object]) -> str:
    """``text`` with every {name} that is in ``values`` replaced."""
    return re.sub(r"\{(\w+)\}", lambda gap: str(values.get(gap[1], gap[0])), text)


def pattern(english: str) -> re.Pattern:
    """What is said with something in the {gaps} of ``english``; a gap that comes twice is the same twice."""
    parts, seen = [], set()
    for word, gap in re.findall(r"([^{]+)|\{(\w+)\}", english):
        parts.append(re.escape(word) if word else f"(?P={gap})" if gap in seen else f"(?P<{gap}>.+?)")
        seen.add(gap)
    return re.compile("".join(parts), re.DOTALL)


class Words:
    """Says things in one language."""

    def __init__(self, language: str):
        self.language, self._table = language, strings(language)
        self._answers = [(pattern(english), text) for english, text in answers(language).items()]

    def say(self, key: str, **values) -> str:
        """The text called ``key`` with {name} replaced; the key itself when there is none."""
        return filled(self._table.get(key, key), values)

    def understood(self, answer: str) -> str:
        """What a process said in English, in this language; as it is where that is not known. What fills a gap is understood, too."""
        for english, text in self._answers:
            if found := english.fullmatch(answer):
                return filled(text, {name: self.understood(value) for name, value in found.groupdict().items()})
        return answer

    def knows(self, key: str) -> bool:
        return key in self._table

    def other(self) -> "Words":
        return Words(LANGUAGES[(LANGUAGES.index(self.language) + 1) % len(LANGUAGES)])
