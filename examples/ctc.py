"""Tones are transcribed by CTC: sift by the loss of each sequence, a compiled step and debug on spectrograms.

python examples/ctc.py
"""

import argparse

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from loopwise import SiftingDataLoader, TrainStep, Watch
from loopwise.report import report

SYMBOLS, LONGEST = 8, 6
"""Number of tones, and of tones in a sequence; symbol 0 is CTC's blank, which also pads."""
RATE, SAMPLES, WINDOW, HOP = 8000, 10240, 256, 128
"""Samples of sound in a second, in a sequence, in a window of the spectrogram and between two windows."""


def render(symbols, generator):
    """Return the sound of a sequence: tones of random length and loudness with gaps between them, and noise."""
    sound = 0.3 * torch.randn(SAMPLES, generator=generator)
    position = int(torch.randint(0, 400, (), generator=generator))
    for symbol in symbols.tolist():
        length = int(torch.randint(500, 1200, (), generator=generator))
        times = torch.arange(length) / RATE
        loudness = 0.3 + 0.7 * torch.rand((), generator=generator)
        sound[position : position + length] += loudness * torch.sin(2 * torch.pi * 300 * 1.25**symbol * times)
        position += length + int(torch.randint(250, 400, (), generator=generator))
    return sound


def data(count, seed):
    """Return spectrograms (count, frames, frequencies), symbols (count, LONGEST) and lengths (count,)."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, LONGEST + 1, (count,), generator=generator)
    symbols = torch.randint(1, SYMBOLS + 1, (count, LONGEST), generator=generator)
    symbols *= torch.arange(LONGEST) < lengths[:, None]
    sounds = [render(row[:length], generator) for row, length in zip(symbols, lengths, strict=True)]
    window = torch.hann_window(WINDOW)
    spectra = torch.stft(torch.stack(sounds), WINDOW, HOP, window=window, return_complex=True).abs()
    return TensorDataset((spectra + 1e-3).log().transpose(1, 2).contiguous(), symbols, lengths)


class Listener(nn.Module):
    """Convolutions over time that return logarithms of probabilities of blank and symbols."""

    def __init__(self, width=64):
        super().__init__()
        layers = []
        for inputs in (WINDOW // 2 + 1, width, width):
            layers += [nn.Conv1d(inputs, width, 5, padding=2), nn.BatchNorm1d(width), nn.ReLU()]
        self.net = nn.Sequential(*layers, nn.Conv1d(width, 1 + SYMBOLS, 1))

    def forward(self, spectra):
        return self.net(spectra.transpose(1, 2)).transpose(1, 2).log_softmax(2)


def loss(model, batch):
    """Return the loss of each sequence for one of its symbols."""
    spectra, symbols, lengths = batch
    scores = model(spectra).transpose(0, 1)  # (frames, batch, symbols)
    frames = torch.full_like(lengths, scores.shape[0])
    return nn.functional.ctc_loss(scores, symbols, frames, lengths, reduction="none") / lengths


@torch.no_grad()
def accuracy(model, test):
    """Return the share of sequences that are transcribed without a fault."""
    spectra, symbols, lengths = test.tensors
    model.eval()
    best = model(spectra).argmax(2)
    model.train()
    right = 0
    for row, truth, length in zip(best, symbols, lengths, strict=True):
        merged = row.unique_consecutive()
        right += merged[merged > 0].tolist() == truth[:length].tolist()
    return right / len(test)


def arguments(argv):
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--epochs", type=int, default=8)
    add("--batch-size", type=int, default=16)
    add("--lr", type=float, default=1e-2)
    add("--seed", type=int, default=1)
    add("--samples", type=int, default=1024)
    add("--run", default="runs/ctc", help="folder of the run; a second run gets one beside it")
    return parser.parse_args(argv)


def main(argv=None):
    """Train, and print the findings and the page of the run."""
    args = arguments(argv)
    torch.manual_seed(args.seed)
    train, test = data(args.samples, 0), data(256, 1)
    model = Listener()
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, args.epochs)
    loader = DataLoader(train, args.batch_size, shuffle=True)
    loader = SiftingDataLoader(loader, model, keep=0.5, run=args.run)
    step = TrainStep(model, loss, optimizer, clip=5.0, run=args.run)
    with Watch(model, optimizer, run=args.run, on_finding=print) as watch:
        for epoch in range(args.epochs):
            total, count = 0.0, 0
            for batch in loader:
                mean = step(batch)
                loader.record_losses(step.losses)
                watch.step(loss=mean)
                total, count = total + mean.item() * len(batch[0]), count + len(batch[0])
            schedule.step()
            with watch.mode("eval"):
                share = accuracy(model, test)
            print(f"epoch {epoch + 1} loss={total / count:.4f} accuracy={share:.4f}")
    loader.close()
    step.close()
    print(f"{len(watch.findings)} findings; page: {report(watch.run.url)}")


if __name__ == "__main__":
    main()
