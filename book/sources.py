"""Every paper and repository that the course follows, what was taken, and where it is cited.

Unusual here: who cites what is read off the files. A work that nobody cites any more is an error of
the tests, and so is a cited number without a line here; each lesson's own list stands below as the
lesson has it.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from book.text import section, table

ARXIV = re.compile(r"ar[Xx]iv[:\s#]*(\d{4}\.\d{4,5})")


@dataclass(frozen=True)
class Work:
    """A paper (key: its arXiv number) or another source (key: words that a citation of it has)."""

    key: str
    title: str
    taken: str

    @property
    def is_arxiv(self) -> bool:
        return bool(re.fullmatch(r"\d{4}\.\d{4,5}", self.key))

    @property
    def shown(self) -> str:
        if not self.is_arxiv:
            return self.title
        link = f"[arXiv {self.key}](https://arxiv.org/abs/{self.key})"
        return f"*{self.title}*, {link}" if self.title else link


PAPERS = (
    Work("2507.20534", "Kimi K2: Open Agentic Intelligence",
         "the configuration, MuonClip, the recipe, the training cluster"),
    Work("2412.19437", "DeepSeek-V3 Technical Report",
         "the block's equations, router and balance, FP8 blocks, the two long-context phases"),
    Work("2405.04434", "DeepSeek-V2: A Strong, Economical, and Efficient Mixture-of-Experts "
         "Language Model", "MLA, absorption, the rotary key kept apart"),
    Work("2502.16982", "Muon is Scalable for LLM Training",
         "Muon's recipe: scale by shape, decay, which weights; the bias rule without drift"),
    Work("2401.06066", "DeepSeekMoE: Towards Ultimate Expert Specialization in Mixture-of-Experts "
         "Language Models", "shared and routed experts"),
    Work("2408.15664", "Auxiliary-Loss-Free Load Balancing Strategy for Mixture-of-Experts",
         "the correction bias, the maximum violation"),
    Work("2309.00071", "YaRN: Efficient Context Window Extension of Large Language Models",
         "turns, ramp and temperature"),
    Work("2306.15595", "Extending Context Window of Large Language Models via Positional "
         "Interpolation", "dividing all positions, to compare with"),
    Work("2104.09864", "RoFormer: Enhanced Transformer with Rotary Position Embedding",
         "rotary positions"),
    Work("1706.03762", "Attention Is All You Need", "attention, the mask, the scale"),
    Work("1911.02150", "Fast Transformer Decoding: One Write-Head is All You Need",
         "one key and value for all heads (MQA)"),
    Work("2305.13245", "GQA: Training Generalized Multi-Query Transformer Models from Multi-Head "
         "Checkpoints", "heads in groups"),
    Work("2209.11895", "In-context Learning and Induction Heads",
         "heads that look one token back"),
    Work("1910.07467", "Root Mean Square Layer Normalization", "RMSNorm"),
    Work("2002.05202", "GLU Variants Improve Transformer", "SwiGLU"),
    Work("2205.14135", "FlashAttention: Fast and Memory-Efficient Exact Attention with "
         "IO-Awareness", "attention's weights formed again on the way back"),
    Work("2205.05198", "Reducing Activation Recomputation in Large Transformer Models",
         "what a pipeline's stages keep for the way back"),
    Work("1604.06174", "Training Deep Nets with Sublinear Memory Cost",
         "layers that are computed again on the way back"),
    Work("1710.03740", "Mixed Precision Training",
         "weights kept in float32 beside those of 16 bits"),
    Work("1910.02054", "ZeRO: Memory Optimizations Toward Training Trillion Parameter Models",
         "weights, gradients and optimizer states in shares"),
    Work("2209.05433", "FP8 Formats for Deep Learning", "the format e4m3"),
    Work("1711.05101", "Decoupled Weight Decay Regularization", "AdamW"),
    Work("1904.09751", "The Curious Case of Neural Text Degeneration", "top-p sampling"),
)
OTHERS = (
    Work("config.json", "The released `config.json` of each model; `minik2/presets/` says where it "
         "was read", "every preset's values"),
    Work("inference/", "DeepSeek-V3's released code, `deepseek-ai/DeepSeek-V3`, `inference/`",
         "the softmax scale with YaRN, groups of experts, the FP8 scale, released configurations"),
    Work("README_WEIGHTS.md", "`README_WEIGHTS.md` of the same repository",
         "how FP8 blocks are widened"),
    Work("toy_train.py", "Moonlight's code, `MoonshotAI/Moonlight`, `examples/toy_train.py`",
         "which weights Muon takes, the plain decay"),
    Work("torch.optim.Muon", "PyTorch's `torch.optim.Muon`",
         "the other implementation that Muon is held against"),
    Work("transformers", "Hugging Face's `transformers`, DeepseekV3 and DeepseekV2",
         "the other implementation that blocks, model and checkpoints are held against"),
    Work("compressed-tensors", "`compressed-tensors`", "the packed INT4 layout and its rounding"),
    Work("Megatron-LM", "NVIDIA's Megatron-LM, `clip_qk`", "QK-Clip's factors row by row"),
    Work("K. Jordan", "K. Jordan et al., *Muon: An optimizer for hidden layers in neural "
         "networks*, 2024", "Muon and its coefficients"),
    Work("Higham", "N. Higham, *Functions of Matrices*, SIAM 2008", "Newton–Schulz iterations"),
    Work("Eckart", "C. Eckart and G. Young, Psychometrika 1, 1936",
         "the best approximation of lower rank"),
    Work("Rumelhart", "D. Rumelhart, G. Hinton and R. Williams, Nature 323, 1986",
         "the backward pass as such"),
    Work("Numerical Recipes", "W. Press et al., *Numerical Recipes*, §5.7",
         "the best step of a difference"),
    Work("splitmix64", "G. Steele, D. Lea and C. Flood, OOPSLA 2014, with a mixer of D. Stafford's",
         "weights made on the fly"),
    Work("hash-prospector", "C. Wellons' hash-prospector", "weights made on the fly"),
)


@cache
def texts(root: Path) -> dict[str, str]:
    """Every file that may cite: lessons by "lesson 03", modules and presets by their path."""
    out = {}
    for path in sorted(root.glob("lessons/[0-9][0-9]_*.py")):
        text = re.sub(r"\n# ?", "\n", path.read_text(encoding="utf-8"))
        out[f"lesson {path.stem[:2]}"] = text
    for pattern in ("*.py", "*.json"):
        for path in sorted(root.glob(f"minik2/**/{pattern}")):
            out[path.relative_to(root).as_posix()] = path.read_text(encoding="utf-8")
    return out


def cited(root: Path) -> set[str]:
    """Every arXiv number that a lesson or a module names."""
    return {number for text in texts(root).values() for number in ARXIV.findall(text)}


def citing(root: Path, work: Work) -> list[str]:
    """The files that cite the work, lessons first."""
    if work.is_arxiv:
        return [name for name, text in texts(root).items() if work.key in ARXIV.findall(text)]
    return [name for name, text in texts(root).items() if work.key in text]


def where(root: Path, work: Work) -> str:
    """The lessons that cite it, or else the parts of the package that do, in few words."""
    names = citing(root, work)
    lessons = [name.removeprefix("lesson ") for name in names if name.startswith("lesson ")]
    if lessons:
        return ("lesson " if len(lessons) == 1 else "lessons ") + ", ".join(lessons)
    return ", ".join(f"`{name}`" for name in names[:3]) + (" and others" * (len(names) > 3))


def lists(root: Path) -> str:
    """Each lesson's own section of sources, under the lesson's name."""
    out = []
    for path in sorted(root.glob("notebooks/[0-9][0-9]_*.ipynb")):
        cells = [c for c in json.loads(path.read_text(encoding="utf-8"))["cells"]
                 if c["cell_type"] == "markdown"]
        texts = ["".join(c["source"]) for c in cells]
        title = re.search(r"^# (.+)$", texts[0], re.M).group(1)
        found = next((t for t in texts if re.search(r"^## Sources$", t, re.M)), None)
        if found is None:
            continue
        body = section(found, "Sources").split("\n", 1)[1]
        body = re.split(r"^\*\*Next:?\*\*", body, flags=re.M)[0]
        out += [f"### {title}", "", f"[The lesson](lessons/{path.name})", "", body.strip(), ""]
    return "\n".join(out)


def page(root: Path) -> str:
    """Two tables of works, then the lessons' own lists."""
    known = {work.key for work in PAPERS}
    papers = [*PAPERS, *(Work(n, "", "see there") for n in sorted(cited(root) - known))]
    header = ["work", "what was taken from it", "cited in"]
    out = []
    for title, works in (("Papers", papers), ("Code, books and files", OTHERS)):
        rows = [[w.shown, w.taken, where(root, w)] for w in works]
        out += [f"## {title}", "", table(header, rows), ""]
    return "\n".join([*out, "## What each lesson lists", "", lists(root)])
