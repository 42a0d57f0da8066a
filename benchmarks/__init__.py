"""Benchmarks: counts first, seconds second."""
