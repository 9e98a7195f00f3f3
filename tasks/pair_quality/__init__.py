"""Which labels of a preference set are likely wrong: to be flipped, smoothed or dropped by any training."""
