"""Names of the files in the folder of a run."""

MANIFEST_FILE = "wagle_manifest.json"  # which files belong together
MASK_FILE = "wagle_mask.safetensors"
PLOT_FILE = "wagle_mask.png"  # plot of the mask
DELTA_FILE = "wagle_delta.safetensors"
REFERENCE_FILE = (
    "wagle_reference.safetensors"  # log-probabilities of the forget rows under the reference, in checkpoints
)
STATES_FILE = "wagle_reference_states.safetensors"  # last hidden states of rows under the reference
REPORT_FILE = "wagle_report.json"  # report of a trainer
EVALUATION_FILE = "wagle_eval.json"  # results of `wagle eval`
RECORDS_FILE = "wagle_records.jsonl"  # results of `wagle eval` per row
ATTACKS_FOLDER = "attacks"  # records under each attack
PARTIAL_FILE = "wagle_records.partial.jsonl"  # records of an unfinished evaluation
ALTERNATES_FILE = "wagle_alternates.jsonl"  # results of `wagle alternates` per row, also of an unfinished one
ALTERNATE_ROWS_FILE = "forget.jsonl"  # forget rows with their alternates
TUNED_RUNS_FILE = "wagle_runs-{key}.jsonl"  # runs of a tuning, by what they depend on
MASKS_FOLDER = "masks"  # masks that the runs of a tuning share
BEST_FILE = "best.yaml"  # options of the best of them
CARD_FILE = "README.md"  # model card
GENERATED_CARD_FILE = "README.generated.md"  # model card beside one that was edited
KEY_FILE = "wagle_rows.key"  # secret key of digests of rows; never published
