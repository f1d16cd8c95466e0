"""Trainers whose updates are restricted to a mask."""
