"""Every hook that debug registers on modules and optimizers."""
