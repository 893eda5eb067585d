"""Newton–Schulz in torch: a stack's matrices in one batched call, CPU and GPU, bfloat16.

Unusual here: the same two ways as in the reference, chosen by shape, but R becomes P R P in two
products and a I is added outside of them: in bfloat16 that is what keeps the error at the plain
iteration's. (With nearly all rows of the long side zero it is not kept: 0.15 instead of 0.01, what
any ill-conditioned matrix costs either way.) Sums ride along with products (`baddbmm`), since a
processor that multiplies bfloat16 natively would spend as long on a sum as on a product. PyTorch
has no product that knows its result to be symmetric, so nothing counts half here.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

A, B, C = 3.4445, -4.7750, 2.0315
EPS = 1e-7
RESTART, ROWS = 3, 128


def newton_schulz(G: Tensor, steps: int = 5, dtype: torch.dtype | None = None) -> Tensor:
    """X = G / |G|, then `steps` times X = a X + (b R + c R²) X with R = X Xᵀ.

    G: (r, c) or a stack (E, r, c) of any floating-point dtype; the result as G in `dtype`, which
    the iteration is carried out in (None: `iteration_dtype` of G). |G| is the Frobenius norm of
    each matrix, at least 1e-7. a, b, c = 3.4445, -4.7750, 2.0315. Raises ValueError for other
    numbers of axes and for steps below 1. Source: arXiv 2502.16982 §2.1.
    """
    if G.ndim not in (2, 3):
        raise ValueError(
            f"Newton–Schulz takes a matrix (r, c) or a stack (E, r, c), not the shape "
            f"{tuple(G.shape)}; leave vectors to AdamW and give what has more axes as a stack."
        )
    if steps < 1:
        raise ValueError(f"Newton–Schulz takes at least one step, not {steps}; 5 is usual.")
    X = _start(G if G.ndim == 3 else G[None], dtype or iteration_dtype(G))
    rows, columns = G.shape[-2:]
    wide = rows <= columns
    for length in segments(rows, columns, steps):
        X = _plain_step(X, wide) if length == 1 else _gram_steps(X, wide, length)
    return X.view_as(G)


def iteration_dtype(G: Tensor) -> torch.dtype:
    """float64 for float64; else bfloat16 where the processor multiplies it, float32 elsewhere."""
    if G.dtype == torch.float64:
        return torch.float64
    return torch.bfloat16 if _multiplies_bfloat16(G.device) else torch.float32


def segments(rows: int, columns: int, steps: int) -> list[int]:
    """How many steps to take on each Gram matrix; all ones are the plain steps."""
    ones = [1] * steps
    if min(rows, columns) < ROWS:
        return ones
    restarted = [min(RESTART, steps - done) for done in range(0, steps, RESTART)]
    return min(ones, restarted, key=lambda lengths: flops(rows, columns, lengths))


def flops(rows: int, columns: int, lengths: list[int]) -> int:
    """Multiplications and additions in one matrix's products, by the lengths of its segments."""
    r, c = sorted((rows, columns))
    total = 0
    for steps in lengths:
        total += 2 * r * r * c + 2 * r * r * c  # X Xᵀ, Q X
        total += 2 * steps * r**3 + 6 * (steps - 1) * r**3  # R²; P R, P R P, P Q
    return total


def _start(G: Tensor, dtype: torch.dtype) -> Tensor:
    """Each matrix over its norm, which is taken before G is rounded to 16 bits."""
    exact = torch.promote_types(G.dtype, torch.float32)
    # Of the rows' norms: on a CPU the norm of all numbers at once errs twenty times as much.
    rows = torch.linalg.vector_norm(G, dim=-1, keepdim=True, dtype=exact)
    norm = torch.linalg.vector_norm(rows, dim=-2, keepdim=True)
    size = norm.clamp(min=EPS).to(dtype)
    # Two operations, for one that takes float32 and gives bfloat16 is slower than both; and on a
    # CPU a number divides twice as fast as a tensor that holds one.
    return G.to(dtype, copy=True).div_(size.view(()) if len(G) == 1 else size)


def _plain_step(X: Tensor, wide: bool) -> Tensor:
    return _times(_curve(_gram(X, wide)), X, wide)


def _gram_steps(X: Tensor, wide: bool, steps: int) -> Tensor:
    """`steps` steps as one product with Q."""
    R = _gram(X, wide)
    K = _curve(R)
    Q = K.clone()
    Q.diagonal(dim1=-2, dim2=-1).add_(A)
    for _ in range(steps - 1):
        R = _times(K, _times(K, R, wide), not wide)
        K = _curve(R)
        # The factors commute but for rounding; in the order of the steps it does less harm.
        Q = _times(K, Q, wide)
    return torch.bmm(Q, X) if wide else torch.bmm(X, Q)


def _gram(X: Tensor, wide: bool) -> Tensor:
    """R: X Xᵀ of a wide X, Xᵀ X of a tall one.

    A tall X is worked on from the right and not turned on its side, because a transposed result
    would be slow to add to the weights.
    """
    return torch.bmm(X, X.mT) if wide else torch.bmm(X.mT, X)


def _times(K: Tensor, Y: Tensor, left: bool) -> Tensor:
    """(a I + K) Y, or Y (a I + K)."""
    return torch.baddbmm(Y, K, Y, beta=A) if left else torch.baddbmm(Y, Y, K, beta=A)


def _curve(R: Tensor) -> Tensor:
    """b R + c R²."""
    return torch.baddbmm(R, R, R, beta=B, alpha=C)


def _multiplies_bfloat16(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    # Versions of PyTorch that cannot tell get float32.
    known: Mapping[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    return device.type == "cpu" and bool(known.get("avx512_bf16") or known.get("bf16"))
