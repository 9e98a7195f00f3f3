"""Formulas that stages share: arrays and tensors in, the same out. Imports none of our rooms."""
