"""IPv6 NAT for Docker containers, in sync with the engine, with a service on the system bus."""

__version__ = "0.1.0"
