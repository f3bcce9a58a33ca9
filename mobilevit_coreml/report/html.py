"""Self-contained pages: tables, drawings as inline SVG, and one style for all. Nothing in them comes from elsewhere."""

import contextlib
import html
import importlib.util
import io
import re
from collections.abc import Collection, Iterator, Sequence
from typing import IO, Any

from mobilevit_coreml.errors import OutputError

# Told apart by people who see colours otherwise, too, and dark enough for text on white
BLUE, ORANGE, GREEN, GREY = "#1F5FA8", "#C2410C", "#1B7F4D", "#7A8794"


class Html(str):
    """Text that is HTML already, and is not escaped again."""


def check_drawable() -> None:
    """Raise OutputError where there is nothing to draw with."""
    if importlib.util.find_spec("matplotlib") is None:
        raise OutputError(
            "report: expected matplotlib to draw with, got none installed; pip install matplotlib, or ask for .json"
        )


def escaped(text: str) -> Html:
    """Any text as HTML, inside and outside of attributes."""
    return text if isinstance(text, Html) else Html(html.escape(text))


def table(head: Sequence[str], rows: Sequence[Sequence[str]], numbers: Collection[int] = ()) -> Html:
    """A table that scrolls where it is too wide, with a head or without; `numbers` are columns aligned to the right."""

    def row(cells: Sequence[str], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}{_class(i)}>{escaped(cell)}</{tag}>" for i, cell in enumerate(cells)) + "</tr>"

    def _class(column: int) -> str:
        return ' class="number"' if column in numbers else ""

    top = f"<thead>{row(head, 'th')}</thead>\n" if head else ""
    body = "\n".join(row(cells, "td") for cells in rows)
    return Html(f'<div class="scroll"><table>{top}<tbody>{body}</tbody></table></div>')


@contextlib.contextmanager
def drawing(width: float = 7, height: float = 4) -> Iterator[Any]:
    """A matplotlib figure of so many inches, to be drawn and saved in the block; raises OutputError without matplotlib.

    Texts that come from outside do not belong into it: their characters may be in no font.
    """
    check_drawable()
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    # the same picture each time; texts as texts, which can be read aloud and searched
    with rc_context({"svg.hashsalt": "mobilevit_coreml", "svg.fonttype": "none", "font.size": 10}):
        figure = Figure(figsize=(width, height), layout="constrained")
        FigureCanvasAgg(figure)
        yield figure


def save_png(figure: Any, file: IO[bytes]) -> None:
    """A figure as a PNG, 150 dots an inch."""
    figure.savefig(file, format="png", dpi=150)


def svg(figure: Any, description: str) -> Html:
    """A figure as SVG to be put into a page, with what it shows for those who cannot see it."""
    file = io.BytesIO()
    figure.savefig(file, format="svg", metadata={"Date": None})
    text = file.getvalue().decode()
    text = re.sub(r"\s*<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
    used = set(re.findall(r'(?:href="|url\()#([^")]+)', text))
    # matplotlib's ids are the same in each figure, and a page has several
    text = re.sub(r' id="([^"]*)"', lambda match: match[0] if match[1] in used else "", text)
    return Html(text.replace("<svg", f'<svg role="img" aria-label="{escaped(description)}"', 1))


def page(title: str, body: str, style: str = "") -> bytes:
    """A whole page, whose policy forbids it to load anything; `body` is HTML, `style` CSS beside that of all pages."""
    text = PAGE.format(title=escaped(title), style=STYLE + style, body=body)
    return text.encode(errors="replace")  # names of files may have bytes that are no text


STYLE = """\
:root { color-scheme: light; }
body { font: 16px/1.5 system-ui, sans-serif; color: #1F2933; background: #FFF; max-width: 62rem; margin: 2rem auto;
  padding: 0 1rem; }
h1 { font-size: 1.4rem; overflow-wrap: anywhere; }
h2 { font-size: 1.2rem; margin: 2.5rem 0 0.5rem; }
h3 { font-size: 1rem; margin: 1.5rem 0 0.5rem; }
.scroll { overflow-x: auto; margin: 0.5rem 0; }
table { border-collapse: collapse; font-size: 0.9rem; }
th, td { text-align: left; vertical-align: top; padding: 0.2rem 1rem 0.2rem 0; border-bottom: 1px solid #E4E7EB; }
.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
svg { max-width: 100%; height: auto; }
@media print {
  body { max-width: none; margin: 0; font-size: 11px; }
  .scroll { overflow: visible; }
  tr, svg, figure { break-inside: avoid; }
  h2, h3 { break-after: avoid; }
}
"""

PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
{style}</style>
</head>
<body>
{body}
</body>
</html>
"""
