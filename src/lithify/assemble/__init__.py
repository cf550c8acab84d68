"""Assemble: fragments, the plan and the steps' layers into an image in the store."""
