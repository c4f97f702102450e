"""Arithmetic without policy: the torch reference, and the native module."""
