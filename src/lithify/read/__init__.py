"""Read: what a person wrote (``lithify.toml``, requirement files, settings), checked and turned into values."""
