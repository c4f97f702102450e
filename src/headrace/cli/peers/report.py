"""The table of a race: rows where we lose stay in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from headrace.cli.peers.race import Result
from headrace.cli.peers.shape import Shape
from headrace.specs.units import format_bytes

HEAD = (
    *("engine", "batch", "prefill tok/s", "decode tok/s", "requests/h", "peak memory"),
    *("prefill x", "decode x", "requests x"),
)
RATES = ("prefill_tokens_per_second", "decode_tokens_per_second", "requests_per_hour")


def ratios(result: Result, ours: Result) -> dict[str, float | None]:
    """Our rate over theirs: above 1 we are faster."""
    found = {}
    for name in RATES:
        mine, theirs = getattr(ours, name), getattr(result, name)
        found[name] = mine / theirs if mine and theirs else None
    return found


def report(
    results: Sequence[Result], shapes: Sequence[Shape], about: Mapping[str, Any]
) -> dict[str, Any]:
    """Plain data: a row per engine and batch, with ratios of ours (the first) to each."""
    ours = {r.batch: r for r in reversed(results) if r.name == results[0].name}
    rows = [{**r.to_dict(), "ours_over_theirs": ratios(r, ours[r.batch])} for r in results]
    shape = shapes[0]
    same = {"prompt_len": shape.prompt_len, "gen_len": shape.gen_len, "threads": shape.threads}
    return {**about, **same, "rows": rows}


def markdown(made: Mapping[str, Any]) -> str:
    """The report for a reader, commands and versions below the table."""
    rows = made["rows"]
    ours = rows[0]["name"]
    lines = [
        f"{made['date']}, {made['machine']}; {made['threads']} threads, prompt "
        f"{made['prompt_len']}, generated {made['gen_len']}, median of {made['rounds']} rounds in "
        f"turn; memory {made['bound']}.",
        "",
        _line(HEAD),
        _line(["---"] * len(HEAD)),
        *(_line(_cells(row, ours)) for row in rows),
        "",
        f"x: {ours} over the engine of the row; above 1 it is faster. Loading is left out.",
        "",
        *(f"- {name}: {version}" for name, version in made["versions"].items()),
        "",
        *("```", *_commands(rows), "```"),
    ]
    return "\n".join(lines)


def _cells(row: Mapping[str, Any], ours: str) -> list[str]:
    start = [row["name"], str(row["batch"])]
    memory = _memory(row)
    if row["error"]:
        return [*start, f"failed: {row['error']}".replace("|", "/"), "", "", memory, "", "", ""]
    rates = [_number(row[name]) for name in RATES]
    over = row["ours_over_theirs"]
    times = ["" if row["name"] == ours else _times(over[name]) for name in RATES]
    return [*start, *rates, memory, *times]


def _memory(row: Mapping[str, Any]) -> str:
    rss, charged = row["peak_rss_bytes"], row["peak_charged_bytes"]
    said = "" if rss is None else format_bytes(rss)
    return said if charged is None else f"{said} ({format_bytes(charged)} with cache)"


def _commands(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Each engine's command at its first batch."""
    firsts: dict[str, str] = {}
    for row in rows:
        firsts.setdefault(row["name"], row["command"])
    return [command for command in firsts.values() if command]


def _number(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:,.0f}" if value >= 100 else f"{value:.2f}" if value < 10 else f"{value:.1f}"


def _times(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def _line(parts: Sequence[str]) -> str:
    return f"| {' | '.join(parts)} |"
