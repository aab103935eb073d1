"""The page for Cockpit in a browser."""
