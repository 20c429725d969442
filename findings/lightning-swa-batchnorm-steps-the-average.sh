#!/usr/bin/env bash
# Lightning's StochasticWeightAveraging steps the finished average once more, along old gradients.
#
# For a model with BatchNorm the callback runs one more epoch over the averaged weights, to bring the
# statistics up to date. Its comment says that no optimizer step is needed, and backward is skipped.
# The optimizer is stepped all the same at the end of that epoch, and because clearing the gradients
# is skipped along with backward, it steps along those of the last batch before the average. The
# weights that fit() leaves are not the average. Without BatchNorm they are, to the bit.
#
# Exits 0 if lightning 2.6.6 behaves so, 1 if that has changed.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet torch==2.13.0 lightning==2.6.6
cat > "$work/look.py" <<'PY'
import logging
import sys
import warnings

import lightning
import torch
from lightning.pytorch.callbacks import StochasticWeightAveraging
from torch import nn

warnings.filterwarnings("ignore")
logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)


class Module(lightning.LightningModule):
    def __init__(self, norm):
        super().__init__()
        between = nn.BatchNorm1d(16) if norm else nn.Identity()
        self.net = nn.Sequential(nn.Linear(8, 16), between, nn.ReLU(), nn.Linear(16, 2))

    def training_step(self, batch, index):
        return self.net(batch).square().mean()

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=1e-2)


def apart(norm):
    lightning.seed_everything(0, verbose=False)
    average = StochasticWeightAveraging(1e-3, swa_epoch_start=2)
    module = Module(norm)
    trainer = lightning.Trainer(
        accelerator="cpu", max_epochs=4, logger=False, enable_progress_bar=False,
        enable_model_summary=False, enable_checkpointing=False, callbacks=[average],
    )
    data = torch.utils.data.DataLoader(list(torch.randn(32, 8)), batch_size=8)
    trainer.fit(module, data)
    pairs = zip(module.parameters(), average._average_model.parameters(), strict=True)
    return max(float((left - right).abs().max()) for left, right in pairs)


found = {norm: apart(norm) for norm in (False, True)}
print("lightning", lightning.__version__, "torch", torch.__version__)
print("largest distance of the final weights from the average")
print("  without BatchNorm", found[False])
print("  with BatchNorm   ", found[True])
sys.exit(0 if found[False] == 0 and found[True] > 1e-4 else 1)
PY
cd "$work"
"$work/venv/bin/python" look.py
