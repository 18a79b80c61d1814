"""What the firewall finds, what it costs, and how that was measured. `python -m benchmarks --help`."""
