"""Use: what is done with an image in the store (run, list, inspect, export)."""
