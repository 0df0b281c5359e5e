"""Rules of the preflight: faults that show before training begins.  ``loopwise.debug.preflight`` detects them."""

from ..finding import Rule


def preflight_rule(severity: str, advice: str) -> Rule:
    """Return a rule without a function of its own, because the preflight detects its faults."""
    return Rule(None, severity, advice, source="preflight")
