"""Names of the files that a run leaves in its folder."""

REPORT_FILE = "wagle_report.json"  # what a trainer did
EVALUATION_FILE = "wagle_eval.json"  # what `wagle eval` found
CARD_FILE = "README.md"  # what both say to others
REFERENCE_FILE = "wagle_reference.safetensors"  # what a model said of the rows to forget, in checkpoints
