"""Runs: what one is (``spec``), where its record lies (``store``), who may train it (``locks``) and what made it (``provenance``)."""
