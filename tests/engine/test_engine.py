"""The loop on real bodies: the same tokens however a run is planned, ordered or disturbed."""

from __future__ import annotations

import gc
import shutil
import weakref
from dataclasses import replace
from itertools import pairwise
from random import Random

import pytest
import torch

from headrace.engine.answers import Answered, Delta, Prompt, Refused
from headrace.engine.engine import SweepEnd
from headrace.engine.record import Record
from headrace.engine.session import lanes_as_threads
from headrace.errors import HeadraceError, NumericsError, TaskError, UsageError
from headrace.machines.orders import TaskGraph, delaying, shuffled
from headrace.memory.checkpoint import Checkpoint
from headrace.schedule.task import Buffer, Op
from headrace.schedule.work import WorkModel
from headrace.specs.sampling import SamplingParams
from headrace.specs.workload import Workload

from .engines import (
    PLENTY,
    PROMPTS,
    Trap,
    answers_of,
    exactly,
    greedy,
    lane_threads,
    least_memory,
    open_llm,
    policy_of,
    reference_tokens,
    session_of,
    stepping,
    token_ids,
    watched,
    workload,
)

JOB = Workload.uniform(24, 20, 8)
CASES = ["mixtral-e8", "olmoe-e64", "mixtral-e5-window-tied", "llama-gqa", "llama-mha-tied-biases"]


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Bits are compared: both kinds of machine run with the same number of threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


