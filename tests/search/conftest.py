"""Makes the model builders of this folder importable from the folders below it."""
