"""How far apart are two clouds of points, if each is summed up by its mean and covariance?

The Frechet (2-Wasserstein) distance between two Gaussians.  On the features of one particular Inception network it is
the "FID" of Heusel et al. 2017; on any other features it is a distance, but no FID.  Its bias falls only like 1/N, so
two figures compare only at the same N.  Read next: kernel.py, which has no bias.
"""

import torch


def moments(features):
    """Mean (d,) and unbiased covariance (d, d), float64, of features (N, d), N >= 2."""
    x = features.double()
    mean = x.mean(dim=0)
    centred = x - mean
    return mean, centred.T @ centred / (len(x) - 1)


def frechet(mean_1, covariance_1, mean_2, covariance_2):
    """Squared Frechet distance between two Gaussians, a float >= 0.  Means (d,), covariances (d, d), float64."""
    # ‖μ₁ - μ₂‖² + tr(Σ₁ + Σ₂ - 2 (√Σ₁ Σ₂ √Σ₁)^½): the product is symmetric, so real eigenvalues do for its root
    values, vectors = torch.linalg.eigh(covariance_1)
    root = vectors * values.clamp(min=0).sqrt() @ vectors.T
    product = torch.linalg.eigvalsh(root @ covariance_2 @ root).clamp(min=0)  # rounding leaves some just below 0
    squared = (mean_1 - mean_2).square().sum() + covariance_1.trace() + covariance_2.trace() - 2 * product.sqrt().sum()
    return max(0.0, squared.item())
