"""Right answers to lesson 08, written another way."""

import math
from collections.abc import Callable
from typing import Any

import numba
import numpy as np
import torch

a, b, c = 3.4445, -4.7750, 2.0315


def by_singular_values(G, steps):
    """The polynomial on the singular values alone."""
    left, values, right = np.linalg.svd(G, full_matrices=False)
    values = values / math.sqrt(math.fsum(values**2))
    for _ in range(steps):
        values = a * values + b * values**3 + c * values**5
    return (left * values) @ right


def lying_down(G, steps):
    """A tall matrix is turned on its side first, as published code does."""
    tall = G.shape[0] > G.shape[1]
    X = G.T if tall else G
    X = X / max(np.linalg.norm(X), 1e-7)
    for _ in range(steps):
        R = X @ X.T
        X = a * X + (b * R + c * R @ R) @ X
    return X.T if tall else X


def from_the_right(G, steps):
    """The other Gram matrix, and powers of it by einsum."""
    X = G / np.sqrt(np.einsum("rc,rc->", G, G))
    for _ in range(steps):
        R = np.einsum("rc,rd->cd", X, X)
        X = np.einsum("rc,cd->rd", X, a * np.eye(len(R)) + b * R + c * np.linalg.matrix_power(R, 2))
    return X


def on_the_gram_matrix(G, steps):
    """X is formed once, at the end."""
    X = G / np.linalg.norm(G)
    R, Q = X @ X.T, np.eye(len(G))
    for _ in range(steps):
        P = a * np.eye(len(R)) + b * R + c * R @ R
        R, Q = P @ R @ P, P @ Q
    return Q @ X


def newton_schulz_in_torch(G, steps):
    X = torch.tensor(G, dtype=torch.float32)
    X /= X.norm()
    for _ in range(steps):
        R = X @ X.mT
        X = a * X + torch.addmm(R, R, R, beta=b, alpha=c) @ X
    return X


def newton_schulz_float32(G, steps):
    return lying_down(G.astype(np.float32), steps)


@numba.njit
def _product(A, B):
    out = np.zeros((A.shape[0], B.shape[1]))
    for i in range(A.shape[0]):
        for j in range(B.shape[1]):
            for k in range(A.shape[1]):
                out[i, j] += A[i, k] * B[k, j]
    return out


@numba.njit
def loops_numba(G, steps):
    X = G / math.sqrt((G**2).sum())
    for _ in range(steps):
        R = _product(X, X.T)
        X = a * X + _product(b * R + c * _product(R, R), X)
    return X


def scale_longer(rows, columns):
    longer = rows if rows > columns else columns
    return longer**0.5 / 5


def scale_from_the_definition(rows, columns):
    """The numbers over the singular values, which are as many as the shorter side."""
    return 0.2 * np.sqrt(rows * columns / min(rows, columns))


def scale_in_torch(rows, columns):
    return 0.2 * torch.tensor([rows, columns]).max().sqrt()


def scale_measured(rows, columns):
    Q = np.eye(rows, columns)
    return 0.2 / math.sqrt((Q**2).mean())


def step_as_papers(W, M, G, lr, momentum, weight_decay):
    """The sum that the papers keep, made from the average and back."""
    total = momentum * M / (1 - momentum) + G
    update = by_singular_values(momentum * total + G, 5)
    size = scale_measured(*W.shape)
    return {"momentum": (1 - momentum) * total,
            "weight": W - lr * (size * update + weight_decay * W)}


def step_in_place(W, M, G, lr, momentum, weight_decay):
    """On copies, as torch does: decay first, then the update."""
    W, M = W.copy(), M.copy()
    M += (1 - momentum) * (G - M)
    U = G + momentum * (M - G)
    W *= 1 - lr * weight_decay
    W -= lr * scale_longer(*W.shape) * lying_down(U, 5)
    return {"weight": W, "momentum": M}


def step_in_torch(W, M, G, lr, momentum, weight_decay):
    """With the operations of torch.optim.Muon, in float32 where it takes bfloat16."""
    W, M, G = (torch.tensor(x) for x in (W, M, G))
    M.lerp_(G, 1 - momentum)
    update = newton_schulz_in_torch(G.lerp(M, momentum).numpy(), 5)
    size = lr * scale_in_torch(*W.shape)
    return {"weight": W * (1 - lr * weight_decay) - size * update, "momentum": M}


def step_float32(W, M, G, *rest):
    return step_in_place(*(x.astype(np.float32) for x in (W, M, G)), *rest)


def experts_loop(U):
    out = np.empty_like(U)
    for e in range(len(U)):
        out[e] = scale_longer(*U[e].shape) * by_singular_values(U[e], 5)
    return out


def experts_einsum(U):
    """All of them together, each with its own norm and Gram matrix."""
    X = U / np.linalg.norm(U, axis=(1, 2), keepdims=True)
    for _ in range(5):
        R = np.einsum("erk,esk->ers", X, X)
        X = a * X + np.einsum("ers,esk->erk", b * R + c * np.einsum("ers,est->ert", R, R), X)
    return scale_from_the_definition(*U.shape[1:]) * X


def experts_in_torch(U):
    X = torch.tensor(U, dtype=torch.float32)
    return torch.func.vmap(lambda G: newton_schulz_like(G))(X) * scale_in_torch(*U.shape[1:])


def newton_schulz_like(X):
    X = X / torch.linalg.matrix_norm(X)
    for _ in range(5):
        R = X @ X.mT
        X = a * X + (b * R + c * R @ R) @ X
    return X


def experts_float32(U):
    return experts_einsum(U.astype(np.float32))


def experts_numba(U):
    return np.array([loops_numba(G, 5) for G in U]) * scale_longer(*U.shape[1:])


OTHER_WAYS: dict[str, list[Callable[..., Any]]] = {
    "muon.newton_schulz": [by_singular_values, lying_down, from_the_right, on_the_gram_matrix,
                           newton_schulz_in_torch, newton_schulz_float32, loops_numba],
    "muon.scale": [scale_longer, scale_from_the_definition, scale_in_torch, scale_measured],
    "muon.step": [step_as_papers, step_in_place, step_in_torch, step_float32],
    "muon.stacked_experts": [experts_loop, experts_einsum, experts_in_torch, experts_float32,
                             experts_numba],
}
