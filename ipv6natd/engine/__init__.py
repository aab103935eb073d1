"""The Docker engine: its events, its JSON, where it listens."""
