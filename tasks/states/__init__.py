"""Frozen middle-layer states of the answers of a preference set, kept so that refitting heads costs seconds."""
