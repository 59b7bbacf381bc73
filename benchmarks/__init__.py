"""Measurements, side by side with stock Flower or with the floor; no assertions on time."""
