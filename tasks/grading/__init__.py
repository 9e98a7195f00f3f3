"""Grades of rollouts by verifiers and reward models, and their weighted composite."""
