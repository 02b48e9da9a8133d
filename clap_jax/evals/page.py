"""One HTML file with everything inside: how report and comparison look."""

import html
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any


def page(title: str, body: str, subtitle: str = "") -> str:
    """A whole page; `body` is HTML, the others are text."""
    under = f'<p class="subtitle">{html.escape(subtitle)}</p>' if subtitle else ""
    return PAGE.format(
        title=html.escape(title), subtitle=under, style=STYLE, body=body, script=SCRIPT
    )


def section(heading: str, *parts: str, level: int = 2, anchor: str = "") -> str:
    """A part of the page under a heading; empty parts are left out."""
    content = "\n".join(filter(None, parts))
    mark = f' id="{anchor}"' if anchor else ""
    return (
        f"<section{mark}>\n<h{level}>{html.escape(heading)}</h{level}>\n"
        f"{content}\n</section>"
    )


def anchor(name: str, taken: Iterable[str] = ()) -> str:
    """An id for a name, unlike those that are taken."""
    base = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") or "part"
    found, number, taken = base, 2, set(taken)
    while found in taken:
        found, number = f"{base}-{number}", number + 1
    return found


def links(names: Mapping[str, str]) -> str:
    """Where to go on the page: anchor -> text."""
    if not names:
        return ""
    items = "".join(
        f'<li><a href="#{mark}">{html.escape(text)}</a></li>'
        for mark, text in names.items()
    )
    return f'<nav aria-label="Parts of this page"><ul>{items}</ul></nav>'


def tiles(values: Iterable[tuple[str, str, str, str, str]]) -> str:
    """Large numbers that lead to a part of the page: (anchor, name, number, and two
    lines about it)."""
    items = "".join(
        f'<a class="card tile" href="#{mark}"><span>{html.escape(name)}</span>'
        f"<b>{html.escape(number)}</b><span>{html.escape(what)}</span>"
        f"<span>{html.escape(more)}</span></a>"
        for mark, name, number, what, more in values
    )
    return f'<nav class="tiles" aria-label="Headline numbers">{items}</nav>'


def facts(values: Mapping[str, Any]) -> str:
    """Names and values on one flowing line."""
    items = "".join(
        f"<div><dt>{html.escape(str(key).replace('_', ' '))}</dt>"
        f"<dd>{html.escape(fact_text(value))}</dd></div>"
        for key, value in values.items()
    )
    return f"<dl>{items}</dl>" if items else ""


def folded(summary: str, content: str) -> str:
    """Something that opens by a click, and in print."""
    return f"<details><summary>{html.escape(summary)}</summary>{content}</details>"


def fact_text(value: Any) -> str:
    """A value as people write it."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, list | tuple):
        return " · ".join(map(fact_text, value))
    if isinstance(value, Mapping):
        return " · ".join(f"{key} {fact_text(item)}" for key, item in value.items())
    return "–" if value is None else str(value)


def note(text: str, kind: str = "note") -> str:
    """A remark that must be seen; kind "warning" shouts."""
    role = ' role="alert"' if kind == "warning" else ""
    return f'<p class="{kind}"{role}>{html.escape(text)}</p>'


def figure(svg: str, caption: str = "") -> str:
    """A drawing, which says itself what it shows to screen readers."""
    under = f"<figcaption>{html.escape(caption)}</figcaption>" if caption else ""
    return f"<figure>{svg}{under}</figure>"


def write(path: Path, content: str | bytes) -> Path:
    """Writes a file whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    partial.write_bytes(
        content if isinstance(content, bytes) else content.encode("utf-8")
    )
    partial.replace(path)
    return path


LIGHT = """--ink: #1c2430; --muted: #5b6675; --line: #e3e7ed; --page: #f3f5f8;
  --panel: #ffffff; --head: #f8f9fb; --blue: #2463c9; --orange: #c9621a;
  --green: #17694f; --violet: #8250b8; --red: #b8304d; --olive: #7a6a2c;
  --tint: #e7effb; --warn: #fff3e2; --warn-line: #d98a2b;
  --shadow: 0 1px 2px rgb(20 30 50 / 5%);"""
DARK = """--ink: #e4e9f0; --muted: #98a4b5; --line: #2b3440; --page: #10151c;
  --panel: #171e27; --head: #1c2430; --blue: #6fa3f7; --orange: #f0a065;
  --green: #5cc8a2; --violet: #bd98e8; --red: #f08098; --olive: #cdbb72;
  --tint: #1d2c45; --warn: #33240f; --warn-line: #d98a2b; --shadow: none;"""

