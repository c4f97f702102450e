"""FlexGen's zig-zag block schedule: attention on the device, KV of the next micro-batch loaded.

Sheng et al. 2023 (arXiv 2303.06865): for a layer and micro-batch in parallel {load weights of the
next layer, load the next micro-batch's KV, compute, store the last one's new KV}, then a barrier.
"""

from __future__ import annotations

from headrace.schedule.blocks import begin, finish
from headrace.schedule.device import (
    Step,
    attend_on_device,
    load_kv,
    post_attention,
    steps,
    store_kv,
)
from headrace.schedule.lanes import PACKETS
from headrace.schedule.paging import check_two_layers, in_steps, staged, uploads
from headrace.schedule.placement import Placement
from headrace.schedule.task import Task


def flexgen(at: Placement) -> list[Task]:
    """Hidden states stay on the device; KV comes and goes, but for the share that stays (r_c)."""
    check_two_layers(at)
    order = steps(at)

    def step(number: int, here: Step) -> list[Task]:
        layer, mb = here
        tasks = uploads(at, layer + 1) if mb == 0 else []
        for following in order[number + 1 : number + 2]:
            tasks += load_kv(at, *following)
        tasks += [*attend_on_device(at, layer, mb), *post_attention(at, layer, mb)]
        for before in order[max(0, number - 1) : number]:
            tasks += store_kv(at, *before)
        return tasks

    loop = in_steps(step(*each) for each in enumerate(order))
    first = [*uploads(at, 0, PACKETS), *begin(at), *load_kv(at, *order[0])]
    return staged(at, [*first, *loop, *store_kv(at, *order[-1]), *finish(at)])
