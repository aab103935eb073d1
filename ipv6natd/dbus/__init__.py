"""org.ipv6natd1 on the system bus, and the bus services that ipv6natd asks.

`report` makes the rows and sentences. Read `members` first, then `service`.
"""
