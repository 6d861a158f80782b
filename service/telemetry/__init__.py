"""Metrics, logs, traces and the timings of stages."""
