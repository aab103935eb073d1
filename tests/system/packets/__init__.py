"""Real packets through real rules, in front of a real engine."""
