"""What options are for, in few words, by group: the texts that the short help of several commands shares."""

Group = dict[str, str]  # option or argument -> what it is for

DATA: Group = {
    "--model_name_or_path": "Model to start from: a Hub name or a folder.",
    "--forget_dataset": "Rows to forget: a Hub name, a folder, or a JSON, JSON lines, CSV, Parquet, Arrow or text file "
    "with prompt/completion, question/answer, messages, text, or input_ids/labels.",
    "--retain_dataset": "Rows to keep, in the same forms.",
    "--unseen_dataset": "Rows to keep that are measured but not trained on, in the same forms.",
    "--tofu_split": "Instead of rows of your own: forget01, forget05 or forget10 of TOFU, and its retain rows.",
    "--tofu_dir": "Folder with TOFU's full.jsonl, instead of the Hub.",
    "--max_length": "Longest row in tokens.",
    "--long_rows": "What to do with longer rows: truncate, split or refuse.",
}
MASK: Group = {
    "--mask": "auto computes a mask, none trains all weights, anything else is the path of a saved mask (default: auto).",
    "--mask_score": "wagle, gradient, snip, product, magnitude, random, ratio or fisher_ratio (default: wagle).",
    "--mask_density": "Share of the weights in scope to select (default: 0.05).",
    "--mask_scope": "Patterns of parameter names to choose from; by default all but embeddings and LM head.",
    "--mask_exclude": "Patterns of parameter names to leave out.",
}
OBJECTIVES: Group = {
    "npo": "Negative preference optimization: ascent with a bound (arXiv 2404.05868)",
    "graddiff": "Gradient difference: ascent on forget rows, descent on retain rows (arXiv 2203.12817)",
    "gradient_ascent": "Gradient ascent on the forget rows alone, as a baseline (arXiv 2210.01504)",
    "simnpo": "NPO with the mean over an answer's tokens and without a reference (arXiv 2410.07163)",
    "wga": "Gradient ascent, each token weighted by its probability (arXiv 2502.19301)",
    "satimp": "Gradient ascent, tokens weighted by saturation and importance (arXiv 2505.11953)",
    "ceu": "Cross-entropy unlearning, as unlikelihood training (arXiv 2503.01224)",
    "uce": "Unlearning cross-entropy: ascent that stops by itself (arXiv 2412.20200)",
    "ihl": "Inverted hinge loss: the likeliest other token takes over (arXiv 2408.06621)",
    "tnpo": "NPO with a weight for each token (arXiv 2502.19301)",
    "wtnpo": "tnpo, each token also weighted by its probability (arXiv 2502.19301)",
    "po": "Learn to refuse; needs --refusals (arXiv 2401.06121)",
    "idkdpo": "DPO that prefers refusals to the answers; needs --refusals (arXiv 2404.05868)",
    "altpo": "DPO that prefers other answers, of wagle alternates (arXiv 2409.13474)",
    "idk_ap": "Refuse the forget rows but not the retain rows; needs --refusals (arXiv 2410.08109)",
    "undial": "Self-distillation with the logits of the answer's tokens lowered (arXiv 2402.10052)",
    "me": "Maximum entropy: towards equal probabilities of all tokens (arXiv 2410.08109)",
    "pdu": "Equal logits of all tokens under a bound on the retain loss (arXiv 2506.05314)",
}
UNLEARNING: Group = {
    "--forget_weight": "Weight of the loss on the forget rows (default: 1.0).",
    "--retain_weight": "Weight of the loss on the retain rows; with 0 they take no part (default: 20.0).",
    "--retain_loss": "nll, kl to the model before, or answer_preservation (default: nll).",
    "--preservation_beta": "Inverse temperature of answer_preservation (default: 0.1).",
    "--reference_states": "Where distributions before unlearning come from: auto, swap or stored (default: auto).",
    "--refusals": "File with refusals, one per line; a column alternate of the rows goes first.",
    "--trajectory_steps": "Steps between two measurements of the answer probabilities; 0 measures nothing.",
    "--stop_forget_probability": "End at this forget probability, once retain is back; 0: never (default: 0.1).",
    "--stop_retain_probability": "Share of the first retain probability that must be back (default: 0.97).",
    "--stop_patience": "Measurements without movement that end the run (default: 10).",
    "--metric_for_best_model": "kept, with --load_best_model_at_end: the best of those that forgot.",
}
TRAINING: Group = {
    "--output_dir": "Folder for the model, the mask and the report.",
    "--learning_rate": "Initial learning rate.",
    "--num_train_epochs": "Passes over the rows.",
    "--max_steps": "Steps to train, instead of epochs.",
    "--per_device_train_batch_size": "Rows per batch.",
    "--gradient_accumulation_steps": "Batches per step.",
    "--warmup_steps": "Steps over which the learning rate rises.",
    "--seed": "Seed of the order of the rows and of dropout.",
    "--logging_steps": "Steps between two lines of the log.",
    "--eval_strategy": "no, steps or epoch: when to evaluate on all sets.",
    "--save_strategy": "no, steps or epoch: when to save checkpoints, from which an interrupted run goes on.",
    "--resume_from_checkpoint": "true for the last whole checkpoint in output_dir, or the folder of one.",
    "--report_to": "Tracker: tensorboard, trackio, wandb or none.",
}
UNLEARNING_LENGTH: Group = {
    "--learning_rate": "Peak learning rate; by default chosen by what trains (all weights, a mask or adapters) and the "
    "width of the model.",
    "--num_train_epochs": "Passes over the forget rows; by default as many as make 200 steps, and at least 5.",
}
MEMORY: Group = {
    "--dtype": "Dtype to load the weights in: auto, bfloat16, float16 or float32.",
    "--optim": "adamw_8bit holds the moments of selected weights in 8 bits.",
    "--gradient_checkpointing": "Compute activations again in the backward pass (default: True).",
    "--attribution_memory": "Where attribution keeps its statistics: auto, resident, offload, host or sweeps "
    "(default: auto).",
    "--accumulator_dtype": "bfloat16 halves the memory of the gradients (default: float32).",
    "--use_peft": "Train adapters; --lora_r, --lora_alpha and --lora_target_modules say which.",
}
PUBLISHING: Group = {
    "--save_delta": "Also save what changed, as wagle_delta.safetensors.",
    "--hash_forget_set": "Name no data set in card and report.",
    "--push_to_hub": "Publish the model at the end; see also wagle push.",
    "--hub_model_id": "Repository, such as user/name.",
    "--hub_private_repo": "Whether a new repository is private.",
}
EVERYWHERE: Group = {
    "--config FILE": "YAML file with options; the command line wins.",
    "--json": "Print one JSON object on stdout.",
    "--debug": "Show the traceback of an error.",
    "--help-all": "List every option with its default.",
}

BASE_REVISION = {"--base_revision": "Branch, tag or commit of BASE on the Hub."}
NEW_FOLDER = {"--output_dir": "Folder to create; nothing is overwritten."}
DELTA = {
    "DELTA": "Folder, file or Hub name of a delta.",
    "BASE": "Folder or Hub name of its base; by default the one that the delta names.",
}
DELTA_SOURCE = NEW_FOLDER | BASE_REVISION | {"--revision": "Branch, tag or commit of DELTA on the Hub."}
MODELS = {
    "BASE": "The model before: a folder with safetensors, or a Hub name.",
    "UNLEARNED": "The model after.",
    "MASK": "Folder, file or Hub name of the mask; by default that in UNLEARNED.",
}
CARD = {
    "--what": "model, mask or delta (default: model).",
    "--base_model_name_or_path": "The base on the Hub, if the run loaded it from a folder.",
    "--before": "Output folder of wagle eval of the base, to compare with.",
    "--license": "Identifier of the licence; by default that of the base.",
    "--hash_forget_set": "Name no data set in the card.",
}
ROWS = "--forget_dataset forget.jsonl --retain_dataset retain.jsonl"
