"""What every package may use: threads, processes, files, logs, systemd, the terminal."""
