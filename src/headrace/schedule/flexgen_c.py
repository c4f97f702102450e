"""FlexGen with attention on the processor: nothing overlaps but the next layer's weights.

The zig-zag loop of Sheng et al. 2023 (FlexGen, arXiv 2303.06865), S3 of MoE-Lightning's
comparison: every step ends with a barrier, so device and processor take turns.
"""

from __future__ import annotations

from headrace.schedule.blocks import begin, finish
from headrace.schedule.device import attend_on_cpu, load_hidden, post_attention, steps
from headrace.schedule.lanes import PACKETS
from headrace.schedule.paging import check_two_layers, in_steps, staged, uploads
from headrace.schedule.placement import Placement
from headrace.schedule.task import Task


def flexgen_c(at: Placement) -> list[Task]:
    """A micro-batch from projection to experts per step; in a layer's first step the next one's
    weights cross the link, in front of hidden states."""
    check_two_layers(at)

    def step(layer: int, mb: int) -> list[Task]:
        weights = uploads(at, layer + 1) if mb == 0 else []
        attention = [*attend_on_cpu(at, layer, mb), load_hidden(at, layer, mb)]
        return [*weights, *attention, *post_attention(at, layer, mb)]

    loop = in_steps(step(*each) for each in steps(at))
    return staged(at, [*uploads(at, 0, PACKETS), *begin(at), *loop, *finish(at)])
