#!/bin/bash
# sentence-transformers 6.2.0 on transformers 5.23.0: the trainer steps what a loss has of its own
# (the classifier of SoftmaxLoss) together with the model, but not when the optimizer comes as
# `optimizer_cls_and_kwargs`: then the groups are made of the model alone, the classifier is in no
# group and keeps its random start, without a warning. Shown with torch's own AdamW, once by default
# and once given as a class.
#
# Exits 0 while it behaves so, 1 once it does not.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv venv
venv/bin/python -m pip install --quiet --disable-pip-version-check torch==2.13.0 \
  sentence-transformers==6.2.0 transformers==5.23.0 accelerate==1.15.0 datasets==5.2.0
cat > show.py <<'PY'
import logging
import sys
import warnings

warnings.filterwarnings("ignore")
import datasets
import sentence_transformers as st
import torch
import transformers
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer
from sentence_transformers import SentenceTransformerTrainingArguments as Arguments
from sentence_transformers import losses, models
from transformers import BertConfig, BertModel, BertTokenizer

datasets.disable_progress_bars()
logging.disable(logging.INFO)
words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"w{i}" for i in range(40))]
with open("vocab.txt", "w") as stream:
    stream.write("\n".join(words))
BertTokenizer("vocab.txt").save_pretrained("bert")
sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
BertModel(BertConfig(vocab_size=45, intermediate_size=32, **sizes)).save_pretrained("bert")
rows = datasets.Dataset.from_dict(
    {
        "a": [f"w{i} w{i + 1}" for i in range(16)],
        "b": [f"w{i + 2} w{i + 3}" for i in range(16)],
        "label": [i % 3 for i in range(16)],
    }
)


def moved(**how):
    """Whether the classifier moved, and how many of its tensors are in a group."""
    torch.manual_seed(0)
    modules = [models.Transformer("bert"), models.Pooling(16)]
    model = SentenceTransformer(modules=modules, device="cpu")
    loss = losses.SoftmaxLoss(model, 16, 3)
    own = list(loss.classifier.parameters())
    before = [parameter.detach().clone() for parameter in own]
    arguments = Arguments(
        "run", max_steps=4, use_cpu=True, report_to=[], save_strategy="no", disable_tqdm=True,
        learning_rate=1e-2,
    )
    trainer = SentenceTransformerTrainer(model, arguments, train_dataset=rows, loss=loss, **how)
    trainer.train()
    grouped = {id(p) for group in trainer.optimizer.param_groups for p in group["params"]}
    changed = any(not torch.equal(a, b) for a, b in zip(before, own))
    return changed, sum(id(p) in grouped for p in own)


default = moved()
given = moved(optimizer_cls_and_kwargs=(torch.optim.AdamW, {"lr": 1e-2}))
print(f"sentence-transformers {st.__version__}, transformers {transformers.__version__}, torch {torch.__version__}")
print("AdamW by default:      classifier moved, tensors in a group:", *default)
print("AdamW given as class:  classifier moved, tensors in a group:", *given)
sys.exit(0 if default == (True, 2) and given == (False, 0) else 1)
PY
venv/bin/python show.py 2>/dev/null
