"""The Prefect flows, the command line and the whole configuration."""
