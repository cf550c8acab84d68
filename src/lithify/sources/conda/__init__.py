"""conda packages: from an artefact to files at their final places, by link rules of our own."""
