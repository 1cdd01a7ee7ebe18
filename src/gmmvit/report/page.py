"""The frame of the page: style sheet, document, tables and figures. Text arguments are escaped here, except those
named `..._html`."""

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from html import escape, unescape
from typing import Any

# Nothing may be fetched, whatever the name of a class or file contains.
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"

_STYLE = """
:root{color-scheme:light dark;--page:#fbfaf8;--card:#fff;--text:#22262b;--soft:#5d666f;--rule:#dedbd5;--shade:#f1efeb;
--link:#1b5e9b;--ok:#1d6b4f;--s0:#1f6fb0;--s1:#c8601a;--s2:#1b8a68;--s3:#a8468c;--s4:#8a6d00;--s5:#4b4f58;--heat:31,111,176;--miss:200,96,26}
@media(prefers-color-scheme:dark){:root{--page:#15181b;--card:#1d2125;--text:#e6e5e2;--soft:#a2a9b0;--rule:#363c42;
--shade:#262b30;--link:#7fb8e6;--ok:#7fcfae;--s0:#66aee6;--s1:#ee9a54;--s2:#4cc39a;--s3:#dd8cc4;--s4:#d3b64a;--s5:#b9bec5;
--heat:88,160,220;--miss:238,154,84}}
*{box-sizing:border-box}
html{-webkit-text-size-adjust:100%}
body{margin:0;background:var(--page);color:var(--text);font:16px/1.5 system-ui,-apple-system,"Segoe UI",sans-serif}
main{max-width:1120px;margin:0 auto;padding:28px 20px 60px}
h1{font-size:1.75rem;line-height:1.2;margin:0 0 .3rem;overflow-wrap:anywhere}
h2{font-size:1.25rem;margin:2.6rem 0 .6rem;padding-top:1rem;border-top:1px solid var(--rule)}
h3{font-size:1rem;margin:1.4rem 0 .5rem}
p{margin:.4rem 0;max-width:75ch;overflow-wrap:anywhere}
a{color:var(--link)}
.note,figcaption small,.sub{color:var(--soft)}
.warn{border-left:4px solid var(--s1);background:var(--shade);padding:.6rem .9rem;border-radius:0 6px 6px 0}
nav{display:flex;flex-wrap:wrap;gap:.2rem 1.1rem;margin:.9rem 0 1.3rem;font-size:.92rem}
code,pre{font-family:ui-monospace,SFMono-Regular,Menlo,Consolas,monospace;font-size:.88rem}
pre{background:var(--shade);padding:.7rem .9rem;border-radius:6px;overflow-x:auto;margin:.4rem 0}
.facts{display:grid;grid-template-columns:repeat(4,minmax(0,1fr));gap:10px;margin:1rem 0;
padding:0;list-style:none}
.facts li{background:var(--card);border:1px solid var(--rule);border-radius:8px;padding:.6rem .8rem;min-width:0}
.facts span{display:block;color:var(--soft);font-size:.82rem}
.facts b{display:block;font-size:1.3rem;font-weight:600;line-height:1.35;overflow-wrap:anywhere;
font-variant-numeric:tabular-nums}
.pair{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,400px),1fr));gap:18px}
figure{margin:0;min-width:0}
.chart{background:var(--card);border:1px solid var(--rule);border-radius:8px;padding:12px 12px 6px}
.chart figcaption{font-weight:600}
.chart svg{display:block;width:100%;height:auto}
.chart text{fill:var(--soft);font-size:12px;font-variant-numeric:tabular-nums}
.legend{display:flex;flex-wrap:wrap;gap:.1rem 1rem;list-style:none;margin:.1rem 0 .3rem;padding:0;font-size:.85rem}
.legend li{min-width:0;overflow-wrap:anywhere}
.legend svg{display:inline-block;width:22px;height:8px;margin-right:.4rem;vertical-align:middle}
.grid{stroke:var(--rule);stroke-width:1}.axis,.tick{stroke:var(--soft);stroke-width:1}
.line{fill:none;stroke:currentColor;stroke-width:2;stroke-linejoin:round}.dashed.line{stroke-dasharray:5 3}
.band{fill:currentColor;opacity:.15}
.point{fill:currentColor;stroke:transparent;stroke-width:9;pointer-events:all}.faint{fill:transparent}
.point:hover{fill:currentColor;stroke:currentColor;stroke-width:4}
.s0{color:var(--s0)}.s1{color:var(--s1)}.s2{color:var(--s2)}.s3{color:var(--s3)}.s4{color:var(--s4)}.s5{color:var(--s5)}
.scroll{overflow-x:auto;max-width:100%;border:1px solid var(--rule);border-radius:8px;background:var(--card)}
.narrow{max-width:560px}
.box{container-type:inline-size}
.hint{display:none;margin:0 0 .2rem;max-width:none;text-align:right;font-size:.8rem;color:var(--link)}
table{border-collapse:collapse;font-size:.88rem;font-variant-numeric:tabular-nums}
.scroll>table{min-width:100%}
.scroll th:first-child{position:sticky;left:0;background:var(--card)}
th,td{padding:.34rem .55rem;text-align:right;white-space:nowrap;border-bottom:1px solid var(--rule)}
tr:last-child>*{border-bottom:0}
th{font-weight:600;color:var(--soft)}
.l,tbody th{text-align:left}
tbody th{color:var(--text);font-weight:500}
td.best{color:var(--ok);font-weight:700}
.matrix th,.matrix td{padding:.28rem .35rem;text-align:center;min-width:2.3rem}
.matrix thead th{vertical-align:bottom}
.matrix .up{writing-mode:vertical-rl;transform:rotate(180deg);margin:0 auto}
.matrix tbody th{text-align:left}
.name{width:10rem;white-space:normal;overflow-wrap:anywhere}
ol.names{columns:14rem auto;font-size:.88rem;overflow-wrap:anywhere}
.matrix td.hit{outline:1px solid var(--soft);outline-offset:-1px}
.bar{display:block;height:.7rem;border-radius:2px;background:var(--s0);min-width:1px}
td.track{width:45%;min-width:70px}
.cards{display:grid;gap:14px 12px;grid-template-columns:repeat(auto-fill,minmax(132px,1fr))}
.cards figcaption{font-size:.82rem;line-height:1.35;overflow-wrap:anywhere}
.cards figcaption small{display:block}
.pic{display:block;width:100%;aspect-ratio:1;object-fit:contain;image-rendering:pixelated;background:var(--shade);
border-radius:4px}
.smooth{image-rendering:auto}
.duo{display:grid;grid-template-columns:1fr 1fr;gap:4px}
.dot{position:relative;display:block}
.dot::before{content:"";position:absolute;inset:0;pointer-events:none;
background:radial-gradient(circle at center,#111c 0 2px,#fffc 2.5px 3px,transparent 3.5px)}
.heads{display:grid;gap:10px 8px;grid-template-columns:repeat(auto-fill,minmax(74px,1fr))}
.heads.few{grid-template-columns:repeat(auto-fill,minmax(min(45%,150px),1fr));max-width:760px}
.heads.two{column-gap:18px;grid-template-columns:repeat(auto-fill,minmax(152px,1fr))}
.heads.few.two{grid-template-columns:repeat(auto-fill,minmax(min(46%,240px),1fr));max-width:none}
.heads figcaption{font-size:.76rem;line-height:1.3;color:var(--soft);font-variant-numeric:tabular-nums}
.maps{display:grid;gap:8px;margin:0 0 1.1rem;max-width:760px}
.maps figcaption{font-size:.78rem;color:var(--soft);overflow-wrap:anywhere}
.whole{max-width:420px}
.scale{display:flex;align-items:center;gap:.6rem;margin:.7rem 0;font-size:.85rem;max-width:420px;
font-variant-numeric:tabular-nums}
.scale i{flex:1;height:14px;border-radius:3px;border:1px solid var(--rule)}
details{margin:.5rem 0 1rem}summary{cursor:pointer;color:var(--link);font-size:.9rem;margin-bottom:.4rem}
@media(max-width:520px){main{padding:18px 14px 40px}h1{font-size:1.4rem}
.facts{grid-template-columns:repeat(2,minmax(0,1fr))}
.chart text{font-size:14.5px}
.cards{grid-template-columns:repeat(auto-fill,minmax(100px,1fr))}th,td{padding:.3rem .5rem}
}
@media print{.scroll{overflow:visible}.box .hint{display:none}details{display:block}}
"""


