"""Unlearning trainers, one file per objective."""
