"""Stage reward_check: how far a reward model can be trusted, on pairs that it wasn't trained on."""
