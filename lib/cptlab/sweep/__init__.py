"""Bringing runs about: a grid of them, the scheduler, worker processes, and the tables of what came of it."""
