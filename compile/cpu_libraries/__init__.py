"""Libraries of compiled CPU code in Inductor's cache."""
