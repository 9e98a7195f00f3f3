"""The prompts of one iteration, drawn evenly from the pool, and the fixed held-out batch."""