STYLE = (
    f":root {{ color-scheme: light dark; {LIGHT} }}\n"
    f"@media screen and (prefers-color-scheme: dark) {{ :root {{ {DARK} }} }}\n"
    """
:root { --font: system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", sans-serif; }
* { box-sizing: border-box; }
html { scroll-behavior: smooth; -webkit-text-size-adjust: 100%; }
body { margin: 0; background: var(--page); color: var(--ink);
  font: 15px/1.55 var(--font); overflow-wrap: anywhere; }
main { max-width: 1180px; margin: 0 auto; padding: 2.6rem 1.6rem 5rem; }
header { margin-bottom: 1.6rem; }
h1 { font-size: 1.9rem; line-height: 1.2; margin: 0; letter-spacing: -0.02em; }
.subtitle { margin: 0.3rem 0 0; color: var(--muted); }
h2 { font-size: 1.3rem; margin: 0 0 0.9rem; letter-spacing: -0.01em; }
h3 { font-size: 1rem; margin: 1.9rem 0 0.7rem; }
section { margin-top: 2.8rem; scroll-margin-top: 1rem; }
section section { margin-top: 0; }
a { color: var(--blue); }
nav a.tile { border-radius: 12px; padding: 0.8rem 1.1rem 0.9rem; }
nav ul { display: flex; flex-wrap: wrap; gap: 0.45rem; list-style: none;
  margin: 1.4rem 0 0; padding: 0; }
nav a { display: block; padding: 0.18rem 0.75rem; border: 1px solid var(--line);
  border-radius: 99px; background: var(--panel); text-decoration: none;
  font-size: 0.87rem; }
nav a:hover, a.tile:hover { border-color: var(--blue); }
.tiles { display: grid; gap: 0.9rem; margin-top: 1.4rem;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, 190px), 1fr)); }
.tile { padding: 0.8rem 1.1rem 0.9rem; color: inherit; text-decoration: none; }
.tile b { display: block; font-size: 1.75rem; line-height: 1.25;
  letter-spacing: -0.02em; }
.tile span { display: block; font-size: 0.82rem; color: var(--muted); }
dl { display: flex; flex-wrap: wrap; gap: 0.55rem 2rem; margin: 0 0 1.2rem; }
dt { font-size: 0.78rem; color: var(--muted); }
dd { margin: 0; }
.card, figure { background: var(--panel); border: 1px solid var(--line);
  border-radius: 12px; box-shadow: var(--shadow); }
.card { overflow: auto; }
.card:has(> table) { width: fit-content; min-width: min(100%, 36rem); max-width: 100%; }
.tall { max-height: 34rem; }
table { border-spacing: 0; width: 100%; }
caption { text-align: left; padding: 0.7rem 1rem 0.5rem; color: var(--muted);
  font-size: 0.87rem; }
th, td { padding: 0.5rem 1rem; text-align: right; white-space: nowrap;
  font-variant-numeric: tabular-nums; }
thead th { font-weight: 600; font-size: 0.82rem; color: var(--muted);
  background: var(--head); position: sticky; top: 0; z-index: 1;
  border-bottom: 1px solid var(--line); }
tbody tr + tr:not(.more) > * { border-top: 1px solid var(--line); }
th.text, td.text, tbody th { text-align: left; }
tbody th { font-weight: 600; }
td.wide, th.wide { white-space: normal; min-width: 14rem; }
tbody tr:hover > * { background: color-mix(in srgb, var(--tint) 45%, transparent); }
.interval { display: block; font-size: 0.78rem; color: var(--muted); }
.difference { display: block; font-size: 0.78rem; color: var(--muted); }
.difference.better { color: var(--green); font-weight: 600; }
.difference.worse { color: var(--red); font-weight: 600; }
details { margin-top: 1rem; }
summary { cursor: pointer; color: var(--blue); margin-bottom: 0.6rem;
  width: fit-content; }
details dl { display: grid; grid-template-columns: max-content 1fr; gap: 0.25rem 1.4rem;
  font-size: 0.87rem; }
details dl div { display: contents; }
details dt { font-size: inherit; }
.best { font-weight: 700; color: var(--blue); }
.best span { font-weight: 400; }
.bar { display: inline-block; width: 5.5rem; height: 0.55rem; margin-right: 0.7rem;
  border-radius: 99px; background: var(--line); overflow: hidden;
  vertical-align: middle; }
.bar + span { display: inline-block; min-width: 4.2em; }
.bar i { display: block; height: 100%; border-radius: 99px; background: var(--blue); }
th button { all: unset; cursor: pointer; }
th button:focus-visible { outline: 2px solid var(--blue); outline-offset: 3px; }
th button::after { content: "\\2195"; margin-left: 0.35rem; opacity: 0.45; }
th[aria-sort=ascending] button::after { content: "\\2191"; opacity: 1; }
th[aria-sort=descending] button::after { content: "\\2193"; opacity: 1; }
.confusion { width: auto; margin: 0 1.2rem 1.2rem 0; font-size: 0.8rem; }
.confusion th, .confusion td { padding: 0; border: 0 !important; background: none; }
.confusion thead th { position: static; vertical-align: bottom; text-align: left; }
.confusion thead span { display: inline-block; writing-mode: vertical-rl;
  transform: rotate(180deg); padding: 0.5rem 0.15rem 0.3rem;
  font-weight: 500; color: var(--ink); }
.confusion thead th:first-child { padding: 0 0.7rem 0.4rem 1rem; text-align: right; }
.confusion tbody th { padding: 0 0.7rem 0 1rem; text-align: right; font-weight: 500; }
.confusion tbody tr:hover > * { background: none; }
.confusion td { text-align: center; min-width: var(--cell); height: var(--cell);
  background: color-mix(in srgb, var(--blue) calc(var(--s, 0) * 100%), var(--head))
  !important; border: 1px solid var(--panel) !important; border-radius: 5px; }
.confusion td.high { color: var(--panel); font-weight: 600; }
.confusion td.right { box-shadow: inset 0 0 0 1.5px var(--muted); }
.figures { display: grid; gap: 1.1rem; align-items: start; margin-top: 1.1rem;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 470px), 1fr)); }
figure { margin: 0; padding: 1rem; text-align: center; overflow-x: auto; }
figcaption { color: var(--muted); font-size: 0.85rem; margin-top: 0.4rem; }
svg { max-width: 100%; height: auto; vertical-align: top; }
svg * { stroke-linejoin: round; stroke-linecap: butt; }
.misses { display: grid; gap: 1.1rem; padding: 0; margin: 0; list-style: none;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, 340px), 1fr)); }
.miss { padding: 1rem 1.1rem; display: flex; flex-direction: column; gap: 0.7rem; }
.miss .rank { font-size: 0.8rem; color: var(--muted); margin: 0; }
.miss .rank b { color: var(--red); font-weight: 700; }
.side { border-left: 3px solid var(--green); padding-left: 0.75rem; }
.side.found { border-color: var(--red); }
.side p { margin: 0; }
.side .what { font-size: 0.78rem; color: var(--muted); }
.side .where { font-size: 0.78rem; color: var(--muted); }
audio { display: block; width: 100%; height: 2.3rem; margin: 0.4rem 0 0.15rem; }
.note, .warning { background: var(--tint); border-left: 4px solid var(--blue);
  border-radius: 6px; padding: 0.6rem 1rem; margin: 1rem 0; }
.warning { background: var(--warn); border-color: var(--warn-line); font-weight: 600; }
.small { color: var(--muted); font-size: 0.85rem; margin: 0.6rem 0 0; }
@media (max-width: 640px) {
  main { padding: 1.5rem 0.9rem 3rem; }
  h1 { font-size: 1.5rem; }
  th, td { padding: 0.45rem 0.65rem; }
  .bar { display: none; }
  figure svg { max-width: none; min-width: 100%; max-height: 24rem;
    width: auto !important; }
}
@media print {
  body { background: none; font-size: 10.5pt; }
  main { max-width: none; padding: 0; }
  nav, audio, th button::after { display: none !important; }
  .card { overflow: visible; max-height: none; box-shadow: none; }
  thead th { position: static; }
  th, td { padding: 0.35rem 0.6rem; white-space: normal; }
  .bar { width: 3rem; }
  figure, .miss, tr { break-inside: avoid; }
  h2, h3 { break-after: avoid; }
  .confusion td, .bar, .bar i, .warning, .note { print-color-adjust: exact;
    -webkit-print-color-adjust: exact; }
}
@media (prefers-reduced-motion: reduce) { html { scroll-behavior: auto; } }
""".strip()
)

