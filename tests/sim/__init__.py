"""Simulation of the consensus core: worlds, storms, directed schedules, mutants."""
