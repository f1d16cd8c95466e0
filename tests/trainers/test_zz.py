import copy, pytest
from wagle_trl import MaskConfig
def test_a(learned, make_trainer, retain_rows, log_probs_of):
    for rw, lr, d, steps in [(1,2e-3,.3,10),(1,2e-3,.3,40),(3,2e-3,.3,20),(5,2e-3,.5,30),(5,5e-3,.3,30)]:
        tr = make_trainer(model=copy.deepcopy(learned), train_dataset=retain_rows.select(range(4)), retain_dataset=retain_rows.select(range(4, 10)),
            mask_config=MaskConfig(mask_density=d), max_steps=steps, learning_rate=lr, per_device_train_batch_size=4, retain_weight=rw)
        def pr(rows): return sum(log_probs_of(tr.model, row).mean().exp().item() for row in rows) / len(rows)
        a=pr(tr.train_dataset),pr(tr.retain_dataset); tr.train(); print("ZZ", rw,lr,d,steps,a,pr(tr.train_dataset),pr(tr.retain_dataset))
