"""A page of text, tables, figures and clips, written once and printed twice: as one self-contained HTML file and as Markdown.

Whatever comes in as text is foreign: it is escaped here and nowhere else. The HTML file refers to nothing outside itself, runs no
script and says so to the browser (Content-Security-Policy); its Markdown twin refers to the files that `Page.files` returns.
"""

from __future__ import annotations

import base64
import re
from dataclasses import dataclass, field
from html import escape
from typing import Sequence, Union

LONGEST = 400
"""Letters of one piece of foreign text; what is longer is cut, and the cut is marked."""

SYMBOLS = {"success": "✓", "failure": "✗", "aborted": "!", "invalid": "?", "unlabelled": "·"}
"""How an outcome looks without colour."""

VERDICTS = {"supported": "✓", "not supported": "?", "contradicted": "✗"}


@dataclass(frozen=True)
class Text:
    """A paragraph; ``strong``: what stands in front of it, in bold."""

    text: str
    strong: str = ""


@dataclass(frozen=True)
class Claimed:
    """A claim with its verdict, which is a symbol, a word and a colour."""

    verdict: str
    subject: str
    text: str


@dataclass(frozen=True)
class Listing:
    items: Sequence[str]


@dataclass(frozen=True)
class Grid:
    """A table; ``folded``: closed until somebody opens it (open in print), under this title."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    folded: str = ""


@dataclass(frozen=True)
class Code:
    text: str


@dataclass(frozen=True)
class Figure:
    """A drawing in SVG without ids, links or declarations that could clash; ``alt`` says the same in words."""

    name: str
    svg: str
    alt: str
    caption: str


@dataclass(frozen=True)
class Clip:
    """A moving picture (WebP)."""

    name: str
    webp: bytes
    caption: str


@dataclass(frozen=True)
class Strip:
    """Trials in their order: (outcome, what it says when it is pointed at), under a title."""

    title: str
    marks: Sequence[tuple[str, str]]


Block = Union[Text, Claimed, Listing, Grid, Code, Figure, Clip, Strip]


@dataclass
class Page:
    """Sections of blocks, in their order."""

    title: str
    sections: list[tuple[str, list[Block]]] = field(default_factory=list)

    def add(self, heading: str, *blocks: Block) -> None:
        """Adds a section unless it is empty."""
        if blocks:
            self.sections.append((heading, list(blocks)))

    @property
    def html(self) -> str:
        body = "\n".join(
            f"<section>\n<h2>{_html(heading)}</h2>\n{_joined(blocks, _HTML)}\n</section>" for heading, blocks in self.sections
        )
        return (
            '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
            "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; img-src data:; style-src 'unsafe-inline'\">\n"
            '<meta name="viewport" content="width=device-width, initial-scale=1">\n<meta name="color-scheme" content="light dark">\n'
            f"<title>{_html(self.title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n"
            f"<h1>{_html(self.title)}</h1>\n{body}\n</body>\n</html>\n"
        )

    @property
    def markdown(self) -> str:
        parts = [f"# {_md(self.title)}"]
        parts += [f"## {_md(heading)}\n\n{_joined(blocks, _MARKDOWN)}" for heading, blocks in self.sections]
        return "\n\n".join(parts) + "\n"

    @property
    def files(self) -> dict[str, bytes]:
        """What the Markdown refers to: bytes by path, relative to it."""
        found: dict[str, bytes] = {}
        for _, blocks in self.sections:
            for block in blocks:
                if isinstance(block, Figure):
                    found[_path(block)] = standalone(block.svg).encode()
                elif isinstance(block, Clip):
                    found[_path(block)] = block.webp
        return found


def clean(text, longest: int = LONGEST) -> str:
    """Foreign text without characters that control a terminal, a parser or the direction of reading; cut where it is too long."""
    text = re.sub(
        r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff\ufeff\ufffe\uffff]",
        "\ufffd",
        str(text),
    )
    return text if len(text) <= longest else text[: longest - 1] + "…"


def standalone(svg: str) -> str:
    """The drawing as a file of its own: dark on white."""
    svg = svg.replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1).replace("currentColor", "#222222")
    return re.sub(r"(<svg [^>]*>)", r'\1<rect width="100%" height="100%" fill="#ffffff"/>', svg, count=1)


def _joined(blocks, printers) -> str:
    return (
        "\n".join(printers[type(block)](block) for block in blocks)
        if printers is _HTML
        else "\n\n".join(printers[type(block)](block) for block in blocks)
    )


def _path(block) -> str:
    return f"figures/{block.name}.{'svg' if isinstance(block, Figure) else 'webp'}"


# ---- HTML ----------------------------------------------------------------------------------------------------------------


def _html(text) -> str:
    return escape(clean(text, 20 * LONGEST))


def _html_text(block: Text) -> str:
    strong = f"<strong>{_html(block.strong)}</strong> " if block.strong else ""
    return f"<p>{strong}{_html(block.text)}</p>"


def _html_claim(block: Claimed) -> str:
    kind = block.verdict.replace(" ", "-")
    mark = f'<span class="verdict {_html(kind)}">{VERDICTS[block.verdict]} {_html(block.verdict)}</span>'
    return f'<p class="claim">{mark} <strong>{_html(block.subject)}</strong> {_html(block.text)}</p>'


def _html_listing(block: Listing) -> str:
    return "<ul>\n" + "\n".join(f"<li>{_html(item)}</li>" for item in block.items) + "\n</ul>"


def _html_grid(block: Grid) -> str:
    head = "".join(f'<th scope="col">{_html(cell)}</th>' for cell in block.header)
    body = "\n".join("<tr>" + "".join(f"<td>{_html(cell)}</td>" for cell in row) + "</tr>" for row in block.rows)
    table = f'<div class="wide"><table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody>\n</table></div>'
    return f"<details><summary>{_html(block.folded)}</summary>\n{table}\n</details>" if block.folded else table


def _html_code(block: Code) -> str:
    return f"<pre>{_html(block.text)}</pre>"


def _html_figure(block: Figure) -> str:
    svg = block.svg.replace("<svg ", f'<svg role="img" aria-label="{_html(block.alt)}" ', 1)
    return f"<figure>\n{svg}\n<figcaption>{_html(block.caption)}</figcaption>\n</figure>"


def _html_clip(block: Clip) -> str:
    data = base64.b64encode(block.webp).decode()
    return (
        f'<figure class="clip"><img alt="{_html(block.caption)}" src="data:image/webp;base64,{data}">'
        f"<figcaption>{_html(block.caption)}</figcaption></figure>"
    )


def _html_strip(block: Strip) -> str:
    marks = "".join(
        f'<span class="mark {outcome}" title="{_html(words)}" role="img" aria-label="{_html(words)}">{SYMBOLS[outcome]}</span>'
        for outcome, words in block.marks
    )
    return f'<div class="strip"><span class="who">{_html(block.title)}</span><span class="marks">{marks}</span></div>'


# ---- Markdown ------------------------------------------------------------------------------------------------------------


def _md(text) -> str:
    """Foreign text on one line, with everything escaped that Markdown or HTML inside it would read."""
    text = re.sub(r"\s+", " ", clean(text, 20 * LONGEST)).strip()
    text = text.replace("&", "&amp;").replace("<", "&lt;")  # `>` opens nothing without `<`
    return re.sub(r"([\\`*\[\]|])|(?<!\w)(_)|(_)(?!\w)|^([#>+-])(?=\s)|^(\d+)\.(?=\s)", _escaped, text)


def _escaped(found: re.Match) -> str:
    return f"{found[5]}\\." if found[5] else f"\\{found[0]}"


def _md_text(block: Text) -> str:
    return f"**{_md(block.strong)}** {_md(block.text)}" if block.strong else _md(block.text)


def _md_claim(block: Claimed) -> str:
    return f"- {VERDICTS[block.verdict]} **{block.verdict}**: **{_md(block.subject)}** {_md(block.text)}"


def _md_listing(block: Listing) -> str:
    return "\n".join(f"- {_md(item)}" for item in block.items)


def _md_grid(block: Grid) -> str:
    lines = [[_md(cell) for cell in row] for row in (block.header, *block.rows)]
    lines.insert(1, ["---"] * len(block.header))
    table = "\n".join("| " + " | ".join(row) + " |" for row in lines)
    return f"{_md(block.folded)}:\n\n{table}" if block.folded else table


def _md_code(block: Code) -> str:
    return "\n".join("    " + clean(line, 20 * LONGEST) for line in block.text.splitlines())


def _md_figure(block: Figure) -> str:
    return f"![{_md(block.alt)}]({_path(block)})\n\n{_md(block.caption)}"


def _md_clip(block: Clip) -> str:
    return f"![{_md(block.caption)}]({_path(block)})\n\n{_md(block.caption)}"


def _md_strip(block: Strip) -> str:
    return f"- {_md(block.title)}: {' '.join(SYMBOLS[outcome] for outcome, _ in block.marks)}"


_HTML = {
    Text: _html_text,
    Claimed: _html_claim,
    Listing: _html_listing,
    Grid: _html_grid,
    Code: _html_code,
    Figure: _html_figure,
    Clip: _html_clip,
    Strip: _html_strip,
}
_MARKDOWN = {
    Text: _md_text,
    Claimed: _md_claim,
    Listing: _md_listing,
    Grid: _md_grid,
    Code: _md_code,
    Figure: _md_figure,
    Clip: _md_clip,
    Strip: _md_strip,
}

STYLE = """
:root { color-scheme: light dark; --paper: #ffffff; --ink: #1b1d21; --soft: #5c6370; --line: #c9ced6; --panel: #f3f5f8;
  --good: #14713d; --bad: #b3261e; --open: #8a5a00; }
@media (prefers-color-scheme: dark) { :root { --paper: #14161a; --ink: #e8eaee; --soft: #a3abb8; --line: #3b414b; --panel: #1e2127;
  --good: #6fd39a; --bad: #ff9a91; --open: #f0c060; } }
@media print { :root { --paper: #ffffff; --ink: #000000; --soft: #333333; --line: #999999; --panel: #ffffff; --good: #0b5a2e;
  --bad: #8c1d18; --open: #6b4600; color-scheme: light; }
  td { overflow-wrap: anywhere; } figure, tr, .claim, .strip { break-inside: avoid; } h2 { break-after: avoid; }
  details::details-content { content-visibility: visible; block-size: auto; } }
body { background: var(--paper); color: var(--ink); font: 16px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 0 auto;
  padding: 1rem 1.25rem 4rem; }
h1 { line-height: 1.2; } h2 { margin-top: 2.5rem; border-bottom: 1px solid var(--line); }
p, li, figcaption, h1 { overflow-wrap: anywhere; }
.wide { overflow-x: auto; } table { border-collapse: collapse; font-size: 0.85rem; font-variant-numeric: tabular-nums; }
th, td { text-align: left; vertical-align: top; padding: 0.3rem 0.6rem; border-bottom: 1px solid var(--line); }
pre { background: var(--panel); border: 1px solid var(--line); padding: 0.75rem; overflow-x: auto; white-space: pre-wrap;
  overflow-wrap: anywhere; }
figure { margin: 1rem 0; } figure svg { max-width: 100%; height: auto; } figcaption, summary { color: var(--soft); font-size: 0.9rem; }
.clip { display: inline-block; width: 20rem; max-width: 100%; margin: 0.5rem 1rem 0.5rem 0; vertical-align: top; }
.clip img { width: 100%; }
.claim { border-left: 4px solid var(--line); padding-left: 0.75rem; }
.verdict { font-weight: 700; border: 1px solid; border-radius: 3px; padding: 0 0.4rem; white-space: nowrap; }
.supported, .success { color: var(--good); } .contradicted, .failure { color: var(--bad); }
.not-supported, .aborted, .invalid, .unlabelled { color: var(--open); }
.strip { display: flex; gap: 0.75rem; margin: 0.35rem 0; } .who { flex: 0 0 14rem; overflow-wrap: anywhere; font-size: 0.9rem; }
.marks { line-height: 1.5; }
.mark { display: inline-block; width: 1.35rem; margin: 1px; text-align: center; border: 1px solid; border-radius: 3px; cursor: help; }
.mark.failure { border-style: double; border-width: 3px; margin: -1px; } .mark.aborted, .mark.invalid { border-style: dashed; }
"""
