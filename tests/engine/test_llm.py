"""The offline interface: what users call, what it refuses, when it plans again."""

from __future__ import annotations

import shutil
from dataclasses import replace

import pytest

from headrace.engine.answers import Prompt
from headrace.engine.llm import LLM
from headrace.errors import BudgetError, LineError, ModelError, ParameterError, UsageError
from headrace.specs.sampling import SamplingParams
from headrace.specs.workload import Workload

from .engines import (
    PLENTY,
    PROMPTS,
    STOCK,
    greedy,
    lane_threads,
    least_memory,
    open_llm,
    token_ids,
    workload,
)


@pytest.fixture(scope="module")
def llm(mixtral):
    with open_llm(mixtral) as llm:
        yield llm


# -- generate, chat, stream ----------------------------------------------------------------


def test_text_and_token_ids_are_prompts_alike(llm):
    text = "Hello there"
    tokens = llm.encode(text)
    assert tokens[0] == llm.tokenizer.bos_id
    (by_text,) = llm.generate(text, greedy())
    (by_tokens,) = llm.generate(list(tokens), greedy())
    assert by_text.outputs == by_tokens.outputs
    assert (by_text.prompt, by_tokens.prompt) == (text, None)
    assert by_text.prompt_token_ids == tokens
    assert by_text.outputs[0].text == llm.tokenizer.decode(by_text.outputs[0].token_ids)


def test_outputs_come_in_the_order_of_the_prompts(llm):
    lengths = [5, 1, 3, 2, 4, 1]
    outputs = llm.generate(PROMPTS, [greedy(n) for n in lengths])
    assert [o.prompt_token_ids for o in outputs] == PROMPTS
    assert [len(o.outputs[0].token_ids) for o in outputs] == lengths
    assert {o.outputs[0].finish_reason for o in outputs} == {"length"}
    assert llm.generate([], greedy()) == []


def test_chat_goes_through_the_template(llm):
    messages = [{"role": "user", "content": "hi"}]
    tokens = llm.encode(messages)
    assert "<|assistant|>" in llm.tokenizer.decode(tokens, skip_special_tokens=False)
    (one,) = llm.chat(messages, greedy())
    (same, _) = llm.chat([messages, messages], greedy())
    assert one.outputs == same.outputs
    assert one.prompt_token_ids == tokens
    assert "".join(llm.stream(messages, greedy())) == one.outputs[0].text


def test_defaults_are_sixteen_drawn_tokens(llm):
    (output,) = llm.generate([PROMPTS[0]])
    assert 1 <= len(output.outputs[0].token_ids) <= 16


def test_stop_strings_end_across_tokens(llm):
    (whole,) = llm.generate([PROMPTS[2]], greedy(12))
    text = whole.outputs[0].text
    stop = text[4:6]
    (cut,) = llm.generate([PROMPTS[2]], greedy(12, stop=("\x00never", stop)))
    (choice,) = cut.outputs
    assert choice.text == text[: text.index(stop)]
    assert (choice.finish_reason, choice.stop_reason) == ("stop", stop)
    assert len(choice.token_ids) < 12
    assert "".join(llm.stream(PROMPTS[2], greedy(12, stop=(stop,)))) == choice.text


def test_end_tokens_count_unless_ignored_and_min_tokens_hold_them_off(llm):
    ends = dict.fromkeys(llm.tokenizer.eos_ids, 100.0)
    eager = SamplingParams(temperature=0.0, max_tokens=5, logit_bias=ends)
    (early,) = llm.generate([PROMPTS[0]], eager)
    assert early.outputs[0].finish_reason == "stop"
    assert early.outputs[0].token_ids == tuple(ends)[:1]
    assert early.outputs[0].text == ""
    (later,) = llm.generate([PROMPTS[0]], replace(eager, min_tokens=3))
    assert len(later.outputs[0].token_ids) == 4
    (never,) = llm.generate([PROMPTS[0]], replace(eager, ignore_eos=True))
    assert (len(never.outputs[0].token_ids), never.outputs[0].finish_reason) == (5, "length")


def test_log_probabilities_rank_the_drawn_token_first_when_greedy(llm):
    (output,) = llm.generate([PROMPTS[3]], greedy(4, logprobs=3))
    (choice,) = output.outputs
    assert len(choice.logprobs) == 4
    for token, entries in zip(choice.token_ids, choice.logprobs, strict=True):
        assert next(iter(entries)) == token
        assert (entries[token].rank, len(entries)) == (1, 3)
        values = [e.logprob for e in entries.values()]
        assert values == sorted(values, reverse=True)
    total = sum(e[t].logprob for t, e in zip(choice.token_ids, choice.logprobs, strict=True))
    assert choice.cumulative_logprob == pytest.approx(total)


