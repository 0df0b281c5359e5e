"""Batches of every form: each sample keeps all of its fields, or the form is refused with a message."""

import copy
import dataclasses

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import PackedSequence, pack_sequence, unpack_sequence
from torch.utils.data import DataLoader, IterableDataset
from transformers import BatchEncoding

from loopwise.errors import InputError
from loopwise.sift import Padded, SiftingDataLoader, TopLoss


class Graph:
    """Graph in the manner of PyTorch Geometric."""

    def __init__(self, x, label):
        self.x, self.label = x, label


class Graphs:
    """Batch of graphs in the manner of PyTorch Geometric."""

    def __init__(self, graphs):
        self.x = torch.cat([graph.x for graph in graphs])
        self.batch = torch.repeat_interleave(torch.tensor([len(graph.x) for graph in graphs]))
        self.label = torch.tensor([graph.label for graph in graphs])

    @property
    def num_graphs(self):
        return len(self.label)

    def to_data_list(self):
        return [Graph(self.x[self.batch == i], int(self.label[i])) for i in range(self.num_graphs)]

    @classmethod
    def from_data_list(cls, graphs):
        return cls(graphs)

    def apply(self, function):
        self.x, self.batch, self.label = map(function, (self.x, self.batch, self.label))
        return self


@dataclasses.dataclass
class Views:
    first: torch.Tensor
    second: torch.Tensor


def image(i, height=4):
    return torch.full((3, height, 4), float(i))


def boxes(i):
    return {"boxes": torch.full((1 + i % 4, 4), float(i)), "labels": torch.full((1 + i % 4,), i)}


def ids(values):
    return torch.tensor(list(values))


def stacked(function):
    return lambda samples: torch.stack([function(i) for i in samples])


FORMS = {
    "detection": (
        lambda samples: (tuple(map(image, samples)), tuple(map(boxes, samples))),
        lambda batch: [[int(x.flatten()[0]) for x in batch[0]], [int(t["labels"][0]) for t in batch[1]]],
    ),
    "detection of stacked images": (
        lambda samples: (stacked(image)(samples), [boxes(i) for i in samples]),
        lambda batch: [batch[0][:, 0, 0, 0].int().tolist(), [int(t["labels"][0]) for t in batch[1]]],
    ),
    "detection as a dict": (
        lambda samples: {
            "images": [image(i, 3 + i % 5) for i in samples],
            "targets": [boxes(i) for i in samples],
        },
        lambda batch: [
            [int(x.flatten()[0]) for x in batch["images"]],
            [int(t["labels"][0]) for t in batch["targets"]],
        ],
    ),
    "segmentation": (
        lambda samples: (stacked(image)(samples), stacked(lambda i: torch.full((4, 4), i))(samples)),
        lambda batch: [batch[0][:, 0, 0, 0].int().tolist(), batch[1][:, 0, 0].tolist()],
    ),
    "tasks": (
        lambda samples: (
            stacked(image)(samples),
            {"a": ids(samples), "b": {"c": torch.stack([ids(samples)] * 2, 1)}},
        ),
        lambda batch: [
            batch[0][:, 0, 0, 0].int().tolist(),
            batch[1]["a"].tolist(),
            batch[1]["b"]["c"][:, 1].tolist(),
        ],
    ),
    "contrastive pairs": (
        lambda samples: ((stacked(image)(samples), stacked(lambda i: image(i) + 100)(samples)), ids(samples)),
        lambda batch: [
            batch[0][0][:, 0, 0, 0].int().tolist(),
            (batch[0][1] - 100)[:, 1, 1, 1].int().tolist(),
            batch[1].tolist(),
        ],
    ),
    "a dataclass": (
        lambda samples: Views(ids(samples), ids(samples)),
        lambda batch: [batch.first.tolist(), batch.second.tolist()],
    ),
    "tokens": (
        lambda samples: BatchEncoding(
            {"input_ids": torch.stack([ids(samples)] * 5, 1), "labels": ids(samples)}
        ),
        lambda batch: [batch["input_ids"][:, 4].tolist(), batch["labels"].tolist()],
    ),
    "ragged lists": (
        lambda samples: {
            "x": [torch.full((i % 3 + 1,), i) for i in samples],
            "names": [f"n{i}" for i in samples],
        },
        lambda batch: [[int(x[0]) for x in batch["x"]], [int(name[1:]) for name in batch["names"]]],
    ),
    "a list of samples": (
        lambda samples: [(image(i), i) for i in samples],
        lambda batch: [[int(x.flatten()[0]) for x, _ in batch], [i for _, i in batch]],
    ),
    "nested tensors": (
        lambda samples: (
            torch.nested.nested_tensor(
                [torch.full((i % 3 + 1, 2), float(i)) for i in samples], layout=torch.jagged
            ),
            ids(samples),
        ),
        lambda batch: [[int(x[0, 0]) for x in batch[0].unbind()], batch[1].tolist()],
    ),
    "packed sequences": (
        lambda samples: (
            pack_sequence([torch.full((i % 3 + 1, 2), float(i)) for i in samples], enforce_sorted=False),
            ids(samples),
        ),
        lambda batch: [[int(x[0, 0]) for x in unpack_sequence(batch[0])], batch[1].tolist()],
    ),
    "graphs": (
        lambda samples: Graphs([Graph(torch.full((i % 4 + 1, 2), float(i)), i) for i in samples]),
        lambda batch: [[int(g.x[0, 0]) for g in batch.to_data_list()], batch.label.tolist()],
    ),
    "graphs and targets": (
        lambda samples: (
            Graphs([Graph(torch.full((i % 4 + 1, 2), float(i)), i) for i in samples]),
            ids(samples),
        ),
        lambda batch: [
            [int(g.x[0, 0]) for g in batch[0].to_data_list()],
            batch[0].label.tolist(),
            batch[1].tolist(),
        ],
    ),
}
AMBIGUOUS = {("contrastive pairs", 2)}
"""Form and batch size whose batches cannot be told from lists of samples."""


