"""Exact ranking over a task's candidates, metrics, slices, intervals and the report."""
