"""The baseline, with windows as long as the judge's.

Thought to help: the judge asks with windows of 256 bytes, and the baseline never saw more than 128.
A model cannot know what to make of positions that it never met (lesson 04). The bytes in a step
stay the same: half as many windows, twice as long.
"""

# What happened: capstone/README.md tells it below its board, as it was measured.

import math

import torch

from minik2 import ModelConfig, pytorch

# The model: the preset `small` of lesson 00, 1.7 million parameters; `replace` changes a field.
CONFIG = ModelConfig.preset("small").replace(max_position_embeddings=256)
# A batch: how many windows, and how many bytes in each. The judge asks with windows of 256.
WINDOWS, LENGTH = 4, 256
# AdamW's highest rate, the share of a weight that a step takes away (times the rate), and the
# length to which longer gradients are cut.
RATE, DECAY, CLIP = 2.5e-3, 0.1, 1.0
# How far a step moves an expert's correction bias to even out the load.
BIAS_SPEED = 0.01


def schedule(gone):
    """The share of the highest rate when this share of the time is gone: K2's shape (WSD).

    It rises over the first 2%, stays, and falls to a tenth along a cosine over the last 40%.
    """
    falling = max(0.0, (gone - 0.6) / 0.4)
    return min(1.0, 0.01 + gone / 0.02, 0.1 + 0.9 * (1 + math.cos(math.pi * falling)) / 2)


def train(run):
    """Train a model until the run's time is over; run.seed decides its first weights."""
    model = pytorch.Model.init(CONFIG, seed=run.seed)
    watch = pytorch.Watch(CONFIG)
    optimizer = torch.optim.AdamW(model.parameters(), RATE, (0.9, 0.95), weight_decay=DECAY)
    for gone in run.steps():
        for group in optimizer.param_groups:
            group["lr"] = RATE * schedule(gone)
        tokens, targets = run.batch(WINDOWS, LENGTH)
        watch.reset()
        optimizer.zero_grad()
        loss = model.loss(tokens, targets, watch=watch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        for layer, loads in zip(model.model.layers, watch.loads, strict=True):
            if isinstance(layer.mlp, pytorch.moe.MoE):
                bias = layer.mlp.gate.e_score_correction_bias
                pytorch.router.update_bias(bias, loads, BIAS_SPEED)
        run.note(loss.item())
    return model
