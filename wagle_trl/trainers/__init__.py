"""Trainers that update only the weights that a mask selects."""
