"""Benchmarks, statistics, the three figures of test-time scaling, and their report."""
