"""What will train and with which advantage, and a ledger entry for every rollout."""
