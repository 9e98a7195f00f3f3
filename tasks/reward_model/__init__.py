"""Stage reward_model: preferences in, a Bradley-Terry scorer of answers out."""
