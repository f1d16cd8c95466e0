"""Runs side by side.

[`~wagle_trl.comparison.runs`] reads their folders, [`~wagle_trl.comparison.tables`] and
[`~wagle_trl.comparison.figures`] show their numbers, and [`~wagle_trl.comparison.document`] writes one Markdown file.
"""
