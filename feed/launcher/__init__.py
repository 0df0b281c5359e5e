"""Start one script on groups of hosts, and end all of them in every way in which the job can end."""