def test_without_max_tokens_an_answer_ends_with_the_context(mixtral):
    with open_llm(mixtral, max_model_len=20) as llm:
        params = SamplingParams(temperature=0.0, max_tokens=None, ignore_eos=True)
        (output,) = llm.generate([PROMPTS[0]], params)
        assert len(output.outputs[0].token_ids) == 20 - len(PROMPTS[0])
        with pytest.raises(LineError, match="fills the context"):
            llm.generate([PROMPTS[3]], params)


# -- refusals ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("prompts", "params", "error", "words"),
    [
        ([(5, 101)], None, ParameterError, "token id"),
        ([(-1,)], None, ParameterError, "token id"),
        ([()], None, LineError, "no tokens"),
        ([(5,)], [greedy(), greedy()], UsageError, "sampling parameters"),
        ([(5,)], SamplingParams(stop_token_ids=(101,)), ParameterError, "stop_token_ids"),
        ([(5,) * 300], None, LineError, "context"),
    ],
)
def test_what_cannot_run_is_refused_before_any_work(mixtral, prompts, params, error, words):
    with open_llm(mixtral) as llm:
        with pytest.raises(error, match=words):
            llm.generate(prompts, params)
        assert llm._session is None


def test_a_budget_that_cannot_work_names_one_that_does(mixtral):
    """Law 9: and what was planned is what is used."""
    least = least_memory(mixtral)
    with open_llm(mixtral, least - 1) as llm:
        with pytest.raises(BudgetError) as refused:
            llm.generate(PROMPTS, greedy())
        assert refused.value.smallest_bytes == least
        assert f"--memory {least}" in refused.value.hint
        assert not lane_threads() or llm._session is None
    with open_llm(mixtral, least) as llm:
        plan = llm.plan(workload())
        assert len(llm.generate(PROMPTS, greedy())) == len(PROMPTS)
        assert llm.current_plan is plan
        assert llm.session.arena.used == llm.session.arena.capacity_bytes
        assert llm.session.arena.used == plan.memory.arena_bytes <= least


def test_a_stream_has_one_choice(llm):
    with pytest.raises(UsageError, match="choices"):
        next(llm.stream(PROMPTS[0], greedy(2, n=2)))


def test_folders_that_are_no_checkpoint_and_contexts_beyond_the_model_are_refused(
    mixtral, tmp_path
):
    with pytest.raises(ModelError, match="no such checkpoint folder"):
        LLM(tmp_path / "nowhere")
    with pytest.raises(ModelError):
        LLM(tmp_path)
    for most in (0, 257):
        with pytest.raises(UsageError, match="max_model_len"):
            LLM(mixtral, max_model_len=most)


def test_there_is_no_plan_before_there_is_one(mixtral):
    with open_llm(mixtral) as llm:
        for ask in (lambda: llm.current_plan, llm.stored_plan, llm.new_record, lambda: llm.session):
            with pytest.raises(UsageError, match="no plan"):
                ask()


# -- plans ---------------------------------------------------------------------------------


def test_a_plan_of_its_own_grows_with_the_prompts(mixtral):
    with open_llm(mixtral) as llm:
        llm.generate([PROMPTS[0]], greedy(2))
        small = llm.current_plan
        llm.generate([PROMPTS[1]], greedy(2))
        assert llm.current_plan is small
        llm.generate(PROMPTS, greedy(2))
        assert llm.current_plan.policy.max_seqs > small.policy.max_seqs


def test_a_plan_that_was_asked_for_stays_unless_a_prompt_does_not_fit_it(mixtral):
    with open_llm(mixtral, least_memory(mixtral)) as llm:
        plan = llm.plan(Workload.uniform(1, 4, 4))
        llm.generate([p[:4] for p in PROMPTS], greedy(4))
        assert llm.current_plan is plan
        long = plan.policy.kv_blocks * plan.policy.kv_block
        llm.generate([PROMPTS[0]], greedy(long))
        assert llm.current_plan is not plan


