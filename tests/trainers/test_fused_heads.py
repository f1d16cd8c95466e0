import pytest
import torch

from ..support.architectures import build


@pytest.mark.parametrize("kind", ["npo", "masked_sft"])
def test_a_trainer_says_which_model_and_measures_the_truth(kind, caplog, make_trainer, log_probs_of, retain_rows):
    trainer = make_trainer(kind, build("modernbert-decoder"), eval_dataset=retain_rows, per_device_eval_batch_size=10)
    lines = [record.message for record in caplog.records if "fused LM head" in record.message]
    assert len(lines) == 1 and "ModernBertDecoderForCausalLM" in lines[0] and "\n" not in lines[0]
    assert trainer.planning_losses is None
    losses = [-log_probs_of(trainer.model.eval(), row) for row in trainer.eval_dataset]
    assert trainer.evaluate()["eval_loss"] == pytest.approx(torch.cat(losses).mean().item(), rel=1e-4)
    if kind == "npo":
        trainer.prepare_training(None)
        row = trainer.train_dataset[0]
        reference = torch.tensor(row["reference_log_probs"])
        assert torch.allclose(reference, log_probs_of(trainer.model, row), atol=1e-4)


def test_a_trainer_of_a_model_that_fits_says_nothing(caplog, make_trainer):
    trainer = make_trainer()
    assert not [record for record in caplog.records if "fused LM head" in record.message]
    assert trainer.planning_losses is not None
