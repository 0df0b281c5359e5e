"""Delivery of findings to their destinations, and of messages to the user."""
