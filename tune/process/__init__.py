"""Processes of trials: a supervisor for each, which outlives the tuner."""
