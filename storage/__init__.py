"""Artifacts, their records, and the stores and catalogues that hold them."""
