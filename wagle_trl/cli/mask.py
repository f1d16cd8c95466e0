"""`wagle mask`: the options of `wagle npo`, so that one YAML file serves both, and no training."""

from pathlib import Path

from trl import ModelConfig

from ..mask_config import MaskConfig
from ..report import plot_mask, report_tables
from ..trainers.npo_trainer import NPOTrainer
from ..trainers.run_report import write_run_report
from .arguments import UnlearningData, parse
from .output import Output
from .train import PLOT_FILE, build_trainer


def run(argv: list[str], command: str) -> Output:
    types = [UnlearningData, MaskConfig, NPOTrainer.config_class, ModelConfig]
    data_args, mask_config, training_args, model_args = parse(types, argv, command)
    trainer = build_trainer(NPOTrainer, data_args, training_args, model_args, mask_config=mask_config)
    mask = trainer.compute_mask()
    folder = Path(training_args.output_dir)
    plot_mask(mask, folder / PLOT_FILE)
    write_run_report(trainer, str(folder))
    return Output(trainer.mask_report | {"output_dir": str(folder)}, report_tables(trainer.mask_report))
