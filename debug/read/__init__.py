"""Readers of saved runs."""
