"""IPv6 NAT for Docker containers, kept in step with the engine and shown on the system bus."""

__version__ = "0.1.0"
