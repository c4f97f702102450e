"""Requests in, tokens out: sampling, text, the loop of sweeps, durable batch jobs."""
