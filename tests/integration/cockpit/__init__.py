"""The page for Cockpit, in node and at a bridge."""
