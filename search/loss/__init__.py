"""What a changed output costs, per kind of output and per sample."""