def test_a_stored_plan_is_kept_while_it_fits(mixtral):
    least = least_memory(mixtral)
    with open_llm(mixtral, least * 5 // 4) as llm:
        plan, stored = llm.plan(workload()), llm.stored_plan()
    fewer = workload(PROMPTS[:3])
    with open_llm(mixtral, least * 5 // 4) as llm:
        kept = llm.plan(fewer, stored)
        assert kept.policy == plan.policy
        assert kept.memory == plan.memory
        assert kept.on_demand_rows == plan.on_demand_rows
        assert "kept" in kept.notes[-1]
        assert kept.prediction.gen_tokens < plan.prediction.gen_tokens
        assert llm.plan(workload(PROMPTS * 2), stored).notes[-1] != kept.notes[-1]
        assert llm.plan(workload(tokens=200), stored).notes[-1] != kept.notes[-1]
        for damaged in (None, [], {}, {**stored, "policy": {}}, {**stored, "requests": "x"}):
            assert llm.plan(fewer, damaged).notes[-1] != kept.notes[-1]
    for change in ({"memory": PLENTY}, {"max_seqs": 2}, {"schedule": "stream"}):
        with open_llm(mixtral, **{"memory": least * 5 // 4, **change}) as llm:
            assert llm.plan(fewer, stored).notes[-1] != kept.notes[-1]


def test_few_rows_read_routed_experts_only(mixtral):
    """``stream`` while prompts are read, ``on_demand`` for the few that are left."""
    with open_llm(mixtral, least_memory(mixtral) * 5 // 4) as llm:
        llm.use(replace(llm.plan(workload(tokens=9)), on_demand_rows=3))
        record = llm.new_record(keep_traces=True)
        lengths = (1, 2, 2, 3, 9, 9)
        each = zip(PROMPTS, lengths, strict=True)
        requests = [Prompt(f"p{i}", p, greedy(n)) for i, (p, n) in enumerate(each)]
        list(llm.events(requests, record))
        for trace in record.traces:
            few = trace.sweep.batch.rows <= 3
            assert trace.schedule.name == ("on_demand" if few else "stream")
        assert {t.schedule.name for t in record.traces} == {"on_demand", "stream"}


# -- identity ------------------------------------------------------------------------------


def test_a_signature_holds_all_that_results_depend_on(mixtral, checkpoint_of):
    def signature(folder=mixtral, defaults=(("max_tokens", 9),), **settings):
        with open_llm(folder, **settings) as llm:
            return llm.signature(dict(defaults))

    base = signature()
    assert signature() == base
    assert signature(memory=1) == base, "a budget changes no result"
    for other in (
        signature(seed=1),
        signature(kv_dtype="f16"),
        signature(max_model_len=99),
        signature(defaults=(("max_tokens", 8),)),
        signature(checkpoint_of("llama-gqa")),
    ):
        assert other != base
    torch_base = signature(kernels="reference")
    assert signature(kernels="reference", threads=2) != torch_base
    if base["numerics"].startswith("native"):
        assert torch_base != base
        assert signature(threads=2) == base, "native results depend on no thread count"


def test_sampling_defaults_are_the_checkpoints(mixtral, tmp_path):
    folder = shutil.copytree(mixtral, tmp_path / "m")
    (folder / "generation_config.json").write_text(
        '{"temperature": 0.6, "top_k": 5, "top_p": null, "do_sample": true, "eos_token_id": [2, 9]}'
    )
    with open_llm(folder) as llm:
        assert llm.sampling_defaults(7) == {"temperature": 0.6, "top_k": 5, "max_tokens": 7}
        assert llm.tokenizer.eos_ids == {2, 9}
        params = SamplingParams(temperature=0.0, max_tokens=5, allowed_token_ids=(9,))
        assert token_ids(llm.generate([PROMPTS[0]], params)) == [(9,)]


def test_sampling_defaults_that_no_run_could_use_are_refused_once(mixtral, tmp_path):
    folder = shutil.copytree(mixtral, tmp_path / "m")
    (folder / "generation_config.json").write_text('{"top_k": -1}')
    with open_llm(folder) as llm:
        assert llm.sampling_defaults(7) == {"top_k": 0, "max_tokens": 7}
    (folder / "generation_config.json").write_text('{"temperature": -1}')
    with open_llm(folder) as llm, pytest.raises(ModelError, match="generation_config"):
        llm.sampling_defaults(7)


@pytest.mark.parametrize("none", [{"threads": 0}, {"max_seqs": 0}, {"max_rows": 0}])
def test_nothing_at_all_is_refused_not_replaced(mixtral, none):
    with pytest.raises(UsageError, match=f"{next(iter(none))}.*1 or more"):
        LLM(mixtral, **none)


def test_the_default_budget_leaves_room_for_what_is_loaded(mixtral):
    with LLM(mixtral, hardware=STOCK) as llm:
        assert llm.budget > 0
        assert llm.threads >= 1


def test_closing_twice_is_fine(mixtral):
    llm = open_llm(mixtral)
    llm.generate([PROMPTS[0]], greedy(1))
    llm.close()
    llm.close()
