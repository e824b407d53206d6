"""How much the loss grows when a layer uses a candidate: one interface, several metrics."""
