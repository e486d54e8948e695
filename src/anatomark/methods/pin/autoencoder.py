"""A small autoencoder of landmark configurations: the shape model that Li et al. 2018 leave as future work."""

from __future__ import annotations

import torch
from torch import nn


class ShapeAutoencoder(nn.Module):
    """MLP P-128-64-n_b and back, for vectors of P = N*D coordinates standardised to about unit size.

    ``latent_mean`` and ``latent_sd`` (n_b,) describe the training shapes' codes; :meth:`measure` sets them and
    ``fitted``, at the end of training.
    """

    fitted: torch.Tensor
    latent_mean: torch.Tensor
    latent_sd: torch.Tensor

    def __init__(self, inputs: int, latent: int, hidden: tuple[int, int] = (128, 64)):
        super().__init__()
        a, b = hidden
        self.encoder = nn.Sequential(nn.Linear(inputs, a), nn.SiLU(), nn.Linear(a, b), nn.SiLU(), nn.Linear(b, latent))
        self.decoder = nn.Sequential(nn.Linear(latent, b), nn.SiLU(), nn.Linear(b, a), nn.SiLU(), nn.Linear(a, inputs))
        self.register_buffer("fitted", torch.zeros(1))
        self.register_buffer("latent_mean", torch.zeros(latent))
        self.register_buffer("latent_sd", torch.ones(latent))

    def forward(self, shapes: torch.Tensor) -> torch.Tensor:
        """Shapes (B, P) as reconstructed from their codes."""
        return self.decoder(self.encoder(shapes))

    def encode(self, shapes: torch.Tensor) -> torch.Tensor:
        """Codes (B, n_b) of shapes (B, P), in training standard deviations from the training mean."""
        return (self.encoder(shapes) - self.latent_mean) / self.latent_sd

    def decode(self, codes: torch.Tensor) -> torch.Tensor:
        """Shapes (B, P) of such codes (B, n_b)."""
        return self.decoder(codes * self.latent_sd + self.latent_mean)

    @torch.no_grad()
    def measure(self, shapes: torch.Tensor) -> None:
        """Takes the codes' mean and standard deviation from training shapes (M, P)."""
        codes = self.encoder(shapes)
        self.fitted.fill_(1)
        self.latent_mean.copy_(codes.mean(0))
        self.latent_sd.copy_(codes.std(0, correction=0).clamp_min(1e-6))
