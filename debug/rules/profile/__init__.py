"""Rules over the profile: waiting times of training, and its use of the machine."""
