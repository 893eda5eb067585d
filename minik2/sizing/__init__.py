"""The arithmetic of model sizes: pure functions of ModelConfig, exact where that is possible."""

from minik2.sizing.activations import Activations, activations
from minik2.sizing.cache import KVCache, cache, kv_cache_bytes
from minik2.sizing.cluster import Cluster, Layout, cluster
from minik2.sizing.communication import Communication, communication
from minik2.sizing.compute import Calibration, TrainingCompute, calibration, training_compute
from minik2.sizing.flops import Flops, Work, flops
from minik2.sizing.formats import Stored, stored
from minik2.sizing.heads import HeadsCost, heads_cost
from minik2.sizing.machines import Machine, machine
from minik2.sizing.memory import Precision, TrainingMemory, memory
from minik2.sizing.parameters import Parameters, parameters
from minik2.sizing.published import Claim, claims
from minik2.sizing.roofline import Decode, Sweep, decode, sweep
from minik2.sizing.sheet import Sheet, sheet

__all__ = [
    "Activations", "Calibration", "Claim", "Cluster", "Communication", "Decode", "Flops",
    "HeadsCost", "KVCache", "Layout", "Machine", "Parameters", "Precision", "Sheet", "Stored",
    "Sweep", "TrainingCompute", "TrainingMemory", "Work", "activations", "cache", "calibration",
    "claims", "cluster", "communication", "decode", "flops", "heads_cost", "kv_cache_bytes",
    "machine", "memory", "parameters", "sheet", "stored", "sweep", "training_compute",
]  # fmt: skip
