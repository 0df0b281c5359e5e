"""Rules over the profile: what training waits for, and how well it uses the machine."""
