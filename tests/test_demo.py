"""The demo at the smallest size: both models, the table, the page, and a second run."""

import dataclasses
import json

import pytest

from steerable.demo import cells, run_demo
from steerable.errors import ConfigError
from steerable.training import DataConfig, EncoderConfig, TrainConfig

CONFIG = TrainConfig(
    data=DataConfig(source="photos", size=16, train_limit=64, test_limit=32),
    encoder=EncoderConfig(stem="cifar", width=4),
    chain="photometric",
    epochs=1,
    batch_size=16,
)


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    out = tmp_path_factory.mktemp("demo") / "out"
    return out, run_demo(CONFIG, out=out, n_images=16)


def test_the_table_compares_steerable_with_control(done):
    _, result = done
    control, steerable = result.rows
    assert (control.model, steerable.model) == ("control", "steerable")
    assert (control.map, steerable.map) == ("ridge", "map")
    assert control.ratio is None
    assert steerable.ratio > 1, "steering 1,000 views must cost less than encoding them"
    assert all(0 <= row.probe_accuracy <= 1 and 0 < row.mrr <= 1 for row in result.rows)
    assert [len(line) for line in cells(result.rows)] == [8, 8, 8]


def test_the_page_opens_with_the_table(done):
    out, result = done
    page = (out / "report.html").read_text()
    assert all(cell in page for cell in cells(result.rows)[2])
    assert json.loads((out / "table.json").read_text())["rows"][1]["model"] == "steerable"


def test_a_second_run_trains_nothing_and_other_settings_are_refused(done):
    out, first = done
    steps = []

    def listener(name):
        return lambda *row: steps.append(row) if name != "audit" else None

    again = run_demo(CONFIG, out=out, n_images=16, progress=listener)
    assert not steps
    assert again.rows[1].relative_error == pytest.approx(first.rows[1].relative_error)
    with pytest.raises(ConfigError, match="epochs is 2 and was 1"):
        run_demo(dataclasses.replace(CONFIG, epochs=2), out=out)
