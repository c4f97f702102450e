"""What is priced before pages are chosen is what is priced, and fits, afterwards."""

from __future__ import annotations

import pytest
from planner.test_search import JOB, MODEL, PAGES, situation

from headrace.planner.device_fit import Choice, Fitter
from headrace.planner.device_pages import placed
from headrace.planner.job_estimate import JobShape, course_of
from headrace.planner.prices import DevicePrices, price
from headrace.planner.simulate import FewRows, job_seconds
from headrace.planner.sweeps import Load
from headrace.planner.tabulated import Tabulated
from headrace.specs.workload import Workload

CHOICES = (
    Choice("cgopipe", 20, 60, 3),
    Choice("cgopipe", 20, 60, 3, beside=True),
    Choice("two_group", 20, 60, 2, beside=True),
    Choice("flexgen", 20, 60, 2),
    Choice("flexgen", 20, 60, 1, kv_on_device=1.0, held=False),
    Choice("flexgen_c", 20, 60, 2),
    Choice("fastdecode", 20, 60, 2),
    Choice("one_by_one", 20, 60, 2),
    Choice("resident", 20, 60, 1),
)


def priced(choice: Choice, host: int = 200_000_000):
    device = 100_000_000 if choice.schedule == "resident" else 24_000_000
    fitter = Fitter(situation(device, host))
    fit = fitter.fit(choice)
    assert fit is not None
    policy = placed(fitter, fit)
    assert policy is not None
    prices = price(MODEL, PAGES, policy, fitter.at.hardware)
    assert isinstance(prices, DevicePrices)
    return fitter, fit, policy, prices


@pytest.mark.parametrize(
    "choice", CHOICES, ids=lambda c: f"{c.schedule}-{c.beside}-{c.kv_on_device}"
)
@pytest.mark.parametrize("host", [200_000_000, 40_000_000], ids=["memory", "disk"])
def test_shares_cost_what_the_pages_cost(choice, host):
    fitter, fit, policy, prices = priced(choice, host)
    assert fitter.map_of(policy).fits
    for load in (Load(20, 20 * 30, samples=20), Load(10, 10 * 30, 40, 30, 12)):
        before = fitter.sweep_seconds(fit.policy, fit.split, load)
        # room is kept for rounding to 48 pages, and to whole experts; the pages then fill it
        most = 1.6 if choice.beside else 1.12
        assert 0.95 * prices.estimate(load) <= before <= most * prices.estimate(load)


@pytest.mark.parametrize("choice", CHOICES[:6], ids=lambda c: f"{c.schedule}-{c.beside}")
def test_kinds_of_tasks_are_those_of_the_sketch(choice):
    _, _, policy, prices = priced(choice, 40_000_000)
    drawn = {kind for row in prices._drawn for sketch in row for kind in sketch.counts}
    assert drawn <= set(prices._kinds)
    totals = prices._costs.of(Load(20, 600, samples=20), set(prices._kinds) - drawn)
    assert not any(total.tasks for total in totals.values()), policy


def test_a_table_of_prices_is_close_to_the_prices():
    fitter, _, policy, prices = priced(CHOICES[1])
    loads = (Load(17, 17 * 23, samples=17), Load(13, 13 * 41, 37, 29, 14), Load(0, 0, 55, 30, 2))
    for load in loads:
        table = Tabulated(prices, (load,))
        assert table.closed.seconds(load) == pytest.approx(prices.estimate(load), rel=0.01)
        assert table.seconds(load) == pytest.approx(prices.played(load).steady, rel=0.01)
        assert table.bound(load) <= table.seconds(load)
        assert table.lanes(load)["gpu"] == pytest.approx(prices.lanes(load)["gpu"], rel=0.01)
    quick = Tabulated(prices, course_of(fitter.job, policy).loads)
    whole = job_seconds(FewRows(prices), JOB, 10**9)
    assert job_seconds(FewRows(quick), JOB, 10**9) == pytest.approx(whole, rel=0.05)


@pytest.mark.parametrize("requests", [10, 40, 400])
def test_the_course_of_a_job_draws_all_of_its_tokens(requests):
    job = Workload.uniform(requests, 30, 16)
    policy = Fitter(situation(job=job)).skeleton(CHOICES[0])
    course = course_of(JobShape.of(job, 38), policy)
    drawn = sum(
        count * load.decodes
        for count, load in (
            (course.sweeps, course.steady),
            (course.fill_sweeps, course.filling),
            (course.empty_sweeps, course.emptying),
        )
    )
    assert drawn == pytest.approx(job.gen_tokens, rel=0.15)
