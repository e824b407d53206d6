"""Which candidate each layer gets: the integer linear program, its bound, the Pareto front, interactions."""
