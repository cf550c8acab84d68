"""The local content store: an OCI image layout on disk, plus the caches."""
