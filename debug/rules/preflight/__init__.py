"""Rules of the preflight: faults that show before training begins.  ``loopwise.debug.preflight`` detects them."""
