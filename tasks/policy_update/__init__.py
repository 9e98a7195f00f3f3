"""Stage policy_update: trajectories and a policy in, the next policy out."""
