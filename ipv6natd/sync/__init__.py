"""When rules are written, and how: the loop, one pass, and what happens without an engine.

Which rules are written is decided in `policy`.
Read `reconciler` first, then `applier`.
"""
