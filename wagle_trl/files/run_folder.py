"""Names of the files in the folder of a run."""

MANIFEST_FILE = "wagle_manifest.json"  # which files belong together
MASK_FILE = "wagle_mask.safetensors"
PLOT_FILE = "wagle_mask.png"  # plot of the mask
DELTA_FILE = "wagle_delta.safetensors"
REFERENCE_FILE = (
    "wagle_reference.safetensors"  # log-probabilities of the forget rows under the reference, in checkpoints
)
REPORT_FILE = "wagle_report.json"  # report of a trainer
EVALUATION_FILE = "wagle_eval.json"  # results of `wagle eval`
RECORDS_FILE = "wagle_records.jsonl"  # results of `wagle eval` per row
PARTIAL_FILE = "wagle_records.partial.jsonl"  # records of an unfinished evaluation
CARD_FILE = "README.md"  # model card
KEY_FILE = "wagle_rows.key"  # secret key of digests of rows; never published
