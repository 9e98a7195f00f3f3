"""Pairs of answers to one prompt, the better one first, split by cluster."""
