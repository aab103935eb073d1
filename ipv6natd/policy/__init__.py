"""Which rules the containers and networks need: from facts to rules.

Pure. How facts are read is in `engine` and `host`; when rules are written is in `sync`.
Read `desired` first, then `ruleset`.
"""
