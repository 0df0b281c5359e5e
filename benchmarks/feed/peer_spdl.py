"""Photographs in SPDL's threads, as a program: its decoder looks for FFmpeg's libraries when the process starts."""

from __future__ import annotations

import contextlib
import json
import random
import re
import sys
import tempfile
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any


@contextlib.contextmanager
def libraries() -> Iterator[str]:
    """Yield the ``LD_LIBRARY_PATH`` by which SPDL finds the FFmpeg that PyAV brings under other names."""
    spec = find_spec("av")
    assert spec is not None
    assert spec.origin is not None
    folder = Path(spec.origin).parent.parent / "av.libs"
    with tempfile.TemporaryDirectory() as links:
        for file in folder.glob("lib*.so.*"):
            name = re.sub(r"^(lib[a-z]+)-[0-9a-f]+\.so\.(\d+).*", r"\1.so.\2", file.name)
            if name.startswith(("libav", "libsw")):
                Path(links, name).symlink_to(file)
        yield f"{links}:{folder}"


def frames(files: list[bytes], index: int) -> tuple[Any, int]:
    """Decode one image, crop it and change its colour, by SPDL's decoder and FFmpeg's filters."""
    import spdl.io

    left, top, colour = random.randrange(96), random.randrange(16), random.uniform(0.6, 1.4)
    filters = f"crop=224:224:{left}:{top},hue=s={colour:.3f},format=pix_fmts=rgb24"
    return spdl.io.decode_packets(spdl.io.demux_image(files[index % 8]), filter_desc=filters), index


def together(samples: list[tuple[Any, int]]) -> Any:
    """Make the batch of decoded images, and normalise it."""
    import spdl.io
    import torch

    batch = spdl.io.to_torch(spdl.io.convert_frames([frame for frame, _ in samples]))
    images = (batch.permute(0, 3, 1, 2).float().div_(255).sub_(0.45).div_(0.22)).contiguous()
    return images, torch.tensor([index for _, index in samples])


def main(decoder: str) -> None:
    """Time epochs and print the result."""
    import spdl.dataloader
    from torch.utils.data import default_collate

    from . import peers

    dataset: Any = peers.photographs()
    own = decoder == "own"
    loader = spdl.dataloader.DataLoader(
        range(len(dataset)),
        preprocessor=(lambda index: frames(dataset.files, index)) if own else dataset.__getitem__,
        batch_size=32,
        aggregator=together if own else default_collate,
        num_threads=peers.WORKERS,
        output_order="input",
    )
    print(json.dumps(peers.timed(loader)))


if __name__ == "__main__":
    from . import peers

    peers.QUICK = "--quick" in sys.argv
    main(sys.argv[1])
