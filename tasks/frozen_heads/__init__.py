"""A reward model of kind frozen: small heads fitted to stored states, cross-validated, with a learning curve."""
