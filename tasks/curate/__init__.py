"""Prompts from files and generators: normalised, deduplicated, split by cluster, bad rows set aside."""
