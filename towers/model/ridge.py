"""A user as the ridge regression on her history: the fold-in of matrix factorisation, as a history pooling.

Shapes: ``B`` users, ``L`` history length, ``D`` width of what an item contributes (which is the model's ``dim``).

    query = (Γ + λ I + Σ w v vᵀ)⁻¹ Σ w v          λ = reg (Σ w + offset)^ν

Γ, a diagonal matrix, stands for the whole catalogue (α₀ VᵀV in its eigenbasis, see ``closed_form.ials``). With
``A = Γ + λI`` and X the history (rows √w v), Woodbury's identity gives a system of the history's size,

    query = A⁻¹ Xᵀ y        (I + X A⁻¹ Xᵀ) y = √w

which conjugate gradients solve: matrix products only, so that it exports to ONNX (which has no solver), is
differentiable, and runs as it trains.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

STEPS = 16  # of conjugate gradients: on iALS factors six digits, for histories of up to 230 events


@dataclass(frozen=True)
class Ridge:
    """λ of a user with ``n`` (weighted) events: ``reg (n + offset)^ν`` (Rendle et al., 2022)."""

    reg: float
    nu: float
    offset: float

    def of(self, events: Tensor) -> Tensor:
        """``[*]`` weighted numbers of events → ``[*]`` λ."""
        return self.reg * (events + self.offset) ** self.nu


class FoldIn(nn.Module):
    """What a user wants, as the least-squares weights under which her items score 1 and the catalogue little.

    When to use it: with factors from ``init=ials``, whose fold-in it is; trained from there, or not. Unlike a mean, it
    does not count twice what two items of a history have in common.

    Args:
        dim: ``D``.

    Attributes:
        log_gram: ``[D]`` logarithm of Γ's diagonal.
        log_reg, nu, offset: see ``Ridge``.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.log_gram = nn.Parameter(torch.zeros(dim))
        self.log_reg = nn.Parameter(torch.zeros(()))
        self.register_buffer("nu", torch.ones(()))
        self.register_buffer("offset", torch.ones(()))
        self.nu: Tensor
        self.offset: Tensor

    @torch.no_grad()
    def set(self, gram: Tensor, ridge: Ridge) -> None:
        """Take over a closed form's ``[D]`` Γ and its ridge."""
        self.log_gram.copy_(gram.clamp(min=1e-12).log())
        self.log_reg.fill_(math.log(ridge.reg))
        self.nu.fill_(ridge.nu)
        self.offset.fill_(ridge.offset)

    def forward(self, vectors: Tensor, log_weight: Tensor) -> Tensor:
        """Histories → queries.

        Args:
            vectors: ``[B, L, D]``, zero where masked.
            log_weight: ``[B, L]`` log w, very negative where masked.

        Returns:
            ``[B, D]``; zero for a history without events.
        """
        root = (0.5 * log_weight).exp()
        x = vectors * root.unsqueeze(-1)
        lam = self.log_reg.exp() * (log_weight.exp().sum(1, keepdim=True) + self.offset) ** self.nu  # [B, 1]
        over_a = x / (self.log_gram.exp() + lam).unsqueeze(1)  # X A⁻¹
        # a product with ones, because ONNX Runtime gives the sum over an empty history a wrong shape
        diagonal = ((over_a * x) @ torch.ones_like(self.log_gram).unsqueeze(1)).squeeze(-1)
        # double precision, so that no rounding error grows where factors are badly scaled: the systems are small
        y = conjugate_gradients((over_a @ x.transpose(1, 2)).double(), diagonal.double(), root.double()).to(x.dtype)
        query: Tensor = (y.unsqueeze(1) @ over_a).squeeze(1)
        return query


def conjugate_gradients(k: Tensor, diagonal: Tensor, b: Tensor, steps: int = STEPS) -> Tensor:
    """Solve ``(I + K) y = b`` for many K at once (Hestenes and Stiefel, 1952), preconditioned by the diagonal.

    Args:
        k: ``[B, L, L]``, symmetric and positive semi-definite.
        diagonal: ``[B, L]`` of K (taking it would put shapes into an ONNX graph).
        b: ``[B, L]``.
        steps: how many; exact after L of them but for rounding.

    Returns:
        ``[B, L]``.
    """
    scale = 1.0 / (1.0 + diagonal)
    y = torch.zeros_like(b)
    r = b
    z = scale * r
    p = z
    rz = (r * z).sum(1, keepdim=True)
    for _ in range(steps):
        kp = p + (k @ p.unsqueeze(-1)).squeeze(-1)
        step = rz / ((p * kp).sum(1, keepdim=True) + 1e-20)  # 0 / 1e-20 once solved: nothing moves any more
        y, r = y + step * p, r - step * kp
        z = scale * r
        before, rz = rz, (r * z).sum(1, keepdim=True)
        p = z + rz / (before + 1e-20) * p
    return y
