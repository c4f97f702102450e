"""Attention on the processor beside the device, weights a whole layer at a time.

After FastDecode (He and Zhai 2024, arXiv 2403.11421), as MoE-Lightning compares with it (S2): the
transfer of a layer stands in front of the next one's first hidden states.
"""

from __future__ import annotations

from headrace.schedule.blocks import begin, finish
from headrace.schedule.device import attend_on_cpu, load_hidden, lookahead, post_attention, steps
from headrace.schedule.lanes import PACKETS
from headrace.schedule.paging import check_two_layers, staged, uploads
from headrace.schedule.placement import Placement
from headrace.schedule.task import Task


def fastdecode(at: Placement) -> list[Task]:
    """What attention needs of the next layer goes first: it runs two micro-batches ahead."""
    check_two_layers(at)
    parts, order, ahead = at.policy.micro_batches, steps(at), lookahead(at)
    tasks = [*uploads(at, 0, PACKETS), *begin(at)]
    for step in order[:ahead]:
        tasks += attend_on_cpu(at, *step)
    for number, (layer, mb) in enumerate(order):
        tasks.append(load_hidden(at, layer, mb))
        following = uploads(at, layer + 1)
        if mb == 0:
            tasks += [task for task in following if task.expert is None]
        if mb == parts - 1:
            tasks += [task for task in following if task.expert is not None]
        tasks += post_attention(at, layer, mb)
        for step in order[number + ahead : number + ahead + 1]:
            tasks += attend_on_cpu(at, *step)
    return staged(at, [*tasks, *finish(at)])
