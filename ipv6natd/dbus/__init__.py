"""org.ipv6natd1 on the system bus, and the services that ipv6natd asks over it.

What is said there is made in `report`.
Read `members` first, then `service`.
"""
