"""A timeline as one self-contained SVG: predicted lanes above the measured ones.

Both halves share the time axis, so a bar that is longer below than above took longer than
planned. Bubbles, time in which what bounds the half stands idle, are outlined in its lanes; other
gaps are background. The file follows the reader's light or dark setting and names each bar on
hover.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple
from xml.sax.saxutils import escape

from headrace.machines.bubbles import Bubbles, bubbles
from headrace.machines.trace import BUBBLES
from headrace.schedule.task import Op
from headrace.specs.units import format_seconds

KINDS: Mapping[str, frozenset[str]] = {
    "read": frozenset({Op.READ_PAGE, Op.READ_ROWS}),
    "move": frozenset(
        {
            Op.STAGE_PAGE,
            Op.UPLOAD_PAGE,
            Op.LOAD_ROWS,
            Op.OFFLOAD_QKV,
            Op.LOAD_HIDDEN,
            Op.LOAD_KV,
            Op.STORE_KV,
            Op.OFFLOAD_HIDDEN,
            Op.LOAD_PARTIAL,
        }
    ),
    "experts": frozenset({Op.EXPERT, Op.EXPERT_UP, Op.EXPERT_DOWN, Op.MOE, Op.COMBINE}),
    "attention": frozenset({Op.PRE_ATTN, Op.ATTN, Op.POST_ATTN, Op.ROUTER}),
    "head": frozenset({Op.EMBED, Op.FINAL, Op.LOGITS}),
    "host": frozenset({Op.BIND, Op.SAMPLE, Op.COMMIT, Op.BARRIER}),
}
"""Ops by the colour they are drawn in."""

COLOURS = {
    "read": "#0072b2",
    "move": "#56b4e9",
    "experts": "#e69f00",
    "attention": "#009e73",
    "head": "#cc79a7",
    "host": "#8c8c8c",
}
"""Okabe and Ito's palette: told apart with any colour vision, on light and on dark."""

LEFT, RIGHT, ROW, BAR, WIDTH = 92, 58, 26, 18, 1000
"""Pixels: lane names, busy shares, lane pitch, bar height, whole width."""

LEAST_BUBBLE = 1.0
"""Pixels of the narrowest bubble that is outlined; narrower ones count in the share."""

STYLE = """
text{font:12px system-ui,sans-serif;fill:#24292f}
.t{font-size:14px;font-weight:600}.m{fill:#57606a}.b{fill:#f0f2f4}.g{stroke:#d0d7de}
@media(prefers-color-scheme:dark){text{fill:#e6edf3}.m{fill:#9da7b3}.b{fill:#21262d}
.g{stroke:#444c56}}
.u{fill:#d55e00;fill-opacity:.18;stroke:#d55e00;stroke-width:1}
"""


class Bar(NamedTuple):
    """One task on a lane: seconds, what it was (a key of KINDS), its name and sweep."""

    start: float
    end: float
    kind: str
    label: str
    sweep: int = 0


Lanes = Mapping[str, Sequence[Bar]]
"""Lane name -> bars in order of start."""


def lanes_of_chrome(trace: Mapping[str, Any]) -> tuple[dict[str, list[Bar]], ...]:
    """(planned, measured) lanes of a Chrome trace as ``machines.trace.chrome_trace`` makes it."""
    events = [e for e in trace["traceEvents"] if e.get("cat") != BUBBLES]
    names = {(e["name"], e["pid"], e["tid"]): e["args"]["name"] for e in events if e["ph"] == "M"}
    halves: dict[str, dict[str, list[Bar]]] = {"planned": {}, "measured": {}}
    for e in sorted((e for e in events if e["ph"] == "X"), key=lambda e: float(e["ts"])):
        half = halves[names["process_name", e["pid"], 0]]
        lane = half.setdefault(names["thread_name", e["pid"], e["tid"]], [])
        if e["dur"] > 0:
            end = (e["ts"] + e["dur"]) / 1e6
            sweep = e["args"]["sweep"]
            lane.append(Bar(e["ts"] / 1e6, end, kind_of(e["cat"]), e["name"], sweep))
    return tuple(halves.values())


def kind_of(op: str) -> str:
    """The colour group of an op."""
    return next((kind for kind, ops in KINDS.items() if op in ops), "host")


def window(lanes: Lanes, start: float, end: float) -> dict[str, list[Bar]]:
    """The part between two times, which becomes 0 .. end - start."""
    cut = {
        name: [b for b in bars if b.start < end and b.end > start] for name, bars in lanes.items()
    }
    return {
        name: [
            b._replace(start=max(b.start, start) - start, end=min(b.end, end) - start) for b in bars
        ]
        for name, bars in cut.items()
    }


def busy_share(bars: Sequence[Bar], duration: float) -> float:
    """Share of ``duration`` in which the lane works."""
    return sum(b.end - b.start for b in bars) / duration if duration > 0 else 0.0


