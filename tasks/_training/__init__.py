"""What both trainers share: packing, log-probabilities, LoRA, the update loop, checkpoints, the scalar head."""