# Tables sort by a click on a heading; print shows what is folded; of several sounds
# only the last one started plays.
SCRIPT = """
for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[0].cells], body = table.tBodies[0];
  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const down = head.getAttribute("aria-sort") !== "descending";
      heads.forEach(other => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      const value = row =>
        row.cells[column].dataset.value ?? row.cells[column].innerText;
      const order = (a, b) => value(a).localeCompare(value(b), "en", { numeric: true });
      const number = row => parseFloat(value(row).replaceAll(",", ""));
      const numbers = [...body.rows].every(row => !isNaN(number(row)));
      const compare = numbers ? (a, b) => number(a) - number(b) : order;
      const sorted = [...body.rows].sort(compare);
      body.append(...(down ? sorted.reverse() : sorted));
    });
  });
}
addEventListener("beforeprint", () => {
  for (const folded of document.querySelectorAll("details")) folded.open = true;
});
document.addEventListener("play", event => {
  for (const other of document.querySelectorAll("audio"))
    if (other !== event.target) other.pause();
}, true);
""".strip()

PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<link rel="icon" href="data:,">
<title>{title}</title>
<style>
{style}
</style>
</head>
<body>
<main>
<header>
<h1>{title}</h1>
{subtitle}
</header>
{body}
</main>
<script>
{script}
</script>
</body>
</html>
"""
