"""Samples of the policy on a batch of prompts, with the engine's log-probabilities."""
