"""Pieces of report.html: escaped text, tables, bars, pictures and the style. Pure."""

import base64
import io
from collections.abc import Iterable, Sequence
from html import escape

import matplotlib
from matplotlib.figure import Figure

__all__ = ["Html", "bar", "code", "document", "picture", "prose", "section", "table"]


class Html(str):
    """Text that is HTML already; any other text is escaped."""

    __slots__ = ()


STYLE = """
:root { color-scheme: light dark; --ink: #1c1f23; --soft: #5b636d; --line: #d9dde2;
  --paper: #fdfdfc; --shade: #f2f4f6; --mark: #0072b2; }
@media (prefers-color-scheme: dark) { :root { --ink: #e4e6e9; --soft: #9aa3ad; --line: #363c44;
  --paper: #16181b; --shade: #202429; --mark: #56b4e9; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink);
  font: 16px/1.55 system-ui, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
main { max-width: 72rem; margin: 0 auto; padding: 2.5rem 1.5rem 5rem; }
h1 { font-size: 1.9rem; line-height: 1.2; margin: 0 0 .4rem; letter-spacing: -.01em; }
h2 { font-size: 1.25rem; margin: 3rem 0 .6rem; padding-top: 1rem;
  border-top: 1px solid var(--line); }
p { max-width: 46rem; margin: .5rem 0; }
.soft { color: var(--soft); }
nav { margin: 1.2rem 0 0; display: flex; flex-wrap: wrap; gap: .25rem 1.1rem; font-size: .92rem; }
a { color: var(--mark); text-decoration: none; } a:hover { text-decoration: underline; }
.scroll { overflow-x: auto; margin: 1rem 0; border: 1px solid var(--line); border-radius: 6px; }
table { border-collapse: collapse; width: 100%; font-size: .9rem;
  font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: .42rem .8rem; white-space: nowrap; vertical-align: top; }
th { font-weight: 600; background: var(--shade); border-bottom: 1px solid var(--line); }
tr + tr td { border-top: 1px solid var(--line); }
td.wide { white-space: normal; min-width: 18rem; }
code { font: .84em/1.5 ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; }
.bar { display: inline-block; width: 9rem; height: .65rem; border-radius: 3px; margin-right: .6rem;
  background: var(--shade); vertical-align: middle; overflow: hidden; }
.bar i { display: block; height: 100%; background: var(--mark); }
.grid { display: grid; grid-template-columns: repeat(auto-fill, minmax(21rem, 1fr)); gap: 1rem;
  margin: 1rem 0; }
figure { margin: 1rem 0; } .grid figure { margin: 0; }
figure img { display: block; width: 100%; height: auto; background: #fff; padding: .6rem;
  border: 1px solid var(--line); border-radius: 6px; }
figure img { max-width: 42rem; }
.grid img { height: 13rem; object-fit: contain; }
figcaption { color: var(--soft); font-size: .86rem; margin-top: .35rem; }
"""


def prose(text: str, *, soft: bool = False) -> Html:
    """A paragraph."""
    return Html(f'<p class="soft">{_text(text)}</p>' if soft else f"<p>{_text(text)}</p>")


def code(text: str) -> Html:
    return Html(f"<code>{escape(text)}</code>")


def bar(share: float, label: str) -> Html:
    """A bar of 0 to 1 with its label beside it."""
    width = 100 * min(1.0, max(0.0, share))
    return Html(f'<span class="bar"><i style="width:{width:.1f}%"></i></span>{_text(label)}')


def table(rows: Sequence[Sequence[str]], *, wide: Iterable[int] = ()) -> Html:
    """A table with its heading first, which scrolls sideways where it is too wide.

    Args:
        wide: columns whose text may break.
    """
    broken = set(wide)

    def line(row: Sequence[str]) -> str:
        cells = (
            f'<td class="wide">{_text(cell)}</td>' if i in broken else f"<td>{_text(cell)}</td>"
            for i, cell in enumerate(row)
        )
        return f"<tr>{''.join(cells)}</tr>"

    head = "".join(f"<th>{_text(cell)}</th>" for cell in rows[0])
    body = "\n".join(line(row) for row in rows[1:])
    return Html(
        f'<div class="scroll" tabindex="0"><table><thead><tr>{head}</tr></thead>\n'
        f"<tbody>{body}</tbody></table></div>"
    )


def picture(figure: Figure, description: str, caption: Html | str = "") -> Html:
    """A figure as SVG inside the page; equal figures give equal text."""
    out = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": "dasvit"}):
        figure.savefig(out, format="svg", metadata={"Date": None})
    data = base64.b64encode(out.getvalue().encode()).decode()
    below = f"<figcaption>{_text(caption)}</figcaption>" if caption else ""
    source = f"data:image/svg+xml;base64,{data}"
    return Html(f'<figure><img alt="{escape(description)}" src="{source}">{below}</figure>')


def section(anchor: str, title: str, *parts: Html) -> Html:
    body = "\n".join(parts)
    return Html(f'<section id="{escape(anchor)}"><h2>{escape(title)}</h2>\n{body}\n</section>')


def document(title: str, parts: Sequence[Html]) -> str:
    """The whole page. Its policy lets a browser load nothing but what it holds."""
    body = "\n".join(parts)
    policy = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<title>{escape(title)}</title>\n<link rel="icon" href="data:,">\n'
        f"<style>{STYLE}</style>\n</head>\n<body><main>\n{body}\n</main></body>\n</html>\n"
    )


def _text(value: str) -> str:
    return value if isinstance(value, Html) else escape(value)
