"""How many experts some tokens visit: what decides which weights a sweep must read at all."""

from __future__ import annotations

CORRELATED = 0.65
"""Exponent under which the formula below met measured decode steps on an A100: tokens of one
batch are alike, and n of them visit as many experts as n^0.65 independent ones."""


def visit_chance(experts: int, top_k: int, tokens: float, exponent: float = 1.0) -> float:
    """Chance that an expert gets any of ``tokens`` tokens: 1 - (1 - k/E)^(n^exponent).

    ``exponent`` 1 is independent, uniform routing.
    """
    if tokens <= 0:
        return 0.0
    return float(1.0 - (1.0 - top_k / experts) ** (tokens**exponent))


def expected_distinct(experts: int, top_k: int, tokens: float, exponent: float = 1.0) -> float:
    """Expected number of distinct experts that ``tokens`` tokens visit in one layer."""
    return experts * visit_chance(experts, top_k, tokens, exponent)
