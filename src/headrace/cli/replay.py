"""Published rows beside what the simulator says of them: residuals, order, ablation, ours."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from headrace.planner.fit import fit
from headrace.planner.ours import Ours, ours
from headrace.planner.published import (
    MODEL,
    Published,
    Replay,
    Replayed,
    read_published,
    summary,
    swapped,
)

AIMS = {"worst_error": 0.25, "median_error": 0.15, "baselines_worst_factor": 2.0}
"""What was asked of the replay: misses are marked."""


def replay_report(
    *, with_ours: bool = True, fitted_anew: bool = False, say: Callable[[str], None]
) -> dict[str, Any]:
    """All of it as data. Costs about 45 s, ours another 40."""
    published = read_published()
    if fitted_anew:
        published = published.with_values(fit(published, say))
    replay = Replay(published)
    rows, several = replay.rows(published.rows), replay.rows(published.several)
    carried = replay.rows(published.carried)
    models = dict.fromkeys(each.row.model for each in several)
    report: dict[str, Any] = {
        "simulated": True,
        "constants": {name: vars(c) for name, c in published.constants.items()},
        "machines": published.machines,
        "rows": [_row(row) for row in rows],
        "ablation": [_row(row) for row in replay.rows(published.ablation)],
        "carried": [_row(row) for row in carried],
        "several": [_row(row) for row in several],
        "summary": _summary(rows),
        "carried_summary": {
            machine: _summary([each for each in carried if each.row.machine == machine])
            for machine in dict.fromkeys(each.row.machine for each in carried)
        },
        "several_summary": {
            model: _summary([each for each in several if each.row.model == model])
            for model in models
        },
        "swapped": [_swap(a, b) for a, b in swapped([*rows, *carried, *several])],
    }
    if with_ours:
        report["ours"] = [_ours(each) for each in _all_ours(published)]
    return report


def print_replay(report: Mapping[str, Any], console: Console) -> None:
    """All of it as tables; every figure but the published ones is simulated."""
    console.print(_constants_table(report["constants"], report["machines"]))
    for key, title in _TITLES.items():
        console.print(_rows_table(report[key], title))
    for line in verdicts(report):
        console.print(line, markup=False)
    if "ours" in report:
        console.print(_ours_table(report["ours"]))


_TITLES = {
    "rows": "Published rows (tok/s)",
    "ablation": "Ablation, gen 128",
    "carried": "The same constants on another machine",
    "several": "The same constants on several T4 of one host",
}


def verdicts(report: Mapping[str, Any]) -> list[str]:
    """Each aim with its figure, and pairs in the wrong order."""
    lines = _verdict(report["summary"], "one T4")
    for machine, found in report["carried_summary"].items():
        lines += _verdict(found, f"one {machine.upper()}")
    for model, found in report["several_summary"].items():
        lines += _verdict(found, f"several T4, {model}")
    for pair in report["swapped"]:
        first, second = pair["systems"]
        where = f"{pair['machine']}, {pair['task']}, gen {pair['gen']}"
        lines.append(f"order: {first} and {second} are swapped, {where}")
    return lines


def _verdict(found: Mapping[str, Any], where: str) -> list[str]:
    factor = found["baselines_worst_factor"]
    others = "no baselines priced" if factor is None else f"baselines within {factor:.2f}x (aim 2)"
    lines = [
        f"{where}: MoE-Lightning's {found['rows']} rows that no constant knew: median "
        f"{found['median_error']:.1%}, worst {found['worst_error']:.1%} (aims 15 %, 25 %); "
        f"{others}"
    ]
    missed = [name for name in AIMS if found[f"{name}_met"] is False]
    return lines + [f"MISSED on {where}: {name}" for name in missed]


def _all_ours(published: Published) -> list[Ours]:
    found = []
    for row in (*published.rows, *published.carried):
        if row.runtime == "moe-lightning" and not row.padded:
            for tensor_cores in (False, True) if row.machine in published.machines else (True,):
                found.append(ours(published, row, tensor_cores=tensor_cores))
    return found


def _summary(rows: Sequence[Replayed]) -> dict[str, Any]:
    found = summary(rows)
    return {**found, **{f"{name}_met": _met(found[name], aim) for name, aim in AIMS.items()}}


def _met(error: float | None, aim: float) -> bool | None:
    """Whether ``error`` is within ``aim``; None where nothing was priced."""
    return None if error is None else error <= aim


def _swap(a: Replayed, b: Replayed) -> dict[str, Any]:
    row = a.row
    systems = [row.system, b.row.system]
    return {"machine": row.machine, "task": row.task, "gen": row.gen, "systems": systems}


def _row(found: Replayed) -> dict[str, Any]:
    row, prediction = found.row, found.prediction
    return {
        "machine": row.machine,
        "model": row.model,
        "system": row.system,
        "task": row.task,
        "gen": row.gen,
        "requests": prediction.gen_tokens // row.gen,
        "published_tokens_per_second": row.tokens_per_second,
        "simulated_tokens_per_second": found.tokens_per_second,
        "residual": found.residual,
        "fitted_on": found.fitted_on,
        "published_wall_seconds": row.wall_seconds,
        "simulated_wall_seconds": prediction.seconds,
        "simulated_prefill_seconds": prediction.prefill_seconds,
        "bound_by": prediction.bound_by,
    }


def _ours(found: Ours) -> dict[str, Any]:
    prediction, policy = found.prediction, found.policy
    return {
        "machine": found.row.machine,
        "gen": found.row.gen,
        "requests": prediction.gen_tokens // found.row.gen,
        "kernels": found.kernels,
        "schedule": policy.schedule,
        "max_seqs": policy.max_seqs,
        "max_rows": policy.max_rows,
        "published_tokens_per_second": found.row.tokens_per_second,
        "simulated_tokens_per_second": prediction.decode_tokens_per_second,
        "gain": found.gain,
        "bound_by": prediction.bound_by,
        "utilisation": prediction.utilisation,
    }


def _constants_table(
    constants: Mapping[str, Mapping[str, Any]], machines: Mapping[str, Mapping[str, Any]]
) -> Table:
    table = Table("constant", "value", "from", box=None, title="Constants", title_justify="left")
    for name, constant in constants.items():
        origin = f"fitted: {constant['source']}" if constant["fitted"] else constant["source"]
        table.add_row(name, f"{constant['value']:.4g}", origin)
    for name, spec in machines.items():
        table.add_row(f"{name} kernel_flops", f"{spec['kernel_flops']:.4g}", spec["source"])
    return table


def _rows_table(rows: Sequence[Mapping[str, Any]], title: str) -> Table:
    heads = ("system", "task", "gen", "requests", "published", "simulated", "off", "bound by", "")
    table = Table(*heads, box=None, title=title, title_justify="left")
    for row in rows:
        table.add_row(
            row["system"] if row["machine"] == "t4" else f"{row['system']} ({row['machine']})",
            row["task"] if row["model"] == MODEL else f"{row['task']}, {row['model']}",
            str(row["gen"]),
            str(row["requests"]),
            f"{row['published_tokens_per_second']:.2f}",
            f"{row['simulated_tokens_per_second']:.2f}",
            f"{row['residual']:+.1%}",
            row["bound_by"],
            "fitted on" if row["fitted_on"] else "",
        )
    return table


def _ours_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    title = "Our schedules, the same requests un-padded: simulated"
    heads = ("machine", "gen", "kernels", "schedule", "published", "simulated", "gain", "bound by")
    table = Table(*heads, box=None, title=title, title_justify="left")
    for row in rows:
        table.add_row(
            row["machine"],
            str(row["gen"]),
            row["kernels"],
            f"{row['schedule']}, {row['max_seqs']} sequences",
            f"{row['published_tokens_per_second']:.1f}",
            f"{row['simulated_tokens_per_second']:.1f}",
            f"{row['gain']:.2f}x",
            f"{row['bound_by']} {row['utilisation'][row['bound_by']]:.0%}",
        )
    return table
