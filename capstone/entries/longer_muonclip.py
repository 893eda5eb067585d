"""annealed.py, with windows as long as the judge's from the beginning.

Thought to help: as in longer.py. lengthened.py begins with short windows instead, which are cheaper;
this one has no change of length to recover from.
"""

# What happened: capstone/README.md tells it below its board, as it was measured.

import math

import torch

from minik2 import ModelConfig, pytorch

# The model: the preset `small` of lesson 00, 1.7 million parameters; `replace` changes a field.
CONFIG = ModelConfig.preset("small").replace(max_position_embeddings=256)
# A batch: how many windows, and how many bytes in each. The judge asks with windows of 256.
WINDOWS, LENGTH = 8, 256
# The highest rate, Muon's and AdamW's for what Muon does not take; the share of a weight that a
# step takes away (times the rate); the length to which longer gradients are cut; and the logit
# above which QK-Clip shrinks a head.
RATE, DECAY, CLIP, TAU = 1e-2, 0.1, 1.0, 100.0
# How far a step moves an expert's correction bias to even out the load.
BIAS_SPEED = 0.01


def schedule(gone):
    """The share of the highest rate when this share of the time is gone: K2's shape (WSD).

    It rises over the first 2%, stays, and falls to nothing along a cosine over the last 60%.
    """
    falling = max(0.0, (gone - 0.4) / 0.6)
    return min(1.0, 0.01 + gone / 0.02, (1 + math.cos(math.pi * falling)) / 2)


def train(run):
    """Train a model until the run's time is over; run.seed decides its first weights."""
    model = pytorch.Model.init(CONFIG, seed=run.seed)
    watch = pytorch.Watch(CONFIG)
    optimizer = pytorch.MuonClip(model, RATE, tau=TAU, weight_decay=DECAY)
    for gone in run.steps():
        for group in optimizer.param_groups:
            group["lr"] = RATE * schedule(gone)
        tokens, targets = run.batch(WINDOWS, LENGTH)
        watch.reset()
        optimizer.zero_grad()
        loss = model.loss(tokens, targets, watch=watch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step(watch.max_logits)
        for layer, loads in zip(model.model.layers, watch.loads, strict=True):
            if isinstance(layer.mlp, pytorch.moe.MoE):
                bias = layer.mlp.gate.e_score_correction_bias
                pytorch.router.update_bias(bias, loads, BIAS_SPEED)
        run.note(loss.item())
    return model