# -- the same tokens ----------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES)
def test_greedy_tokens_equal_transformers_under_every_schedule_and_budget(checkpoint_of, case):
    folder, prompts, count = checkpoint_of(case), PROMPTS[:4], 6
    expected = reference_tokens(folder, prompts, count)
    job = workload(prompts, count)
    least = least_memory(folder, job)
    room = least_memory(folder, job, schedule="resident") - least
    bits = []
    for schedule, memory in (
        ("resident", PLENTY),
        ("stream", least),
        ("stream", least + room * 3 // 4),
        ("on_demand", least + room // 3),
        ("one_by_one", least + room // 2),
    ):
        with open_llm(folder, memory, schedule=schedule) as llm:
            plan = llm.plan(job)
            assert (plan.policy.schedule, bool(plan.policy.slot_bytes)) == (
                schedule,
                schedule != "resident",
            )
            record = llm.new_record()
            answers = answers_of(llm.session, prompts, greedy(count, logprobs=2), record)
            assert token_ids(answers[f"p{i}"] for i in range(len(prompts))) == expected
            bits.append(exactly(answers[f"p{i}"] for i in range(len(prompts))))
            assert llm.session.arena.used == plan.memory.arena_bytes
            assert plan.memory.total_bytes <= memory
            if schedule != "resident":
                assert record.bytes_read >= record.needed_bytes > 0
    assert all(each == bits[0] for each in bits)


def test_the_bits_are_the_same_whichever_machine_runs_the_list_in_whichever_order(mixtral):
    """Law 1, through the whole engine: every legal order, unwritten memory spoilt."""
    random = Random(3)

    def adversarial(graph: TaskGraph):
        wait = random.choice(graph.waits)
        return delaying(wait.before)(graph)

    with open_llm(mixtral, least_memory(mixtral) * 5 // 4, schedule="stream") as llm:
        policy_of(llm)
        for schedule in ("stream", "on_demand", "one_by_one"):
            bits: dict[str, list[bytes]] = {}
            machines = {
                "threads": lanes_as_threads,
                "in order": stepping(),
                "shuffled": stepping(shuffled(random)),
                "adversarial": stepping(adversarial),
            }
            for name, machine in machines.items():
                seen = bits[name] = []
                changes = {"schedule": schedule, "max_seqs": 3, "micro_batches": 2}
                with session_of(llm, machine=watched(machine, seen), **changes) as session:
                    assert len(answers_of(session, PROMPTS[:5], greedy(4))) == 5
            assert all(seen == bits["in order"] for seen in bits.values())


# -- blocks run out -----------------------------------------------------------------------


@pytest.mark.parametrize("schedule", ["stream", "on_demand"])
def test_preempted_sequences_are_computed_again_to_the_same_tokens(mixtral, schedule):
    """Two short answers make the others seem short: more are let in than blocks suffice for."""
    lengths = [1, 1, 20, 20, 20, 20]
    requests = [
        Prompt(f"p{i}", p, greedy(n, logprobs=3))
        for i, (p, n) in enumerate(zip(PROMPTS, lengths, strict=True))
    ]

    def run(session):
        events = list(session.run(iter(requests)))
        return {e.prompt.key: exactly([e.output]) for e in events if isinstance(e, Answered)}

    with open_llm(mixtral, least_memory(mixtral) * 5 // 4, schedule=schedule) as llm:
        llm.plan(workload(tokens=20))
        expected = run(llm.session)
        with session_of(llm, kv_block=4, kv_blocks=14, max_seqs=6) as session:
            assert run(session) == expected
            assert session.batcher.counters.preemptions > 0
            assert session.batcher.counters.recomputed_tokens > 0
            assert session.batcher.free_blocks == 14


# -- the seam -----------------------------------------------------------------------------


@pytest.mark.parametrize("schedule", ["stream", "on_demand"])
def test_reads_of_the_next_sweep_start_before_this_one_ends(mixtral, schedule):
    with open_llm(mixtral, least_memory(mixtral), schedule=schedule) as llm:
        policy_of(llm)
        record = llm.new_record(keep_traces=True)
        answers_of(llm.session, record=record)
    assert len(record.traces) > 8
    early = 0
    for here, after in pairwise(record.traces):
        reads = [s.start for s in after.spans if after.schedule.tasks[s.task].op is Op.READ_PAGE]
        early += min(reads) < here.end
    assert early >= 0.5 * (len(record.traces) - 1)  # all, unless others hold the processor


LARGE = {"max_seqs": 48, "max_rows": 112, "compute_rows": 112, "kv_blocks": 100}


@pytest.fixture(scope="module")
def steady(wide):
    """A session that streams nearly all weights for 48 sequences at once."""
    with open_llm(wide, least_memory(wide, JOB) * 3 // 2, schedule="stream") as llm:
        llm.plan(JOB)
        with session_of(llm, schedule="stream", **LARGE) as session:
            yield session


def record_of(session) -> Record:
    loaded = session.loaded
    return Record(loaded.table, WorkModel(loaded.model, loaded.pages, session.policy))


def test_a_steady_job_reads_nothing_in_vain(steady):
    """Every reading counts: the disk's own counter, not what the record claims."""
    prompts = [(3 + i, 50 + i) for i in range(48)]
    before, record = steady.loaded.reader.bytes_read, record_of(steady)
    answers_of(steady, prompts, greedy(6), record)
    assert record.bytes_read == steady.loaded.reader.bytes_read - before
    assert record.needed_bytes <= record.bytes_read <= 1.02 * record.needed_bytes


def test_a_job_that_ends_early_cuts_its_last_sweep_short(steady):
    """All end at the first token, which nobody foresaw: of the sweep in flight, what the ring
    holds was read, and what the lanes had begun."""
    prompts = [(3 + i, 50 + i) for i in range(48)]
    stop = greedy(50, allowed_token_ids=(9,), stop_token_ids=(9,))
    before, record = steady.loaded.reader.bytes_read, record_of(steady)
    answers = answers_of(steady, prompts, stop, record)
    assert token_ids(answers.values()) == [(9,)] * 48
    assert all(s.prefill_rows for s in record.sweeps), "nothing ran after the last answer"
    assert record.bytes_read == steady.loaded.reader.bytes_read - before
    vain = record.bytes_read - 1.02 * record.needed_bytes
    assert vain <= (steady.policy.ring_slots + steady.policy.disk_lanes) * steady.policy.slot_bytes


# -- what runs depends on nobody else -----------------------------------------------------


def test_a_prompt_draws_the_same_alone_and_among_others(mixtral):
    params = SamplingParams(temperature=1.3, max_tokens=9, n=3, top_p=0.95, logprobs=2)
    prompts = PROMPTS[:4]
    with open_llm(mixtral, least_memory(mixtral) * 5 // 4) as llm:
        llm.plan(workload(prompts * 3, 9))
        among = llm.generate(prompts, params)
        alone = [llm.generate([p], params)[0] for p in prompts]
    assert exactly(among) == exactly(alone)
    choices = [o.token_ids for o in among[1].outputs]
    assert [o.index for o in among[1].outputs] == [0, 1, 2]
    assert len(set(choices)) == 3


def test_equal_prompts_draw_differently_and_seeds_change_all(mixtral):
    params = SamplingParams(temperature=1.0, max_tokens=12, ignore_eos=True)
    with open_llm(mixtral) as llm:
        twins = token_ids(llm.generate([PROMPTS[0], PROMPTS[0]], params))
        again = token_ids(llm.generate([PROMPTS[0]], params))
        seeded = token_ids(llm.generate([PROMPTS[0]], replace(params, seed=4)))
    with open_llm(mixtral, seed=1) as llm:
        other = token_ids(llm.generate([PROMPTS[0]], params))
    assert twins[0] != twins[1]
    assert again[0] == twins[0]
    assert len({again[0], seeded[0], other[0]}) == 3


# -- disturbed ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def streaming(mixtral):
    """A session that streams, used by all tests that disturb it, and what it should answer."""
    before = lane_threads()
    with open_llm(mixtral, least_memory(mixtral) * 5 // 4, schedule="stream") as llm:
        policy_of(llm)
        yield llm, token_ids(answers_of(llm.session).values())
    assert lane_threads() <= before


def unharmed(llm, expected) -> None:
    """The session's blocks are all free and it still answers."""
    session = llm.session
    assert session.batcher.free_blocks == session.policy.kv_blocks
    assert not session.batcher.has_work
    assert token_ids(answers_of(session).values()) == expected
    assert session.batcher.free_blocks == session.policy.kv_blocks


@pytest.mark.parametrize("sweeps", range(6))
def test_a_run_can_be_left_at_any_sweep(streaming, sweeps):
    llm, expected = streaming
    requests = [Prompt(f"p{i}", p, greedy()) for i, p in enumerate(PROMPTS)]
    events = llm.session.run(iter(requests))
    for _ in range(sweeps):
        next(e for e in events if isinstance(e, SweepEnd))
    events.close()
    unharmed(llm, expected)


def test_a_consumer_that_is_interrupted_leaves_the_engine_usable(streaming):
    llm, expected = streaming

    def consume() -> None:
        requests = [Prompt(f"p{i}", p, greedy()) for i, p in enumerate(PROMPTS)]
        for count, event in enumerate(llm.session.run(iter(requests))):
            if count == 3 and isinstance(event, object):
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        consume()
    unharmed(llm, expected)


def test_what_was_finished_can_be_claimed_after_an_interruption(streaming):
    llm, expected = streaming
    requests = [Prompt(f"p{i}", PROMPTS[0], greedy(1)) for i in range(3)]
    events = llm.session.run(iter(requests))
    first = next(e for e in events if isinstance(e, Answered))
    events.close()
    keys = {first.prompt.key, *(e.prompt.key for e in llm.session.engine.unclaimed())}
    assert keys == set(keys)
    assert llm.session.engine.unclaimed() == []
    unharmed(llm, expected)


def test_prompts_that_fail_to_arrive_end_the_run(streaming):
    llm, expected = streaming

    def broken():
        yield Prompt("a", PROMPTS[0], greedy())
        raise OSError("input is gone")

    with pytest.raises(OSError, match="input is gone"):
        list(llm.session.run(broken()))
    unharmed(llm, expected)


@pytest.fixture(scope="module")
def trapped(mixtral):
    """A session whose bodies can be made to raise."""
    trap = Trap()
    with open_llm(mixtral, least_memory(mixtral) * 5 // 4, schedule="stream") as llm:
        policy_of(llm)
        with session_of(llm, machine=trap, schedule="stream") as session:
            yield trap, session, token_ids(answers_of(session).values())


@pytest.mark.parametrize("turn", [1, 7])
@pytest.mark.parametrize(
    "op", [Op.BIND, Op.READ_PAGE, Op.READ_ROWS, Op.ROUTER, Op.EXPERT, Op.SAMPLE, Op.COMMIT]
)
def test_a_body_that_raises_is_named_and_the_engine_goes_on(trapped, op, turn):
    trap, session, expected = trapped
    trap.set(op, turn, ValueError("sprung"))
    with pytest.raises(TaskError, match=rf"{op.value}.*sprung") as caught:
        answers_of(session)
    assert isinstance(caught.value.__cause__, ValueError)
    assert session.batcher.free_blocks == session.policy.kv_blocks
    assert token_ids(answers_of(session).values()) == expected


def test_closing_ends_every_thread_and_frees_the_memory(mixtral):
    before = lane_threads()
    with open_llm(mixtral, least_memory(mixtral) * 5 // 4, schedule="stream") as llm:
        llm.generate(PROMPTS[:2], greedy(2))
        assert len(lane_threads() - before) >= 3
        memory = weakref.ref(llm.session.arena._map)
        gc.disable()
        try:
            llm.use(llm.current_plan)  # closes the session
            assert memory() is None, "a reference cycle keeps the memory of a closed session"
        finally:
            gc.enable()
    assert lane_threads() <= before


def test_not_a_number_costs_its_request_only(mixtral):
    def poisoned(bodies, workspace, clock):
        def sample(task, views, sweep):
            if sweep.index == 3:
                views[Buffer("logits")][1].fill_(torch.nan)
            bodies[Op.SAMPLE](task, views, sweep)

        return lanes_as_threads({**bodies, Op.SAMPLE: sample}, workspace, clock)

    with open_llm(mixtral) as llm:
        policy_of(llm)
        with session_of(llm, schedule="resident") as session:
            expected = answers_of(session)
        with session_of(llm, machine=poisoned, schedule="resident") as session:
            requests = [Prompt(f"p{i}", tuple(p), greedy()) for i, p in enumerate(PROMPTS)]
            events = list(session.run(iter(requests)))
    (refused,) = [e for e in events if isinstance(e, Refused)]
    assert isinstance(refused.error, NumericsError)
    assert f"logits of request '{refused.prompt.key}' at generated token 2" in str(refused.error)
    assert "every stored weight is finite" in str(refused.error)
    answered = {e.prompt.key: e.output for e in events if isinstance(e, Answered)}
    assert answered == {k: v for k, v in expected.items() if k != refused.prompt.key}


@pytest.mark.parametrize("kernels", ["auto", "reference"])
@pytest.mark.parametrize("schedule", ["resident", "stream"])
def test_a_weight_that_is_no_number_is_named(mixtral, tmp_path, schedule, kernels):
    folder = shutil.copytree(mixtral, tmp_path / "model")
    checkpoint = Checkpoint.open(folder)
    entry = checkpoint.tensors["model.layers.1.block_sparse_moe.experts.3.w2.weight"]
    with checkpoint.files[entry.file].open("r+b") as file:
        file.seek(entry.offset + 2 * (entry.shape[1] * 5 + 7))
        file.write(b"\xc0\x7f")
    with open_llm(folder, kernels=kernels) as llm:
        policy_of(llm)
        with session_of(llm, schedule=schedule) as session:
            requests = [Prompt(f"p{i}", tuple(p), greedy(20)) for i, p in enumerate(PROMPTS)]
            events = list(session.run(iter(requests)))
    errors = [str(e.error) for e in events if isinstance(e, Refused)]
    assert errors, "no request visited the expert"
    assert len(errors) + sum(isinstance(e, Answered) for e in events) == len(PROMPTS)
    for error in errors:
        assert "experts.3.w2.weight (layer 1, expert 3) holds 1 NaN" in error
        assert "first at [5, 7]" in error


def test_all_choices_of_a_request_end_before_it_is_refused(mixtral):
    def poisoned(bodies, workspace, clock):
        def sample(task, views, sweep):
            if sweep.index == 2:
                views[Buffer("logits")][0].fill_(torch.inf)
            bodies[Op.SAMPLE](task, views, sweep)

        return lanes_as_threads({**bodies, Op.SAMPLE: sample}, workspace, clock)

    with open_llm(mixtral) as llm:
        policy_of(llm)
        with session_of(llm, machine=poisoned, schedule="resident") as session:
            prompt = Prompt("both", PROMPTS[0], greedy(5, n=2))
            events = [e for e in session.run(iter([prompt])) if not isinstance(e, SweepEnd)]
            assert [type(e) for e in events] == [Refused]
            assert answers_of(session, PROMPTS[:1], greedy(3))


def test_one_run_at_a_time(streaming):
    llm, expected = streaming
    first = llm.session.run(iter([Prompt("a", PROMPTS[0], greedy())]))
    next(first)
    with pytest.raises(UsageError, match="under way"):
        list(llm.session.run(iter([])))
    first.close()
    unharmed(llm, expected)


def test_a_run_ends_when_its_session_is_closed(mixtral):
    with open_llm(mixtral) as llm:
        policy_of(llm)
        session = llm.session
        events = session.run(iter([Prompt("a", PROMPTS[0], greedy())]))
        next(events)
        session.close()
        session.close()
        with pytest.raises(HeadraceError, match="closed"):
            list(events)
        with pytest.raises(UsageError, match="closed"):
            session.run(iter([]))


# -- events -------------------------------------------------------------------------------


def test_requests_that_cannot_run_are_refused_and_the_others_answered(streaming):
    llm, _ = streaming
    room = llm.session.policy.kv_blocks * llm.session.policy.kv_block
    requests = [
        Prompt("empty", (), greedy()),
        Prompt("fine", PROMPTS[0], greedy(2)),
        Prompt("full", (5,) * 256, greedy()),
        Prompt("long", (5,) * 3, greedy(room)),
    ]
    events = list(llm.session.run(iter(requests)))
    refused = {e.prompt.key: e.error for e in events if isinstance(e, Refused)}
    assert refused.keys() == {"empty", "full", "long"}
    assert refused["full"].code == "context_length_exceeded"
    assert [e.prompt.key for e in events if isinstance(e, Answered)] == ["fine"]


def test_more_prompts_than_fit_are_taken_as_places_become_free(streaming):
    llm, _ = streaming
    taken = []

    def prompts():
        for i in range(40):
            taken.append(i)
            yield Prompt(f"p{i}", PROMPTS[i % 6], greedy(2))

    events = llm.session.run(prompts())
    next(e for e in events if isinstance(e, SweepEnd))
    assert len(taken) < 40, "all input was read before the first sweep had ended"
    answered = [e for e in events if isinstance(e, Answered)]
    assert len(answered) == 40


def test_no_prompts_no_sweeps(streaming):
    llm, _ = streaming
    assert list(llm.session.run(iter([]))) == []


def test_pieces_of_text_make_the_answer(mixtral):
    with open_llm(mixtral) as llm:
        (whole,) = llm.generate([PROMPTS[1]], greedy(20))
        events = list(llm.session.run(iter([Prompt("k", PROMPTS[1], greedy(20))]), stream=True))
        pieces = [e.text for e in events if isinstance(e, Delta)]
        assert "".join(pieces) == whole.outputs[0].text
        assert len(pieces) > 5
        assert "".join(llm.stream(PROMPTS[1], greedy(20))) == whole.outputs[0].text