_CELL, _TAG = re.compile(r"<t[hd].*?</t[hd]>", re.DOTALL), re.compile("<[^>]*>")
_LETTER, _PADDING, _LEAST = 8, 18, 37  # pixels, of the style sheet's tables
_FIXED = {'class="name"': 160, 'class="up"': 20, 'class="track"': 90}
_STEP, _STEPS = 20, range(14, 57)  # container queries compare box and table widths in steps of 20 pixels
_HINTS = "".join(f"@container (max-width:{n * _STEP}px){{.w{n} .hint{{display:block}}}}\n" for n in _STEPS)


def document(title: str, sections: Iterable[tuple[str, str, str]], head_html: str) -> str:
    """The whole page. A section is (identifier, heading, HTML); empty ones are left out."""
    kept = [section for section in sections if section[2]]
    links = "".join(f'<a href="#{name}">{escape(heading)}</a>' for name, heading, _ in kept)
    body = "".join(
        f'<section id="{name}"><h2>{escape(heading)}</h2>{content}</section>' for name, heading, content in kept
    )
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        f"<title>{escape(title)}</title><style>{_STYLE}{_HINTS}</style></head>"
        f"<body><main><header>{head_html}</header><nav>{links}</nav>{body}</main></body></html>\n"
    )


def paragraph(text: str, kind: str = "") -> str:
    """A paragraph of plain text; `kind` is "note" or "warn"."""
    return f'<p class="{kind}">{escape(text)}</p>' if kind else f"<p>{escape(text)}</p>"


