"""Two groups of tokens take turns: the processor attends one while the device multiplies the other.

After MoE-Lens (arXiv 2504.09345). Weights cross in packets (pages) on a queue of their own, so
hidden states never wait behind a layer; experts start as their pages arrive, once per group.
"""

from __future__ import annotations

from headrace.errors import UsageError
from headrace.schedule.blocks import begin, finish
from headrace.schedule.device import attend_on_cpu, load_hidden, post_attention_by_page, steps
from headrace.schedule.lanes import PACKETS
from headrace.schedule.paging import check_two_layers, staged, uploads
from headrace.schedule.placement import Placement
from headrace.schedule.task import Task

GROUPS = 2


def two_group(at: Placement) -> list[Task]:
    """A group is a micro-batch. Raises UsageError unless there are two."""
    if at.policy.micro_batches != GROUPS:
        raise UsageError(
            "micro-batches of schedule two_group", expected=GROUPS, got=at.policy.micro_batches
        )
    check_two_layers(at)
    order = steps(at)
    tasks = [*uploads(at, 0, PACKETS), *begin(at)]
    for step in order[:GROUPS]:
        tasks += attend_on_cpu(at, *step)
    for number, (layer, group) in enumerate(order):
        tasks.append(load_hidden(at, layer, group))
        if group == 0:
            tasks += uploads(at, layer + 1, PACKETS)
        tasks += post_attention_by_page(at, layer, group)
        for step in order[number + GROUPS : number + GROUPS + 1]:
            tasks += attend_on_cpu(at, *step)
    return staged(at, [*tasks, *finish(at)])
