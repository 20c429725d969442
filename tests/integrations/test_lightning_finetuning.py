"""Lightning's BackboneFinetuning: the backbone joins later, and param groups are set on resume."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import compare
import pytest
import torch
from quick import covering
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

import opdf_compile as opdf

UNFREEZE, EPOCHS = 2, 5


def make_module(plain: bool) -> Any:
    import lightning

    class Module(lightning.LightningModule):
        """A backbone that is frozen at first, and a head."""

        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(3)
            self.backbone = nn.Sequential(nn.Linear(12, 16), nn.Tanh())
            self.head = nn.Linear(16, 8)

        def training_step(self, batch: list[Tensor], _index: int) -> Tensor:
            return F.mse_loss(self.head(self.backbone(batch[0])), batch[1])

        def configure_optimizers(self) -> Any:
            trained = [p for p in self.parameters() if p.requires_grad]
            options: dict[str, Any] = {"lr": 0.01, "weight_decay": 0.1}
            if plain:
                self.opt: Any = torch.optim.AdamW(trained, **options)
            else:
                self.opt = opdf.Overparam(
                    trained, torch.optim.AdamW, module=self, cores=3, **options
                )
            return self.opt

    return Module()


def fit(module: Any, folder: Path, epochs: int = EPOCHS, resume: Path | None = None) -> list[Any]:
    """Train; the backbone's weights at each epoch's end."""
    import lightning
    from lightning.pytorch.callbacks import BackboneFinetuning, ModelCheckpoint

    seen: list[Tensor] = []

    class Watch(lightning.Callback):
        def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
            seen.append(pl_module.backbone[0].weight.detach().clone())

    class Finetuning(BackboneFinetuning):
        """Lightning freezes the backbone when it resumes, and thaws none that had joined."""

        def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
            super().on_fit_start(trainer, pl_module)
            if len(trainer.optimizers[0].param_groups) > 1:
                self.make_trainable(pl_module.backbone)

    trainer = lightning.Trainer(
        accelerator="cpu",
        max_epochs=epochs,
        default_root_dir=folder,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[
            Finetuning(UNFREEZE, lambda epoch: 1.5, verbose=False),
            ModelCheckpoint(folder, "{epoch}", save_top_k=-1),
            Watch(),
        ],
    )
    drawn = torch.Generator().manual_seed(1)
    data = TensorDataset(torch.randn(32, 12, generator=drawn), torch.randn(32, 8, generator=drawn))
    trainer.fit(module, DataLoader(data, batch_size=8), ckpt_path=resume)
    return seen


# After the first epoch it has not joined yet, after the fourth it has.
@pytest.mark.parametrize(("plain", "after"), covering([True, False], [3, 0]))
def test_the_backbone_joins_and_the_run_resumes_to_the_bit(
    plain: bool, after: int, tmp_path: Path
) -> None:
    whole = make_module(plain)
    start = whole.backbone[0].weight.detach().clone()
    seen = fit(whole, tmp_path / "whole")
    moves = [not torch.equal(weight, start) for weight in seen]
    assert moves == [epoch >= UNFREEZE for epoch in range(EPOCHS)]
    assert len(whole.opt.param_groups) == 2

    resumed = make_module(plain)
    nn.init.zeros_(resumed.head.weight)  # The start must come out of the checkpoint.
    fit(resumed, tmp_path / "resumed", resume=tmp_path / "whole" / f"epoch={after}.ckpt")
    assert len(resumed.opt.param_groups) == 2
    assert compare.equal(compare.weights(resumed), compare.weights(whole))
    assert compare.equal(resumed.opt.state_dict(), whole.opt.state_dict())
    if not plain:
        assert [entry.key for entry in resumed.opt.plan.entries] == ["head.weight"]
        resumed.opt.program.require_unchanged()
