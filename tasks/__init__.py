"""The stages of the pipeline, one folder each, and the benches that they share."""
