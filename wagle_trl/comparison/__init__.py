"""Runs side by side.

[`~wagle_trl.comparison.runs`] reads their folders, [`~wagle_trl.comparison.tables`] and
[`~wagle_trl.comparison.figures`] show what they say, and [`~wagle_trl.comparison.document`] puts it into one Markdown
file.
"""
