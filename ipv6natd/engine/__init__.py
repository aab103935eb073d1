"""The Docker engine: its events and responses, its address, and the options of its daemon.

Only `parse` knows the names in Docker's JSON. `policy` decides what follows from the facts.
Read `watcher` first.
"""
