"""How does TensorBoard see a run?  Opt-in by `--tensorboard`; the package `tensorboard` is needed only then."""

from config import UserError


class Board:
    """Scalars and pictures of each evaluation, written to `folder`."""

    def __init__(self, folder):
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise UserError("--tensorboard needs the package tensorboard: pip install tensorboard") from None
        self.writer = SummaryWriter(folder)

    def show(self, row, pictures):
        """row: one line of metrics.csv as a dictionary.  pictures: {name: (C, H, W) uint8}."""
        for name, value in row.items():
            if name != "step":
                self.writer.add_scalar(name, value, row["step"])
        for name, picture in pictures.items():
            self.writer.add_image(name, picture, row["step"])
        self.writer.flush()