class Stream(IterableDataset):
    def __init__(self, n):
        self.n = n

    def __iter__(self):
        yield from range(self.n)


def sift(data, size, collate, read, **options):
    def loss(model, batch):
        batch_ids = read(batch)[0]
        return torch.tensor([(37 * i % 101) / 101 for i in batch_ids])

    loader = DataLoader(data, size, collate_fn=collate)
    return SiftingDataLoader(loader, nn.Linear(2, 2), loss, **{"policy": TopLoss(0.5), "seed": 0} | options)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("size", [2, 3, 4, 8])
def test_each_sample_keeps_its_fields(form, size):
    collate, read = FORMS[form]
    for data in (list(range(1, 36)), Stream(35)):
        loader = sift(data, size, collate, read, pool=3)
        if (form, size) in AMBIGUOUS:
            with pytest.raises(InputError, match="it may be a list of 2 samples, or of 2 fields"):
                next(iter(loader))
            continue
        seen = []
        for _ in range(2):
            for batch in loader:
                first, *others = read(batch)
                assert len(first) == size
                assert all(other == first for other in others)
                seen += first
        assert len(seen) >= 35 - 2 * size
        assert max(seen.count(i) for i in seen) <= 2


@pytest.mark.parametrize("form", ["detection", "packed sequences", "graphs and targets", "nested tensors"])
def test_waiting_samples_of_any_form_are_resumed(form):
    collate, read = FORMS[form]
    loader = sift(list(range(1, 36)), 4, collate, read)
    batches = iter(loader)
    for _ in range(2):
        next(batches)
    state = copy.deepcopy(loader.state_dict())
    expected = [read(batch) for batch in batches] + [read(batch) for batch in loader]
    again = sift(list(range(1, 36)), 4, collate, read)
    again.load_state_dict(state)
    assert [read(batch) for batch in again] + [read(batch) for batch in again] == expected


def test_three_images_are_refused_where_nothing_tells_them_from_fields():
    loader = sift(
        range(12), 3, lambda samples: ([image(i) for i in samples], ids(samples)), FORMS["detection"][1]
    )
    with pytest.raises(InputError) as error:
        next(iter(loader))
    assert str(error.value) == (
        "seen: a batch of 3 samples with list(Tensor(3, 4, 4), Tensor(3, 4, 4), Tensor(3, 4, 4)) at /0\n"
        "expected: lists of another length than the number of samples, or of entries with another number of rows\n"
        "likely cause: it may be a list of 3 samples, or of 3 fields with 3 rows each\n"
        "fix: stack the entries in the collate_fn if they are samples of one shape, return the fields as a dict or "
        "(outermost) as a tuple, or use another batch_size"
    )


def test_what_an_earlier_batch_showed_decides():
    """The last of 11 samples by 4 are three images, which alone would look like three fields."""
    collate = lambda samples: ([image(i) for i in samples], ids(samples))  # noqa: E731
    loader = sift(
        Stream(11), 4, collate, lambda batch: [[int(x.flatten()[0]) for x in batch[0]], batch[1].tolist()]
    )
    for _ in range(4):
        for images, labels in loader:
            assert [int(x.flatten()[0]) for x in images] == labels.tolist()
            assert all(x.shape == (3, 4, 4) for x in images)


