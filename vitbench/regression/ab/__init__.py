"""Two states of a repository timed against each other while both run: ``vitbench ab``."""
