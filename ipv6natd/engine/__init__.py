"""The Docker engine: its events and answers, where it listens, how its daemon is set up.

The names in its JSON end in `parse`. What follows from the facts is decided in `policy`.
Read `watcher` first.
"""
