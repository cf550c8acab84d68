"""Conda channels as a source: resolving by rattler, exact packages, their addresses, their files."""
