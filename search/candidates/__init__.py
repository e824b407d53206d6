"""Finished quantizers per layer and precision: calibrated, corrected, refitted, assembled."""
