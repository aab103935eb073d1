"""What people and programs read: status, explanations, metrics, checks."""
