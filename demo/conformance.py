"""Is the text right? Every greedy token of every schedule against transformers, in fp32.

``python -m demo.conformance .demo/model`` answers the bundled prompts under each schedule and
budget with fp32 KV, and replays each answer through transformers in one forward pass: where
the token we drew is the most likely one at every position, transformers' own greedy text is
the same. A first difference must be a proven tie: the two likeliest logits closer than
``LOGIT_TIE`` there, or two experts at the edge of the top-k closer than ``ROUTER_TIE`` in
probability at that or an earlier position of the same sequence.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch

from headrace.engine.answers import Answered, Prompt
from headrace.engine.llm import LLM
from headrace.engine.prompts import workload_of
from headrace.errors import BudgetError
from headrace.specs.sampling import SamplingParams
from headrace.specs.units import format_bytes

PROMPTS = Path(__file__).with_name("prompts.jsonl")
LOGIT_TIE = 1e-3
ROUTER_TIE = 1e-5
DEMO_BUDGET = 600_000_000
RESIDENT_BUDGET = 4_000_000_000


class Case(NamedTuple):
    """One way of running: a schedule, a budget (None: the smallest that works), a job."""

    name: str
    schedule: str
    budget: int | None
    prompts: int
    tokens: int


@dataclass
class Row:
    """What one case showed."""

    case: str
    budget: str
    prompts: int = 0
    tokens: int = 0
    equal: int = 0
    ties: int = 0
    wrong: int = 0
    bytes_read: int = 0
    bytes_needed: int = 0


class Verdict(NamedTuple):
    """``position`` of the first difference (None: none) and whether it is a proven tie."""

    position: int | None
    tie: bool


class Reference:
    """transformers' model; verdicts are kept per answer, most cases give the same ones."""

    def __init__(self, folder: str) -> None:
        from transformers import MixtralForCausalLM

        torch.set_num_threads(1)  # of this thread: a team would spin beside the engine's lanes
        loaded = MixtralForCausalLM.from_pretrained(
            folder, dtype=torch.float32, experts_implementation="eager"
        )
        self.model = loaded.eval()
        self.top_k = self.model.config.num_experts_per_tok
        self._known: dict[tuple[tuple[int, ...], tuple[int, ...]], Verdict] = {}

    def judge(self, prompt: tuple[int, ...], answer: tuple[int, ...]) -> Verdict:
        """Whether greedy decoding from ``prompt`` gives ``answer``."""
        if (prompt, answer) not in self._known:
            self._known[prompt, answer] = self._judge(prompt, answer)
        return self._known[prompt, answer]

    @torch.inference_mode()
    def _judge(self, prompt: tuple[int, ...], answer: tuple[int, ...]) -> Verdict:
        ids = torch.tensor([[*prompt, *answer[:-1]]])
        out = self.model(ids, output_router_logits=True)
        logits = out.logits[0, len(prompt) - 1 :]
        told = torch.tensor(answer)
        differs = (logits.argmax(-1) != told).nonzero().view(-1).tolist()
        if not differs:
            return Verdict(None, False)
        at = differs[0]
        top = logits[at].topk(2).values
        tie = float(top[0] - top[1]) < LOGIT_TIE
        return Verdict(at, tie or self._router_tie(out.router_logits, len(prompt) + at))

    def _router_tie(self, router_logits: Sequence[Any], rows: int) -> bool:
        for layer in router_logits:
            chances = layer[:rows].softmax(-1).sort(-1, descending=True).values
            edge = chances[:, self.top_k - 1] - chances[:, self.top_k]
            if float(edge.min()) < ROUTER_TIE:
                return True
        return False


def cases() -> list[Case]:
    """Every schedule at the demo's budget and with everything resident; the smallest budget."""
    streaming = ("stream", "on_demand", "one_by_one")
    found = [Case(name, name, DEMO_BUDGET, 0, 48) for name in streaming]
    found += [Case(f"{n}, all resident", n, RESIDENT_BUDGET, 0, 48) for n in ("resident", "stream")]
    found += [Case(f"{name}, smallest budget", name, None, 8, 16) for name in streaming]
    return found


def run_case(folder: str, case: Case, reference: Reference) -> Row:
    """Run one case and judge every answer."""
    budget = case.budget or smallest_budget(folder, case)
    row = Row(case.name, format_bytes(budget))
    with LLM(folder, memory=budget, schedule=case.schedule, kv_dtype="f32") as llm:
        prompts = load_prompts(llm, case)
        llm.plan(workload_of(prompts, llm.context))
        record = llm.new_record()
        for event in llm.events(prompts, record):
            if isinstance(event, Answered):
                answer = event.output.outputs[0].token_ids
                verdict = reference.judge(event.prompt.tokens, answer)
                row.prompts += 1
                row.tokens += len(answer)
                row.equal += verdict.position is None
                row.ties += verdict.position is not None and verdict.tie
                row.wrong += verdict.position is not None and not verdict.tie
        row.bytes_read, row.bytes_needed = record.bytes_read, record.needed_bytes
    return row


def smallest_budget(folder: str, case: Case) -> int:
    """The smallest budget that the planner accepts for a case."""
    with LLM(folder, memory=1, schedule=case.schedule, kv_dtype="f32") as llm:
        try:
            llm.plan(workload_of(load_prompts(llm, case), llm.context))
        except BudgetError as error:
            return error.smallest_bytes
    raise AssertionError("one byte was enough")


def load_prompts(llm: LLM, case: Case) -> list[Prompt]:
    """The bundled prompts, greedy, at most ``case.tokens`` tokens each."""
    params = SamplingParams(temperature=0.0, max_tokens=case.tokens)
    prompts = []
    for number, text in enumerate(PROMPTS.read_text().splitlines()):
        line = json.loads(text)
        body = line.get("body", line)
        asked = body["messages"] if "messages" in body else body["prompt"]
        prompts.append(Prompt(str(number), llm.encode(asked), params))
    return prompts[: case.prompts or None]


def table(rows: Sequence[Row]) -> str:
    """The rows as markdown."""
    names = ("case", "budget", "prompts", "tokens", "equal", "ties", "wrong", "read / needed")
    lines = ["| " + " | ".join(names) + " |", "|---" * len(names) + "|"]
    for r in rows:
        share = f"{r.bytes_read / 1e9:.1f} / {r.bytes_needed / 1e9:.1f} GB"
        cells = (r.case, r.budget, r.prompts, r.tokens, r.equal, r.ties, r.wrong, share)
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines)


def main(folder: str) -> int:
    """Run all cases; prints the table; 1 when an answer is wrong."""
    reference = Reference(folder)
    rows = []
    for case in cases():
        rows.append(run_case(folder, case, reference))
        print(replace(rows[-1]), file=sys.stderr, flush=True)
    print(table(rows))
    return int(any(r.wrong or not r.prompts for r in rows))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1] if len(sys.argv) > 1 else ".demo/model"))
