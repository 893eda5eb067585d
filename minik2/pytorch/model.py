"""The whole model in torch: embedding, layers, norm, head, under the checkpoint's names.

Unusual here: `Model.weights` shows every tensor of the checkpoint, experts apart, as a view of
the parameters, so one dictionary serves initialising, loading, saving and comparing.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, cast

import ml_dtypes
import numpy as np
import torch
from torch import Tensor, nn

from minik2 import checkpoint, cost, initial, sampling
from minik2 import tokens as token_ids
from minik2.config import ModelConfig
from minik2.pytorch import balance, decode, generate, loss, recompute, rope
from minik2.pytorch.cache import Cache, Plan
from minik2.pytorch.layer import Layer, Trunk
from minik2.pytorch.watch import Notes, Watch


class Model(nn.Module):
    """A decoder-only transformer of the DeepSeek-V3 / Kimi K2 family.

    The constructor leaves weights as PyTorch's modules do, the experts' and routers' unset; use
    `init` or `from_pretrained`. recompute: set it to train in less memory, see `recompute.twice`.
    """

    def __init__(self, cfg: ModelConfig) -> None:
        super().__init__()
        self.cfg, self.recompute = cfg, False
        self.model = Trunk(cfg)
        self.lm_head = nn.Linear(cfg.hidden_size, cfg.vocab_size, bias=False)
        self._tie()

    def _tie(self) -> None:
        if self.cfg.tie_word_embeddings:
            self.lm_head.weight = self.model.embed_tokens.weight

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.lm_head.weight.device

    @property
    def weights(self) -> dict[str, Tensor]:
        """Every tensor of the checkpoint by its name, experts one by one, as views."""
        held = dict(self.named_parameters()) | dict(self.named_buffers())
        return {name: named_view(held, name) for name in self.cfg.tensor_shapes()}

    @classmethod
    def empty(cls, cfg: ModelConfig, device: str | torch.device, dtype: torch.dtype) -> Model:
        """Memory for a model, its values unset; made where it will stay, without a copy."""
        with torch.device("meta"):
            model = cls(cfg)
        model = model.to(dtype).to_empty(device=device)
        model._tie()  # moving off the meta device made two tensors of one
        return model

    @classmethod
    def init(
        cls,
        cfg: ModelConfig,
        seed: int = 0,
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> Model:
        """A model with random weights; the same seed gives the reference the same weights."""
        model = cls.empty(cfg, device, dtype)
        model._fill(lambda name, shape: initial.tensor(name, shape, cfg, seed))
        return model

    @classmethod
    def from_pretrained(
        cls,
        directory: str | Path,
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> Model:
        """Load config.json and *.safetensors from a directory in the Hugging Face layout."""
        cfg = ModelConfig.from_json(Path(directory))
        source = checkpoint.open_checkpoint(directory, cfg)
        model = cls.empty(cfg, device, dtype)
        model._fill(lambda name, shape: source[name])
        return model

    @torch.no_grad()
    def _fill(self, value: Any) -> None:
        for name, tensor in self.weights.items():
            tensor.copy_(to_torch(value(name, tuple(tensor.shape))))

    def save_pretrained(self, directory: str | Path, format: str | None = None) -> None:
        """Write a checkpoint; format: the weights' own, or as `checkpoint.save` narrows them."""
        arrays = ((name, to_numpy(tensor)) for name, tensor in self.weights.items())
        checkpoint.save(directory, self.cfg, arrays, format=format)

    def forward(
        self,
        tokens: Any,
        watch: Watch | None = None,
        cache: Cache | None = None,
        counts: Any = None,
    ) -> Tensor:
        """Next-token logits: whole numbers (B, T), tensor or array -> (B, T, vocab).

        watch takes the heads' largest logits and the experts' loads. With a cache, the tokens come
        after those that each of its sequences holds, and are appended; nothing is recorded for a
        gradient. counts (B,), whole numbers from 0 to T: sequence b takes its first counts[b]
        tokens only; the rest is padding, whose logits are zeros.

        Raises what `minik2.tokens.check` raises, and ValueError, before anything is written, for a
        cache of another model or batch, or one without room; of tokens that are on a GPU only shape
        and dtype are looked at, because reading them would make the host wait for the device.
        """
        if cache is None:
            if counts is not None:
                raise ValueError("counts say what a cache is to take in; give a cache too.")
            return self.lm_head(self._run(tokens, 0.0, watch)[0])
        if watch is not None:
            raise ValueError("A watch looks at training, which has no cache; give one of the two.")
        return self._extend(tokens, cache, counts)

    def new_cache(self, batch: int = 1, max_tokens: int = 4096) -> Cache:
        """An empty cache for this model: `batch` sequences of up to max_tokens tokens each."""
        return Cache(self.cfg, batch, max_tokens, self.device, self.lm_head.weight.dtype)

    @torch.no_grad()
    def _extend(self, tokens: Any, cache: Cache, counts: Any) -> Tensor:
        """The model over a cache: the new tokens of all sequences one after the other.

        Without padding: all that a layer does is done to each token by itself but for attention,
        which is told whose is which.
        """
        cfg, tokens = self.cfg, self._token_ids(tokens)
        batch, width = tokens.shape
        counts = cache.check(cfg, self.lm_head.weight, (batch, width), counts)
        if not counts.any():
            return self.lm_head.weight.new_zeros(batch, width, cfg.vocab_size)
        step = decode.step(self, cache) if width == 1 and counts.all() else None
        if step is not None:
            logits = step(tokens[:, 0])
            cache.lengths += 1
            return logits[:, None]
        absorbed = cost.absorb(cfg, int(counts.max()), int(cache.lengths.max()))
        plan = cache.plan(counts, absorbed)
        flat, padded = tokens.flatten(), bool((counts < width).any())
        if padded:
            taken = torch.from_numpy(np.flatnonzero(np.arange(width) < counts[:, None]))
            taken = taken.to(flat.device)
            flat = flat[taken]
        logits = self.appended(flat, cache.rows, plan)
        if padded:
            logits = logits.new_zeros(batch * width, cfg.vocab_size).index_copy_(0, taken, logits)
        # Last: until here the cache holds what it held, whatever went wrong.
        cache.lengths += counts
        return logits.unflatten(0, (batch, width))

    def appended(self, tokens: Tensor, rows: Tensor, plan: Plan) -> Tensor:
        """Logits (n, vocab) of new tokens (n,), which go where `plan` says in a cache's rows."""
        x = self.model.embed_tokens(tokens)
        exact = torch.promote_types(x.dtype, torch.float32)
        cos, sin = rope.table(self.cfg, plan.positions, exact)
        for layer, own in zip(self.model.layers, rows, strict=True):
            x = cast(Layer, layer).cached(x, cos, sin, own, plan)
        return self.lm_head(self.model.norm(x))

    def fuse(self) -> Model:
        """Have torch.compile join the small operations of each layer; returns the model.

        Compiles at the first call of every new shape, half a minute or so each: for training on a
        GPU and long decoding there. What is computed in 16 bits is rounded less often.
        """
        for layer in self.model.layers:
            cast(Layer, layer).fuse()
        return self

    def _run(self, tokens: Any, alpha: float, watch: Watch | None) -> tuple[Tensor, list[Tensor]]:
        """What the head takes, and the balance loss of every layer with experts if alpha > 0."""
        tokens = self._token_ids(tokens)
        positions = torch.arange(tokens.shape[1], device=tokens.device)
        x = self.model.embed_tokens(tokens)
        exact = torch.promote_types(x.dtype, torch.float32)
        cos, sin = rope.table(self.cfg, positions, exact)
        prices = []
        for number, layer in enumerate(self.model.layers):
            saved = Notes() if alpha or watch is not None else None
            x = (recompute.twice(layer) if self.recompute else layer)(x, cos, sin, saved)
            if saved is not None and watch is not None:
                watch.take(number, saved)
            if saved is not None and alpha and "router" in saved:
                scores = saved["router"]["scores"].unflatten(0, tokens.shape)
                prices.append(balance.forward(scores, self.cfg.num_experts_per_tok, alpha))
        return self.model.norm(x), prices

    def _token_ids(self, tokens: Any) -> Tensor:
        if not _on_a_device(tokens):
            return torch.from_numpy(token_ids.check(tokens, self.cfg)).to(self.device)
        token_ids.check_shape(tuple(tokens.shape), self.cfg)
        if tokens.dtype not in (torch.int32, torch.int64):
            raise TypeError(f"Tokens on a device must be int32 or int64, not {tokens.dtype}.")
        return tokens.to(self.device)

    def loss(
        self,
        tokens: Any,
        targets: Any,
        balance_alpha: float = 0.0,
        watch: Watch | None = None,
    ) -> Tensor:
        """Mean cross-entropy in nats over targets other than -100, already shifted; (B, T) each.

        balance_alpha > 0 adds the sequence-wise balance loss of every layer with experts
        (`balance.forward`). watch takes the heads' largest logits and the experts' loads.
        """
        x, prices = self._run(tokens, balance_alpha, watch)
        if not _on_a_device(targets):
            checked = token_ids.check_targets(targets, x.shape[:2], self.cfg)
            targets = torch.from_numpy(checked).to(self.device)
        priced = loss.forward(x.flatten(0, 1), self.lm_head.weight, targets.flatten())
        return sum(prices, priced)

    def loss_and_grads(
        self,
        tokens: Any,
        targets: Any,
        balance_alpha: float = 0.0,
        watch: Watch | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """`loss` and its gradient for every trained tensor of the checkpoint, by its name.

        An expert's gradients are views of its layer's stack, zero if no token chose it; the
        correction bias has none. Nothing is added to the parameters' own `.grad`.
        """
        loss = self.loss(tokens, targets, balance_alpha, watch)
        parameters = dict(self.named_parameters())
        grads = torch.autograd.grad(loss, list(parameters.values()))
        held = dict(zip(parameters, grads, strict=True))
        names = (n for n in self.cfg.tensor_shapes() if not n.endswith("e_score_correction_bias"))
        return loss.detach(), {name: named_view(held, name) for name in names}

    def generate(
        self,
        tokens: Any,
        max_new_tokens: int = 32,
        temperature: float = 0.0,
        seed: int = 0,
        top_k: int | None = None,
        top_p: float = 1.0,
        stop: Iterable[int] = (),
        counts: Any = None,
        on_token: sampling.OnToken | None = None,
    ) -> Tensor:
        """Continue every row of tokens (B, T): returns (B, T + max_new_tokens) int64.

        temperature, seed, top_k, top_p: see `sampling.Settings`; 0 is greedy. counts (B,): row b is
        a prompt of its first counts[b] tokens, and the rest of it is padding, which is returned as
        it came: the new tokens are the last max_new_tokens columns. A row ends with the first token
        of `stop` that it takes, which then fills what is left of it. on_token is given the new
        tokens (B,), a NumPy array, at every step; of a row that has ended, its last.
        """
        settings = sampling.Settings(temperature, seed, top_k, top_p)
        return generate.generate(self, tokens, max_new_tokens, settings, stop, counts, on_token)


def _on_a_device(values: Any) -> bool:
    return isinstance(values, Tensor) and values.device.type != "cpu"


def named_view(held: dict[str, Tensor], name: str) -> Tensor:
    """The tensor called `name` in the checkpoint: held as such, or one slice of an expert stack."""
    if ".experts." not in name:
        return held[name]
    stack, expert, matrix, _ = name.rsplit(".", 3)
    if matrix == "down_proj":
        return held[f"{stack}.down_proj"][int(expert)]
    gate, up = held[f"{stack}.gate_up_proj"][int(expert)].chunk(2)
    return gate if matrix == "gate_proj" else up


def to_torch(array: np.ndarray[Any, Any]) -> Tensor:
    # torch knows no ml_dtypes; the bits are the same.
    if array.dtype == ml_dtypes.bfloat16:
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)


def to_numpy(tensor: Tensor) -> np.ndarray[Any, Any]:
    tensor = tensor.detach().cpu().contiguous()
    if tensor.dtype == torch.bfloat16:
        return tensor.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    return tensor.numpy()
