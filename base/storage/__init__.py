"""Files and records that others wrote, and files that are replaced as a whole."""
