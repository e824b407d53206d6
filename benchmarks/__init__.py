"""Programs that print a table, the opponent in the same run, and the bars as one JSON line last."""
