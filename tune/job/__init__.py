"""The tuning job: parameters, metrics, limits, and the command of a trial."""
