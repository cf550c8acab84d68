"""Fragment: one artefact into one deterministic, compressed slice of a tar, cached for ever."""
