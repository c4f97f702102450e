"""Nouns: frozen dataclasses for models, pages, hardware, workloads, policies and sampling."""
