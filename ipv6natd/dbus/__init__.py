"""org.ipv6natd1 on the system bus, and the services that are asked over it."""
