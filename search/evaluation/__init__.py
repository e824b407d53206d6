"""What allocations really cost and lose: built, run, measured, and one of them chosen."""
