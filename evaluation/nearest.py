"""Did the model learn to draw, or does it remember its training images?

For each sample: the training image at the smallest distance in pixels.  Small distances alone prove nothing, for smooth
pictures are near to everything; so the same is asked about real images that the model has never seen.
"""

import torch


def nearest(pictures, training, chunk=1024):
    """(distance, index), both (N,): the nearest of `training` (M, C, H, W) for each of `pictures` (N, C, H, W), uint8.

    distance: float64, root mean square over pixels and channels, in grey levels of 0..255.
    """
    x = pictures.flatten(1).float()
    best, index = torch.full((len(x),), torch.inf), torch.zeros(len(x), dtype=torch.long)
    for start in range(0, len(training), chunk):  # `training` may lie on the disk
        y = torch.as_tensor(training[start : start + chunk]).flatten(1).float()
        # ‖x-y‖² = ‖x‖² + ‖y‖² - 2 x·y, without the first, which is the same for all y
        least, where = (y.square().sum(dim=1) - 2 * x @ y.T).min(dim=1)
        closer = least < best
        best, index = torch.where(closer, least, best), torch.where(closer, start + where, index)
    found = torch.stack([torch.as_tensor(training[i]) for i in index.tolist()])
    exact = (pictures.double() - found.double()).square().flatten(1).mean(dim=1).sqrt()  # no cancellation for copies
    return exact, index


def verdict(samples, unseen):
    """Do samples come closer to the training images than unseen images do?  Distances (n,) and (m,) -> a dictionary.

    closer: share of all pairs (sample, unseen image) in which the sample is closer; 0.5 if there is no difference.
    error: its standard error if there is none.  Ties count half.
    very_close: share of samples that are closer than 95 % of the unseen images; 0.05 if there is no difference.
    """
    n, m = len(samples), len(unseen)
    difference = unseen[None, :] - samples[:, None]
    closer = ((difference > 0).double() + 0.5 * (difference == 0).double()).mean().item()
    error = ((n + m + 1) / (12 * n * m)) ** 0.5  # of the rank statistic of Mann & Whitney 1947
    return {
        "closer": closer,
        "error": error,
        "very_close": (samples < unseen.quantile(0.05)).double().mean().item(),
        "memorised": closer > 0.5 + 3 * error,
    }
