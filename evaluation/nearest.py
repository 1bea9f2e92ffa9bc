"""Did the model learn to draw, or does it remember its training images?

For each sample: the training images at the smallest distance in pixels.  Small distances alone prove nothing, for
smooth pictures are near to everything; so the same is asked about real images that the model has never seen.
"""

import torch


def nearest(pictures, training, count=1, chunk=1024):
    """(distances, indices), both (N, count): the nearest of `training` (M, C, H, W) to each of `pictures` (N, C, H, W).

    Both are uint8; M must be `count` at least.  The nearest comes first.  distances: float64, root mean square over
    pixels and channels, in grey levels of 0..255.
    """
    x = pictures.flatten(1).double()  # whole numbers, so that nothing below is rounded
    least, indices = x.new_empty(len(x), 0), torch.empty(len(x), 0, dtype=torch.long)
    for start in range(0, len(training), chunk):  # `training` may lie on the disk
        y = torch.as_tensor(training[start : start + chunk]).flatten(1).double()
        # ‖x-y‖² = ‖x‖² + ‖y‖² - 2 x·y, without the first, which is the same for all y
        least = torch.cat([least, y.square().sum(dim=1) - 2 * x @ y.T], dim=1)
        indices = torch.cat([indices, torch.arange(start, start + len(y)).expand(len(x), -1)], dim=1)
        least, best = least.topk(min(count, least.shape[1]), largest=False)
        indices = indices.gather(1, best)
    squares = least + x.square().sum(dim=1, keepdim=True)
    return (squares / x.shape[1]).sqrt(), indices


def verdict(samples, unseen):
    """Do samples come closer to the training images than unseen images do?  Distances (n,) and (m,) -> a dictionary.

    closer: share of all pairs (sample, unseen image) in which the sample is closer; 0.5 if there is no difference.
    error: its standard error if there is none.  Ties count half.
    very_close: share of samples that are closer than 95 % of the unseen images; 0.05 if there is no difference.
    memorised: whether closer is more than three errors above 0.5; None where there are so few of both (six or fewer)
    that not even copies could be.
    """
    n, m = len(samples), len(unseen)
    difference = unseen[None, :] - samples[:, None]
    closer = ((difference > 0).double() + 0.5 * (difference == 0).double()).mean().item()
    error = ((n + m + 1) / (12 * n * m)) ** 0.5  # of the rank statistic of Mann & Whitney 1947
    return {
        "closer": closer,
        "error": error,
        "very_close": (samples < unseen.quantile(0.05)).double().mean().item(),
        "memorised": closer > 0.5 + 3 * error if 3 * error < 0.5 else None,
    }
