"""Rules, chains and tables as values, and their text."""
