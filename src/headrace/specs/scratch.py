"""How many bytes the compute lane's scratch takes: the declared formula of law 4."""

from __future__ import annotations

from headrace.specs.model import ModelSpec
from headrace.specs.policy import Policy


def scratch_bytes(model: ModelSpec, policy: Policy) -> int:
    """Bytes of the ``scratch`` buffer under ``policy``. Placeholder until the bodies stand."""
    widest = max(model.q_size, model.ffn_width, model.hidden)
    return 4 * widest * (policy.max_rows + model.hidden)
