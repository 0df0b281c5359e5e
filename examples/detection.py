"""Torchvision's FCOS on rendered scenes of squares, disks and triangles: sift by the batch's one loss, feed and debug.

The compiled step is left out: the detector picks values by conditions and reads tensors in between, so that torch's compiler
gains nothing on it, and a search for a faster step would take longer than this training.

python examples/detection.py
"""

import argparse

import torch
from torch import nn
from torch.utils.data import Dataset

from loopwise import RemoteDataLoader, SiftingDataLoader, Watch
from loopwise.extras import required
from loopwise.report import report
from loopwise.sift import PrunedHistory

with required("torchvision", "demo", "the detection example"):
    from torchvision.models.detection import FCOS
    from torchvision.models.detection.anchor_utils import AnchorGenerator
    from torchvision.ops import box_iou

SIZE = 64
"""Pixels of an image's side."""
ROWS, COLUMNS = torch.meshgrid(torch.arange(SIZE), torch.arange(SIZE), indexing="ij")


class Scenes(Dataset):
    """Images of one to three shapes before noise, with their boxes and labels: 1 square, 2 disk, 3 triangle."""

    def __init__(self, count, seed):
        self.count, self.seed = count, seed

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        generator = torch.Generator().manual_seed(self.seed + index)
        image, boxes, labels = 0.3 * torch.rand(3, SIZE, SIZE, generator=generator), [], []
        for _ in range(int(torch.randint(1, 4, (), generator=generator))):
            radius = int(torch.randint(6, 14, (), generator=generator))
            x, y = torch.randint(radius, SIZE - radius, (2,), generator=generator).tolist()
            label = int(torch.randint(1, 4, (), generator=generator))
            right, down = (COLUMNS - x).abs(), ROWS - y
            inside = (right <= radius) & (down.abs() <= radius)
            if label == 2:
                inside = right**2 + down**2 <= radius**2
            elif label == 3:
                inside &= 2 * right <= down + radius
            image[:, inside] = 0.4 + 0.6 * torch.rand(3, 1, generator=generator)
            boxes.append([x - radius, y - radius, x + radius + 1, y + radius + 1])
            labels.append(label)
        return image, {"boxes": torch.tensor(boxes).float(), "labels": torch.tensor(labels)}


def collate(samples):
    """Return a list of images and a list of targets, as torchvision's detectors take them."""
    images, targets = zip(*samples, strict=True)
    return list(images), list(targets)


def detector():
    """Return torchvision's FCOS over a small backbone with one level of features."""
    layers = []
    for inputs, outputs in ((3, 32), (32, 64), (64, 128)):
        layers += [nn.Conv2d(inputs, outputs, 3, stride=2, padding=1), nn.BatchNorm2d(outputs), nn.ReLU()]
    backbone = nn.Sequential(*layers, nn.Conv2d(128, 64, 3, padding=1))
    backbone.out_channels = 64
    anchors = AnchorGenerator(((16,),), ((1.0,),))
    return FCOS(backbone, num_classes=4, min_size=SIZE, max_size=SIZE, anchor_generator=anchors)


@torch.no_grad()
def accuracy(model, scenes):
    """Return the objects that were found, as a share of all objects and of the detections that are none."""
    model.eval()
    found = wrong = missed = 0
    for image, target in scenes:
        (output,) = model([image])
        sure = output["scores"] > 0.5
        fits = box_iou(target["boxes"], output["boxes"][sure]) > 0.5
        fits &= target["labels"][:, None] == output["labels"][sure]
        found += int(fits.any(1).sum())
        missed += int((~fits.any(1)).sum())
        wrong += int((~fits.any(0)).sum())
    model.train()
    return found / (found + wrong + missed)


def arguments(argv):
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--epochs", type=int, default=8)
    add("--batch-size", type=int, default=16)
    add("--lr", type=float, default=2e-3)
    add("--seed", type=int, default=1)
    add("--samples", type=int, default=1024)
    add("--run", default="runs/detection", help="folder of the run; a second run gets one beside it")
    return parser.parse_args(argv)


def main(argv=None):
    """Train, and print the findings and the page of the run."""
    args = arguments(argv)
    torch.manual_seed(args.seed)
    train, test = Scenes(args.samples, 0), [Scenes(100, args.samples)[index] for index in range(100)]
    model = detector()
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, args.epochs)
    loader = RemoteDataLoader(train, args.batch_size, shuffle=True, num_workers=2, collate_fn=collate)
    loader = SiftingDataLoader(loader, model, policy=PrunedHistory(0.5), run=args.run)
    with Watch(model, optimizer, run=args.run, on_finding=print) as watch:
        for epoch in range(args.epochs):
            total, steps = 0.0, 0
            for images, targets in loader:
                losses = model(images, targets)
                loss = sum(losses.values())
                loader.record_losses(loss.detach())
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                watch.step(loss=loss, **losses)
                total, steps = total + loss.item(), steps + 1
            schedule.step()
            with watch.mode("eval"):
                share = accuracy(model, test)
            print(f"epoch {epoch + 1} loss={total / steps:.4f} accuracy={share:.4f}")
    loader.close()
    print(f"{len(watch.findings)} findings; page: {report(watch.run.url)}")


if __name__ == "__main__":
    main()
