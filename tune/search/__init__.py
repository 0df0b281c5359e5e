"""The search of a job: which values are tried, which trials are stopped early, and when enough was found."""
