"""Reading of saved runs."""
