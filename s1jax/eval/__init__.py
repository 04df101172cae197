"""Evaluation runs, statistics, the three figures of test-time scaling, and their report."""
