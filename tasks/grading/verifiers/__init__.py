"""The verifiers by name: pure functions of a rollout's text, the prompt's answer and parameters."""
