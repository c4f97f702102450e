"""Policies that somebody wrote down: both forms, what follows, what is refused."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.errors import HeadraceError, UsageError
from headrace.planner.peaks import tier_peaks
from headrace.planner.policy_file import CLASSIC, Setting, read_policy
from headrace.schedule.generate import generate, next_phase
from headrace.schedule.lifetimes import peak_bytes
from headrace.specs.hardware import Hardware
from headrace.specs.pages import page_layout
from headrace.specs.policy import DEVICE_SCHEDULES, Policy
from headrace.specs.workload import Workload
from tests.planner.test_prices import MACHINE, MODEL

PAGES = page_layout(MODEL)
EXPERTS = [p for p in PAGES if p.expert is not None]
AT = Setting(MODEL, PAGES, MACHINE, Workload.uniform(100, 40, 25))
HOST_ONLY = Hardware("host", {k: v for k, v in MACHINE.roofs.items() if k[0] not in "gh"} | {
    "host": 1.0
})  # fmt: skip


def held_share(policy: Policy) -> float:
    return sum(p.id in policy.resident for p in EXPERTS) / len(EXPERTS)


def test_the_classic_form_becomes_rows_and_pages() -> None:
    written = {
        "batch_size": 90, "micro_batch_size": 36, "use_cpu_attention": True, "use_gpu_ffn": True,
        "weight_gpu_ratio": 0.25, "kv_cache_gpu_ratio": 0.0,
    }  # fmt: skip
    policy = read_policy(written, AT)
    assert (policy.schedule, policy.compute) == ("cgopipe", "device")
    assert (policy.max_seqs, policy.micro_batches) == (90, 3)
    assert held_share(policy) == pytest.approx(0.25)
    assert policy.ring_slots == 12  # six of eight experts in two layers
    assert policy.kv_blocks == 90 * 4
    assert policy.max_rows > 90  # prompts have room beside decodes


def test_where_the_classic_form_attends_chooses_the_schedule() -> None:
    there = read_policy(
        {"batch_size": 90, "use_cpu_attention": False, "kv_cache_gpu_ratio": 0.5}, AT
    )
    assert (there.schedule, there.kv_on_device) == ("flexgen", 0.5)
    here = read_policy({"batch_size": 90, "use_gpu_ffn": False}, AT)
    assert (here.schedule, here.compute) == ("resident", "host")
    assert len(here.resident) == len(PAGES)


def test_fields_by_name_with_shares_and_lists() -> None:
    policy = read_policy(
        {"schedule": "two_group", "max_seqs": 64, "max_rows": 96, "r_w": 0.5, "on_disk": 0.25,
         "pageable": False}, AT,
    )  # fmt: skip
    assert (policy.micro_batches, policy.max_rows, policy.stage_slots) == (2, 96, 4)
    assert held_share(policy) == 0.5
    assert len(policy.on_disk) == 11
    listed = read_policy({"max_seqs": 8, "resident": [0, 1], "cpu_experts": 0.2}, AT)
    assert {0, 1} < listed.resident  # and the final norm
    whole = {(p.layer, p.expert) for p in EXPERTS if p.id in listed.cpu_experts}
    assert len(whole) == round(0.2 * 88)
    assert read_policy({"max_seqs": 8}, AT, "flexgen").schedule == "flexgen"


def test_a_cpu_gets_a_policy_of_its_own() -> None:
    at = Setting(MODEL, PAGES, HOST_ONLY, AT.workload)
    policy = read_policy({"max_seqs": 16, "r_w": 0.3}, at)
    assert (policy.schedule, policy.compute, policy.ring_slots) == ("stream", "host", 4)
    with pytest.raises(UsageError, match="accelerator"):
        read_policy({"max_seqs": 16, "compute": "device"}, at)


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ([1, 2], "mapping"),
        ({}, "empty"),
        ({1: 2}, "mapping"),
        ({"max_seq": 4}, "max_seqs"),
        ({"max_seqs": 4, "batch_size": 4}, "two forms"),
        ({"max_seqs": 0}, "at least 1"),
        ({"max_seqs": "many"}, "whole number"),
        ({"max_seqs": True}, "whole number"),
        ({"max_seqs": 1 << 90}, "whole number"),
        ({"max_seqs": 10**5000}, "whole number"),
        ({"max_seqs": 4, "r_w": float("nan")}, "share"),
        ({"max_seqs": 4, "r_w": 1.5}, "share"),
        ({"max_seqs": 4, "r_w": 0.5, "resident": []}, "one of the two"),
        ({"max_seqs": 4, "resident": [-1]}, "page ids"),
        ({"max_seqs": 4, "resident": [10**6]}, "ids from 0"),
        ({"max_seqs": 4, "schedule": "warp"}, "cgopipe"),
        ({"max_seqs": 4, "schedule": 7}, "name"),
        ({"max_seqs": 4, "micro_batches": 10**6}, "at most 4096"),
        ({"max_seqs": 4, "r_c": 0.5}, "attends"),
        ({"max_seqs": 4, "pageable": "yes"}, "true or false"),
        ({"batch_size": 4, "micro_batch_size": 8}, "at most batch_size"),
        ({"batch_size": 4, "use_gpu_ffn": False, "use_cpu_attention": False}, "use_gpu_ffn"),
        ({"micro_batch_size": 8}, "batch_size"),
        ({"r_w": 0.5}, "max_seqs"),
    ],
)  # fmt: skip
def test_what_is_no_policy_is_refused_with_a_reason(written: object, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        read_policy(written, AT)


values = st.one_of(
    st.none(), st.booleans(), st.integers(-5, 70), st.floats(), st.text(max_size=5),
    st.sampled_from(DEVICE_SCHEDULES), st.lists(st.integers(-1, 200), max_size=3),
)  # fmt: skip
keys = st.sampled_from([*CLASSIC, *vars(read_policy({"max_seqs": 8}, AT)), "r_w", "r_c"])


@settings(max_examples=150, deadline=None)
@given(st.dictionaries(keys, values, max_size=5), st.integers(1, 20))
def test_anything_is_a_policy_or_an_error_of_ours(written: dict[str, object], seqs: int) -> None:
    first = "batch_size" if any(key in CLASSIC for key in written) else "max_seqs"
    try:
        policy = read_policy({first: seqs, **written}, AT)
    except HeadraceError:
        return
    assert isinstance(policy, Policy)


@pytest.mark.parametrize("schedule", DEVICE_SCHEDULES)
def test_peaks_are_those_of_the_buffers_that_schedules_touch(schedule: str) -> None:
    share = {"r_c": 0.4} if schedule == "flexgen" else {}
    policy = read_policy({"schedule": schedule, "max_seqs": 20, "micro_batches": 2, **share}, AT)
    first = generate(MODEL, PAGES, policy)
    wanted = peak_bytes([first, generate(MODEL, PAGES, policy, next_phase(PAGES, policy))])
    got = tier_peaks(MODEL, PAGES, policy, MACHINE)
    assert got["device"].planned_bytes == wanted["device"]
    host = got["host"].planned_bytes if "host" in got else 0
    assert host == wanted.get("host", 0) + wanted.get("pinned", 0)
    assert got["device"].capacity_bytes is None
