"""About how long a job takes, from the time of its typical sweeps: for ranking, nothing is played.

Places fill while prompts are read, stay full while requests last, and empty at the end. In between
a sweep has D decodes, and as many prompt rows as requests that end make room for: D p / g of them,
for prompts of p and outputs of g tokens, unless fewer rows are free than that.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from headrace.planner.sweeps import Load
from headrace.specs.policy import Policy
from headrace.specs.workload import Workload


@dataclass(frozen=True)
class JobShape:
    """A workload in means: requests, prompt and output tokens of each, tokens that a decode
    attends to."""

    requests: int
    prompt: float
    gen: float
    decode_kv: int

    @classmethod
    def of(cls, workload: Workload, decode_kv: int) -> JobShape:
        """The shape of ``workload``."""
        count = max(1, workload.requests)
        prompt, gen = workload.prompt_tokens / count, workload.gen_tokens / count
        return cls(count, max(1.0, prompt), max(1.0, gen), max(1, decode_kv))


@dataclass(frozen=True)
class Course:
    """How a job goes under a policy: the load of its steady sweeps and how many there are, of
    sweeps that fill the places, and of those that empty them."""

    steady: Load
    sweeps: float
    filling: Load
    fill_sweeps: float
    emptying: Load
    empty_sweeps: float

    @property
    def typical(self) -> Load:
        """The load of most sweeps."""
        return self.steady if self.sweeps > self.fill_sweeps else self.filling

    @property
    def loads(self) -> tuple[Load, ...]:
        """Loads that differ most: of steady sweeps, of those that fill the places, and, where
        steady ones have prompts, of decodes alone."""
        alone = self.steady._replace(chunk_rows=0, chunk_kv=0, samples=self.steady.decodes)
        found = (self.steady, self.filling, alone)
        return tuple(dict.fromkeys(load for load in found if load.rows))

    @property
    def parts(self) -> tuple[tuple[float, Load], ...]:
        """(how many sweeps, the load of each)."""
        found = (
            (self.fill_sweeps, self.filling),
            (self.sweeps, self.steady),
            (self.empty_sweeps, self.emptying),
        )
        return tuple((count, load) for count, load in found if count > 0)

    def seconds(self, seconds_of: Callable[[Load], float]) -> float:
        """The job's, for sweeps of ``seconds_of``."""
        return sum(count * seconds_of(load) for count, load in self.parts)


def course_of(job: JobShape, policy: Policy) -> Course:
    """The course of ``job`` under ``policy``."""
    footprint = -(-(job.prompt + job.gen / 2) // policy.kv_block)
    places = min(policy.max_seqs, job.requests, max(1, int(policy.kv_blocks / footprint)))
    room = _room(policy, places / 2)
    fill = places * job.prompt / room  # sweeps until every place decodes
    decodes = _steady_decodes(job, policy, places)
    tokens = job.requests * job.gen
    filled = min(tokens, places / 2 * fill * min(1.0, job.gen / fill))
    emptied = min(tokens - filled, places / 2 * min(fill, job.gen))
    steady = max(0.0, tokens - filled - emptied)
    prompts = min(_room(policy, decodes), decodes * job.prompt / job.gen)
    left = max(0.0, job.requests - places) / job.requests  # prompts that come later
    return Course(
        steady=_load(job, decodes, prompts if left else 0.0),
        sweeps=steady / decodes,
        filling=_load(job, filled / fill, room),
        fill_sweeps=fill,
        emptying=_load(job, max(1.0, places / 2), 0.0),
        empty_sweeps=emptied / max(1.0, places / 2),
    )


def _room(policy: Policy, decodes: float) -> float:
    """Prompt rows of a sweep beside ``decodes``, as ``batching.limits`` has it."""
    wanted = max(policy.compute_rows - decodes, policy.chunk)
    return max(1.0, min(wanted, policy.max_rows - decodes))


def _steady_decodes(job: JobShape, policy: Policy, places: int) -> float:
    """Decodes of a sweep whose prompts keep up with what ends."""
    held = 1.0 + max(1.0, job.prompt / _room(policy, places)) / job.gen  # sweeps of a prompt, too
    most, ratio = places / held, job.prompt / job.gen
    if job.requests <= places or most * ratio <= _room(policy, most):
        return max(1.0, most if job.requests > places else places)
    by_compute = policy.compute_rows / (1.0 + ratio)
    by_rows = policy.max_rows / (1.0 + ratio)
    return max(1.0, min(most, by_rows, max(by_compute, policy.chunk / ratio)))


def _load(job: JobShape, decodes: float, prompts: float) -> Load:
    count, rows = round(decodes), round(prompts)
    ending = rows / job.prompt
    return Load(count, count * job.decode_kv, rows, round(job.prompt) if rows else 0,
                round(count + ending))  # fmt: skip
