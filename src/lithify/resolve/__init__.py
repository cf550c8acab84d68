"""Resolve: requirements into a lock of exact artefacts."""
