"""When and how rules are written: the loop, one pass, and the start without an engine.

`policy` decides which rules these are.
Read `reconciler` first, then `applier`.
"""
