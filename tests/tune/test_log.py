"""Metrics from what programs print: numbers, lines, curves, suggestions."""

import math
import random
import time
from pathlib import Path

import pytest

from loopwise.errors import InputError
from loopwise.tune import Metric
from loopwise.tune.log.curves import Reader
from loopwise.tune.log.hints import hint
from loopwise.tune.log.numbers import number
from loopwise.tune.log.patterns import TIMEOUTS, Pattern, required_text
from loopwise.tune.log.splitting import LONGEST, Lines

LOGS = Path(__file__).parent / "logs"
N = r"([-+]?[\d.]+(?:[eE][-+]?\d+)?|nan|inf|-inf)"


def read(data, regex, piece=None, **options):
    reader = Reader([Metric(name="m", regex=regex, **options)])
    piece = piece or len(data) or 1
    for start in range(0, len(data), piece):
        reader.feed(data[start : start + piece])
    reader.end()
    return reader.curves["m"]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("0.5", 0.5),
        ("-1.5e-4", -1.5e-4),
        ("+1.5E-03", 0.0015),
        (".5", 0.5),
        ("5.", 5.0),
        ("93.3%", 93.3),
        ("1,234", 1234.0),
        ("1,234.5;", 1234.5),
        ("'0.6716'", 0.6716),
        ('"3",', 3.0),
        ("[0.25]", 0.25),
        ("-inf", -math.inf),
        ("Infinity", math.inf),
        ("0.93.", 0.93),
        ("1e-5.)", 1e-5),
        ("1.2.3", None),
        ("1_000", None),
        ("0x1F", None),
        ("None", None),
        ("-", None),
        ("", None),
        ("1,23", None),
        ("12 apples", None),
        ("\uff11\uff12", None),
    ],
)
def test_numbers(text, value):
    assert number(text) == value


def test_nan_is_a_number():
    assert math.isnan(number("NaN"))


@pytest.mark.parametrize("piece", [None, 1, 777])
@pytest.mark.parametrize(
    ("log", "regex", "count", "reports", "last"),
    [
        ("01_tqdm_stderr", "val_loss=" + N, 2, 2, 0.25),
        ("01_tqdm_stderr", r"\bloss=" + N, 162, 80, 0.0125),
        ("02_keras_style", "val_loss: " + N, 3, 3, 0.3667),
        ("02_keras_style", "- loss: " + N, 78, 78, 0.3),
        ("03_xgboost_style", "validation-rmse:" + N, 7, 7, math.nan),
        ("04_rich_ansi", r"│ accuracy +│ +([\d.]+%) +│", 2, 2, 70.0),
        ("05_logging_timestamps", r"samples=([\d,]+)", 3, 3, 3702.0),
        ("06_invalid_utf8_crlf", "loss=" + N, 7, 7, 0.19),
        ("07_long_line", "loss=" + N, 2, 2, 0.666),
        ("08_many_on_a_line", "Loss = (.*?);", 1, 1, 16.020744),
        ("08_many_on_a_line", r"(?<!\w)loss=(\S+)", 6, 6, 5.0),
        ("09_partial_and_overwritten", "loss=" + N, 7, 7, 0.3),
        ("10_rank_prefix", r"^\[rank0\]:.* loss=" + N, 2, 2, 0.5),
        ("11_traceback_tail", "loss=(.*?);", 4, 4, 0.0),
        ("12_lightning_bar", r"val_loss:\s+" + N, 1, 1, 0.065),
        ("13_hf_trainer", r"'eval_loss': '?" + N, 2, 2, 0.7018),
    ],
)
def test_logs_of_real_programs(log, regex, count, reports, last, piece):
    curve = read((LOGS / f"{log}.log").read_bytes(), regex, piece)
    assert (curve.count, len(curve.reports)) == (count, reports)
    assert curve.value() == pytest.approx(last, nan_ok=True)


def test_numbers_in_odd_forms_are_counted():
    curve = read((LOGS / "08_many_on_a_line.log").read_bytes(), r"(?<!\w)loss=(\S+)")
    assert curve.rejected == 4


def test_the_rule_of_a_metric():
    data = b"acc=0.5\nacc=0.9\nacc=nan\nacc=0.7\n"
    assert read(data, r"acc=(\S+)").value() == 0.7
    assert read(data, r"acc=(\S+)", value="max").value() == 0.9
    assert read(data, r"acc=(\S+)", value="min").value() == 0.5
    assert read(b"", r"acc=(\S+)").value() is None


def test_a_group_named_value_and_groups_inside_the_number():
    assert read(b"lr 3 loss 0.5\n", r"lr (\d+) loss (?P<value>\S+)").value() == 0.5
    assert read(b"loss 1.5e-3\n", r"loss (\d+(\.\d+)?(e-?\d+)?)").value() == 1.5e-3


