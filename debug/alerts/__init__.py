"""Delivery of findings and notices."""