def test_lists_by_the_default_collate_are_fields_at_every_batch_size():
    data = [((image(i), image(i) + 100), f"name {i}", i) for i in range(24)]
    for size in (1, 2, 3):
        loader = SiftingDataLoader(
            DataLoader(data, size), nn.Linear(2, 2), lambda model, batch: batch[2] % 7.0, policy=TopLoss(0.5)
        )
        for (first, second), names, labels in loader:
            assert first.shape == second.shape == (size, 3, 4, 4)
            assert [f"name {i}" for i in labels.tolist()] == list(names)
            assert torch.equal(first[:, 0, 0, 0], labels.float())
            assert torch.equal(second[:, 0, 0, 0], labels + 100.0)


def test_a_stream_of_ready_batches_is_not_taken_for_stacked_fields():
    class Ready(IterableDataset):
        def __iter__(self):
            yield from (
                {"x": [image(i + k) for k in range(3)], "i": ids(range(i, i + 3))} for i in range(0, 24, 3)
            )

    loader = sift(Ready(), None, None, lambda batch: [batch["i"].tolist()], batch_size=3)
    with pytest.raises(InputError, match="it may be a list of 3 samples, or of 3 fields with 3 rows each"):
        next(iter(loader))


def test_padded_batches_of_other_lengths_are_joined_by_padding_or_refused():
    def collate(samples):
        width = max(samples) % 5 + 2
        return {"input_ids": torch.stack([torch.full((width,), i) for i in samples])}

    read = lambda batch: [batch["input_ids"][:, 0].tolist()]  # noqa: E731
    with pytest.raises(InputError, match="pads each batch to its own longest"):
        list(sift(range(40), 4, collate, read))
    for batch in sift(range(40), 4, collate, read, concatenate=Padded({"input_ids": -1})):
        assert len(batch["input_ids"]) == 4


class Unknown:
    def __init__(self, values):
        self.values = values


def test_objects_that_cannot_be_cut_are_refused():
    for collate in (
        lambda samples: (Unknown(samples), ids(samples)),
        lambda samples: {"g": Unknown(samples), "y": ids(samples)},
    ):
        loader = sift(range(12), 4, collate, lambda batch: [[0] * 4])
        with pytest.raises(InputError, match=r"an object of type Unknown at /(0|g)\n.*to_data_list"):
            next(iter(loader))


def test_objects_that_cannot_be_cut_come_whole_where_epochs_are_planned():
    """No batch is cut there: samples are left out before they are loaded."""
    collate = lambda samples: (Unknown(samples), ids(samples))  # noqa: E731
    loader = sift(list(range(40)), 4, collate, None, score_every=0)
    for _ in range(3):
        for unknown, labels in loader:
            assert unknown.values == labels.tolist()
            loader.record_losses(labels.float())
    assert loader.report().trained == 80


def test_rows_that_are_not_those_of_the_samples():
    def left_out(samples):
        samples = [i for i in samples if i % 5]
        return torch.tensor(samples, dtype=torch.float32)[:, None], ids(samples)

    def doubled(samples):
        return ids([*samples, *samples])

    loader = sift(list(range(40)), 4, left_out, lambda batch: [batch[1].tolist()])
    assert all(torch.equal(x[:, 0], y) and len(y) == 4 for x, y in loader)
    for collate in (left_out, doubled):
        loader = sift(list(range(40)), 4, collate, None, score_every=0)
        with pytest.raises(
            InputError, match=r"a batch .* of 4 samples of the dataset\nexpected: one row for each"
        ):
            next(iter(loader))


def test_fields_of_other_lengths_are_refused():
    collate = lambda samples: (ids(samples), torch.zeros(2 * len(samples)), {"y": ids(samples)})  # noqa: E731
    with pytest.raises(InputError, match=r"a batch of 4 samples with 8 rows in Tensor\(8,\) at /1"):
        next(iter(sift(list(range(12)), 4, collate, lambda batch: [batch[0].tolist()])))


def test_a_packed_sequence_is_no_tuple_of_fields():
    """Its four fields have other lengths than the batch, and sometimes the same by chance."""
    packed = pack_sequence([torch.zeros(2, 3)] * 2, enforce_sorted=False)
    loader = SiftingDataLoader(
        [packed] * 6, nn.Linear(2, 2), lambda model, batch: torch.arange(2.0), policy=TopLoss(0.5), pool=1
    )
    for batch in loader:
        assert isinstance(batch, PackedSequence)
        assert [len(x) for x in unpack_sequence(batch)] == [2, 2]