def test_reports_without_a_regular_expression(capsys):
    from loopwise.tune import report

    report(loss=0.5, accuracy=float("nan"))
    printed = capsys.readouterr().out.encode()
    reader = Reader([Metric(name="loss", regex=r"never (\d)")])
    reader.feed(printed + b'{"loopwise": broken\n{"loopwise": {"loss": "a text"}}\n{"loopwise": [1]}\n')
    assert reader.curves["loss"].value() == 0.5
    assert math.isnan(reader.curves["accuracy"].value())
    with pytest.raises(InputError, match="a value that is no number"):
        report(loss="low")
    with pytest.raises(InputError, match="without a metric"):
        report()


def test_streams_do_not_mix():
    reader = Reader([Metric(name="loss", regex=r"loss=(\S+)")])
    reader.feed(b"los", "stdout")
    reader.feed(b"s=1\n", "stderr")
    reader.feed(b"s=2\n", "stdout")
    reader.end()
    assert list(reader.curves["loss"].reports) == [2.0]


def test_lines_longer_than_a_mebibyte_are_searched_in_pieces():
    lines = Lines()
    filler = b"x" * (LONGEST - 4)
    data = filler + b"loss=0.5 " + filler + b" loss=0.25\nloss=0.125\n"
    texts = [
        line.text for start in range(0, len(data), 65536) for line in lines.feed(data[start : start + 65536])
    ]
    assert lines.long == 1
    assert sum(b"loss=0.5 " in text for text in texts) == 1
    assert texts[-1] == b"loss=0.125"
    assert max(map(len, texts)) <= LONGEST


def test_random_pieces_give_the_same_lines():
    draws = random.Random(0)
    for _ in range(200):
        data = bytes(draws.choice(b"ab\n\r\x00\x1b[m\xff\xc3\xa9") for _ in range(draws.randint(0, 60)))
        whole, pieces = Lines(), Lines()
        expected = [*whole.feed(data), *whole.rest()]
        found, rest = [], data
        while rest:
            size = draws.randint(1, 7)
            found += pieces.feed(rest[:size])
            rest = rest[size:]
        found += pieces.rest()
        plain = [line.text for line in expected if line.text]
        assert [line.text for line in found if line.text] == plain


@pytest.mark.parametrize("text", [r"^(a+)+$", r"(a|a)*b", r"(?=(a+))\1+$", r"(?:a|aa)+(?<!b)(c)"])
def test_no_expression_takes_longer_than_its_limit(text):
    text = text if "(" in text.replace("(?", "") else f"({text})"
    pattern = Pattern(text)
    start = time.process_time()
    for _ in range(TIMEOUTS + 5):
        list(pattern.values(b"a" * 5000 + b"!"))
    assert time.process_time() - start < 30  # each of at most three lines has half a second


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("loss=", "has no group"),
        (r"loss=\(\S+\)", "has no group"),
        ("loss=(", "missing"),
        ("*", "nothing to repeat"),
    ],
)
def test_expressions_that_cannot_be_metrics(text, message):
    with pytest.raises(InputError, match=message):
        Pattern(text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (r"(?<!\w)loss=(\S+)", "loss="),
        (r"(?<=x)val_loss: (\d+)", "val_loss: "),
        (r"los(s)?x=(\d+)", "los"),
        (r"colou?r=(\d+)", "colo"),
        (r"ab*cd(\d)", "cd"),
        (r"ab{0,2}cde(\d)", "cde"),
        (r"a\.b\d(x)c", "a.b"),
        (r"loss=(\d)|acc=(\d)", ""),
        (r"(?i)loss=(\d)", ""),
        (r"[]x]abc(\d)", "abc"),
        (r"[^]x]abc(\d)", "abc"),
        (r"(loss|acc)=(\d)", "="),
        (r"(?>loss)(\d)", ""),
        (r"a+bc(\d)", "bc"),
    ],
)
def test_the_text_that_every_match_contains(text, expected):
    assert required_text(text) == expected


def test_a_suggestion_for_an_expression_that_never_matches():
    lines = (LOGS / "13_hf_trainer.log").read_text(errors="replace").replace("\r", "\n").split("\n")
    found = hint("loss", r"'loss': " + N, lines)
    assert found.line.startswith("{'loss': '0.6907'")
    curve = read("\n".join(lines).encode(), found.regex)
    assert list(curve.reports) == [0.6716, 0.7322, 0.713, 0.6907]
    found = hint("accuracy", r"Accuracy = (\d+)", ["epoch 3", "accuracy: 0.93 on test"])
    assert found.regex.startswith(r"\baccuracy:\s+")
    assert hint("accuracy", r"accuracy=(\d+)", ["epoch 3 loss 4"]) is None
    line = "loss= tensor(0.0307, grad_fn=<MulBackward0>)"
    found = hint("loss", r"loss=\s*(\S+)", [line])
    assert list(read(line.encode(), found.regex).reports) == [0.0307]