def table(head: Sequence[str], rows_html: Iterable[str], *, left: int = 1, kind: str = "") -> str:
    """A table in its own scrolling box; the first `left` columns are text. `row` makes the rows."""
    classes = [' class="l"' if index < left else "" for index in range(len(head))]
    cells = "".join(f'<th scope="col"{c}>{escape(name)}</th>' for c, name in zip(classes, head, strict=True))
    body = "".join(rows_html)
    return scrolling(f'<table class="{kind}"><thead><tr>{cells}</tr></thead><tbody>{body}</tbody></table>')


def scrolling(table_html: str) -> str:
    """A table in a box that scrolls if the table is wider, with a hint to scroll, because phones hide scroll bars."""
    step = min(-(-_width(table_html) // _STEP), _STEPS[-1])
    return (
        f'<div class="box w{step}"><p class="hint" aria-hidden="true">wider than the screen: scroll sideways ↔</p>'
        f'<div class="scroll" tabindex="0">{table_html}</div></div>'
    )


def _width(table_html: str) -> int:
    """A table's approximate width in pixels, from the widest cell of each column."""
    columns: dict[int, int] = defaultdict(int)
    for line in table_html.split("<tr")[1:]:
        for index, cell in enumerate(_CELL.findall(line)):
            text = len(unescape(_TAG.sub("", cell)))
            fixed = next((width for kind, width in _FIXED.items() if kind in cell), None)
            columns[index] = max(columns[index], _LEAST, _PADDING + (_LETTER * text if fixed is None else fixed))
    return sum(columns.values())


def percent(value: Any) -> str:
    """A fraction such as 97.50%, a dash for None."""
    return f"{value:.2%}" if isinstance(value, int | float) else "–"


WRAPPED = 20  # longer names are broken into lines


def name_html(text: str) -> str:
    """A full name for a table, broken into lines if it is long."""
    return escape(text) if len(text) <= WRAPPED else f'<div class="name">{escape(text)}</div>'


def row(cells: Sequence[str], *, left: int = 1, kind: str = "", best: Sequence[int] = ()) -> str:
    """A row of plain texts, the first its heading; `best` lists the cells to mark as best values."""
    parts = [f'<th scope="row">{name_html(cells[0])}</th>']
    for index, cell in enumerate(cells[1:], 1):
        name = "best" if index in best else "l" if index < left else ""
        mark = " ★" if index in best else ""
        text = name_html(cell) if index < left else escape(cell)
        parts.append(f'<td class="{name}">{text}{mark}</td>' if name else f"<td>{text}</td>")
    return f'<tr class="{kind}">{"".join(parts)}</tr>' if kind else f"<tr>{''.join(parts)}</tr>"


def picture(pictures: Sequence[tuple[str, str]], caption_html: str, *, smooth: bool = False, dot: bool = False) -> str:
    """Pictures side by side, each (address, description), with a caption; `smooth` for enlarged photographs, `dot`
    marks the middle."""
    kind = "pic smooth" if smooth else "pic"
    texts = [(address, escape(description)) for address, description in pictures]
    drawn = [f'<img class="{kind}" src="{address}" alt="{t}" title="{t}" loading="lazy">' for address, t in texts]
    if dot:
        drawn = [f'<span class="dot">{image}</span>' for image in drawn]
    inside = drawn[0] if len(drawn) == 1 else f'<div class="duo">{"".join(drawn)}</div>'
    return f"<figure>{inside}<figcaption>{caption_html}</figcaption></figure>"


def colour_scale(colours: Sequence[str], low: str, middle: str, high: str) -> str:
    """The legend of a colour map: a bar with labels at its ends and middle."""
    stops = ",".join(colours)
    bar = f'<i style="background:linear-gradient(90deg,{stops})"></i>'
    label = f'<p class="note">{escape(middle)}</p>' if middle else ""
    return f'<div class="scale"><span>{escape(low)}</span>{bar}<span>{escape(high)}</span></div>{label}'
