"""CGOPipe: weights in pages between hidden states, attention on the processor ahead of experts.

Algorithm 1 of Cao et al. 2024 (MoE-Lightning). The published runtime drains at every step; here
the pages of the next sweep's first layer cross the link during this one's last.
"""

from __future__ import annotations

from headrace.schedule.blocks import begin, finish
from headrace.schedule.device import attend_on_cpu, load_hidden, lookahead, post_attention, steps
from headrace.schedule.lanes import PACKETS
from headrace.schedule.paging import check_two_layers, share_of_uploads, staged, uploads
from headrace.schedule.placement import Placement
from headrace.schedule.task import Task


def cgopipe(at: Placement) -> list[Task]:
    """Each step loads one micro-batch's hidden states, then the next layer's share of pages."""
    check_two_layers(at)
    parts, order, ahead = at.policy.micro_batches, steps(at), lookahead(at)
    tasks = [*uploads(at, 0, PACKETS), *begin(at)]
    for step in order[:ahead]:
        tasks += attend_on_cpu(at, *step)
    for number, (layer, mb) in enumerate(order):
        tasks.append(load_hidden(at, layer, mb))
        tasks += share_of_uploads(at, layer + 1, mb, parts)
        tasks += post_attention(at, layer, mb)
        for step in order[number + ahead : number + ahead + 1]:
            tasks += attend_on_cpu(at, *step)
    return staged(at, [*tasks, *finish(at)])
