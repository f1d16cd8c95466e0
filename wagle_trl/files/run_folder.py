"""Names of the files that a run leaves in its folder."""

MANIFEST_FILE = "wagle_manifest.json"  # which of them belong together
MASK_FILE = "wagle_mask.safetensors"
PLOT_FILE = "wagle_mask.png"  # the mask, drawn
DELTA_FILE = "wagle_delta.safetensors"
REFERENCE_FILE = "wagle_reference.safetensors"  # what a model said of the rows to forget, in checkpoints
REPORT_FILE = "wagle_report.json"  # what a trainer did
EVALUATION_FILE = "wagle_eval.json"  # what `wagle eval` found
RECORDS_FILE = "wagle_records.jsonl"  # row by row
ATTACKS_FOLDER = "attacks"  # the same under each attack
PARTIAL_FILE = "wagle_records.partial.jsonl"  # of an evaluation that is not done
CARD_FILE = "README.md"  # what report and evaluation say to others
GENERATED_CARD_FILE = "README.generated.md"  # the same beside a card that was edited
KEY_FILE = "wagle_rows.key"  # by which digests of rows can be compared; never published