def timeline_svg(predicted: Lanes, measured: Lanes, *, title: str = "") -> str:
    """The picture. Either half may be empty. Bars thinner than a pixel are joined."""
    halves = [("predicted", predicted), ("measured", measured)]
    duration = max((_end(lanes) for _, lanes in halves), default=0.0) or 1.0
    parts: list[str] = []
    y = 34
    for name, lanes in halves:
        parts += _half(name, lanes, duration, y)
        y += 24 + ROW * len(lanes) + 6
    parts += _axis(duration, y)
    parts += _legend(y + 34)
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {y + 54}" role="img" '
        f'aria-label="{escape(title or "timeline", {chr(34): "&quot;"})}"><style>{STYLE}</style>'
        f'<text class="t" x="8" y="20">{escape(title)}</text>'
    )
    return "\n".join([head, *parts, "</svg>"]) + "\n"


def _half(name: str, lanes: Lanes, duration: float, y: int) -> list[str]:
    took = format_seconds(_end(lanes)) if lanes else "nothing to show"
    found = bubbles({lane: [(b.start, b.end) for b in bars] for lane, bars in lanes.items()})
    if found is not None:
        took += f", {found.resource} bounds it and is idle {found.share:.0%} of the time"
    parts = [f'<text class="t" x="8" y="{y + 14}">{name} <tspan class="m">{took}</tspan></text>']
    for row, (lane, bars) in enumerate(sorted(lanes.items())):
        top = y + 24 + row * ROW
        parts.append(f'<text x="{LEFT - 8}" y="{top + 13}" text-anchor="end">{escape(lane)}</text>')
        parts.append(_box(LEFT, top, WIDTH - LEFT - RIGHT, 'class="b"'))
        parts += [_bar(bar, duration, top) for bar in join_thin(bars, duration)]
        if found is not None and lane in found.lanes:
            parts += _bubbles(found, duration, top)
        share = f"{busy_share(bars, _end(lanes)):.0%}"
        parts.append(f'<text class="m" x="{WIDTH - RIGHT + 8}" y="{top + 13}">{share}</text>')
    return parts


def _bubbles(found: Bubbles, duration: float, top: int) -> list[str]:
    """Outlines of the gaps that are wide enough to be seen."""
    scale = (WIDTH - LEFT - RIGHT) / duration
    parts = []
    for start, end in found.gaps:
        if (end - start) * scale >= LEAST_BUBBLE:
            hover = f"<title>{found.resource} is idle: {format_seconds(end - start)}</title>"
            x, width = LEFT + start * scale, (end - start) * scale
            parts.append(_box(x, top, width, 'class="u"', hover))
    return parts


def join_thin(bars: Sequence[Bar], duration: float) -> list[Bar]:
    """Neighbours of one kind whose gap and length stay below a pixel become one bar."""
    pixel = duration / (WIDTH - LEFT - RIGHT)
    joined: list[Bar] = []
    for bar in bars:
        last = joined[-1] if joined else None
        thin = bar.end - bar.start < pixel
        if last and thin and last.kind == bar.kind and bar.start - last.end < pixel / 4:
            joined[-1] = last._replace(end=bar.end, label=f"{last.label.split(' ..')[0]} ..")
        else:
            joined.append(bar)
    return joined


def _bar(bar: Bar, duration: float, top: int) -> str:
    scale = (WIDTH - LEFT - RIGHT) / duration
    width = max((bar.end - bar.start) * scale, 0.3)
    hover = f"{escape(bar.label)}: {format_seconds(bar.end - bar.start)}"
    paint = f'fill="{COLOURS.get(bar.kind, COLOURS["host"])}"'
    return _box(LEFT + bar.start * scale, top, width, paint, f"<title>{hover}</title>")


def _box(x: float, y: float, width: float, paint: str, inside: str = "") -> str:
    return f'<rect x="{x:.2f}" y="{y}" width="{width:.2f}" height="{BAR}" {paint}>{inside}</rect>'


def _axis(duration: float, bottom: int) -> list[str]:
    parts = []
    for i in range(6):
        x = LEFT + (WIDTH - LEFT - RIGHT) * i / 5
        parts.append(f'<line class="g" x1="{x:.1f}" x2="{x:.1f}" y1="{bottom}" y2="{bottom + 5}"/>')
        label = format_seconds(duration * i / 5) if i else "0"
        parts.append(
            f'<text class="m" x="{x:.1f}" y="{bottom + 18}" text-anchor="middle">{label}</text>'
        )
    parts.append(f'<line class="g" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{bottom}" y2="{bottom}"/>')
    return parts


def _legend(y: int) -> list[str]:
    parts = []
    for i, (kind, colour) in enumerate(COLOURS.items()):
        x = LEFT + i * 110
        parts.append(f'<rect x="{x}" y="{y}" width="12" height="12" fill="{colour}"/>')
        parts.append(f'<text x="{x + 18}" y="{y + 11}">{kind}</text>')
    x = LEFT + len(COLOURS) * 110
    parts.append(f'<rect class="u" x="{x}" y="{y}" width="12" height="12"/>')
    parts.append(f'<text x="{x + 18}" y="{y + 11}">bubble</text>')
    return parts


def _end(lanes: Lanes) -> float:
    return max((bar.end for bars in lanes.values() for bar in bars), default=0.0)
