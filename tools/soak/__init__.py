"""A long test of everything that may go wrong around a job: ``python -m tools.soak``."""
