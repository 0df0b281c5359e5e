"""Heavy augmentation of photographs for a small ResNet, by 1, 2 and 4 workers, on this machine or on the hosts of a group.

Workers on this machine, workers on two hosts that the launcher starts, and workers on the nodes of your own Ray cluster:

python examples/heterogeneous.py
loopwise feed launch --group dnn=1 --group data=2 --load data examples/heterogeneous.py --group data
python examples/heterogeneous.py --group data
"""

import argparse
import time

import torch
from sklearn.datasets import load_sample_images
from torch.utils.data import Dataset
from torchvision.models import ResNet
from torchvision.models.resnet import BasicBlock
from torchvision.transforms import v2

from loopwise.feed import RemoteDataLoader


class Photographs(Dataset):
    """Augmented crops of scikit-learn's two photographs, labelled by the photograph."""

    def __init__(self, count):
        self.count = count
        self.images = [torch.tensor(image).permute(2, 0, 1) for image in load_sample_images().images]
        self.augment = v2.Compose(
            [
                v2.ColorJitter(0.4, 0.4, 0.4, 0.1),
                v2.GaussianBlur(5),
                v2.RandomResizedCrop(64, scale=(0.05, 0.5)),
                v2.RandomHorizontalFlip(),
                v2.ToDtype(torch.float32, scale=True),
                v2.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
            ]
        )

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        label = index % len(self.images)
        return self.augment(self.images[label]), label


def train(loader, steps):
    """Train for some steps after the first; return the seconds a step, the share of waiting, and the last loss."""
    torch.manual_seed(0)
    model = ResNet(BasicBlock, [1, 1, 1, 1], num_classes=2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)
    waiting, start = 0.0, time.perf_counter()
    for step, (images, labels) in enumerate(loader):
        arrived = time.perf_counter()
        if step == 0:  # the workers were starting
            start = ended = arrived
        waiting += arrived - ended
        loss = torch.nn.functional.cross_entropy(model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        ended = time.perf_counter()
        if step == steps:
            break
    seconds = ended - start
    return seconds / (steps + 1), waiting / seconds, float(loss.detach())


def main(arguments=None):
    """Print the seconds a step for each number of workers."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--group", help="the group whose hosts load; default: workers on this machine")
    args = parser.parse_args(arguments)
    torch.set_num_threads(1)  # training leaves the other processors to the workers
    for workers in args.workers:
        count = args.batch_size * (args.steps + 1)
        loader = RemoteDataLoader(
            Photographs(count), args.batch_size, shuffle=True, num_workers=workers, group=args.group
        )
        seconds, share, loss = train(loader, args.steps)
        print(f"{workers} workers: {1e3 * seconds:.0f} ms a step, {share:.0%} of it waiting; loss {loss:.2f}")


if __name__ == "__main__":
    main()
