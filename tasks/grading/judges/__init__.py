"""Grading by a language model: a rubric, pairs, or a scale against a reference."""
