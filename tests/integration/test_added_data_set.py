"""A data set that is added as docs/how-to/add-a-data-set.md says is planned, trained and sampled like ours."""

from __future__ import annotations

import importlib.util
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from ecdit_cli.app import run
from experiments.config.budget import budget
from experiments.config.caption_kinds import TokenCaptions
from experiments.config.data_sets import DATA_SETS, NO_FILES, DataSet
from experiments.config.overrides import known_settings, load_config
from experiments.data.loader import TrainStream, validation_set
from experiments.errors import ConfigError
from experiments.models.dit import DiT

ROOT = Path(__file__).parents[2]
MODULE = "experiments.data.sources.stripes"
SMALL = ["data=stripes", "model=nano", "model.num_layers=2", "train.images=32", "train.batch_images=8"]


pytestmark = pytest.mark.usefixtures("stripes")


@pytest.fixture
def stripes(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The example as if its file lay in `experiments/data/sources` and its row were in the registry."""
    spec = importlib.util.spec_from_file_location(MODULE, ROOT / "docs/how-to/examples/striped_images.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setitem(sys.modules, MODULE, module)
    monkeypatch.setitem(DATA_SETS, "stripes", module.STRIPES)
    known_settings.cache_clear()  # a row comes before the first settings are read
    yield
    known_settings.cache_clear()


def test_the_row_in_the_docs_is_that_of_the_example() -> None:
    (row,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs/how-to/add-a-data-set.md").read_text(), re.DOTALL)
    names = {"DataSet": DataSet, "TokenCaptions": TokenCaptions, "NO_FILES": NO_FILES}
    assert eval("{" + row + "}", names) == {"stripes": DATA_SETS["stripes"]}


def test_its_settings_are_those_that_its_row_fixes() -> None:
    config = load_config(SMALL)
    assert (config.data.vocab_size, config.data.caption_length, config.data.path) == (7, 4, None)
    for wrong, message in (
        ("data.vocab_size=64", "data.vocab_size=64 does not fit data.name=stripes. Use data.vocab_size=7."),
        ("data.path=a", "data.path=a does not fit data.name=stripes. Use data.name=latents or pixels."),
        (
            "eval.metric_images=4",
            "eval.metric_images=4 does not fit data.name=stripes: no metric knows its images. Use",
        ),
        (
            "data.name=strips",
            "is not 'shapes', 'latents', 'pixels', 'imagenet', 'sd3' or 'stripes'. Did you mean 'stripes'?",
        ),
    ):
        with pytest.raises(ConfigError) as caught:
            load_config([*SMALL, wrong])
        assert message in str(caught.value)


def test_the_model_has_an_encoder_of_its_size_and_the_budget_knows_it() -> None:
    config = load_config(SMALL)
    model = DiT(config)
    assert model.text.token.num_embeddings == 7
    assert sum(parameter.numel() for parameter in model.parameters()) == budget(config).params_total


def test_images_and_captions_agree_and_do_not_depend_on_the_batch() -> None:
    config = load_config([*SMALL, "train.caption_dropout=0"])
    batch = TrainStream(config).batch(0)
    halves = [TrainStream(config, rank, 2).batch(0) for rank in range(2)]
    for name in ("pixels_BCHW", "caption_BL"):
        assert torch.equal(torch.cat([getattr(half, name) for half in halves]), getattr(batch, name))
    assert batch.caption_BL is not None
    for pixels_CHW, (start, color, direction, padding) in zip(
        batch.pixels_BCHW, batch.caption_BL.tolist(), strict=True
    ):
        assert (start, padding) == (1, 0)
        lit_HW = pixels_CHW[color - 2] > 0
        assert 0 < lit_HW.float().mean() < 1
        along = lit_HW if direction - 5 == 0 else lit_HW.T
        assert (along == along[:, :1]).all()
    assert not torch.equal(validation_set(config)[0].pixels_BCHW[:8], batch.pixels_BCHW)


def test_it_trains_and_is_sampled_in_its_words(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = str(tmp_path / "run")
    quick = ["eval.images=8", "eval.sample_images=2", "eval.sample_steps=2", "wandb.mode=disabled"]
    assert run(["train", *SMALL, *quick, "--run-dir", folder]) == 0
    assert len(list((tmp_path / "run/samples").glob("images_*.png"))) > 0
    capsys.readouterr()
    assert run(["sample", folder, "--steps", "2", "--json"]) == 0
    images = json.loads(capsys.readouterr().out)["images"]
    assert [image["caption"] for image in images] == ["red rows", "green columns", "blue rows"]
    assert {image["verdict"] for image in images} == {None}
    assert run(["sample", folder, "a red circle"]) == 2
    assert (
        "the vocabulary of the data set lacks the words 'a', 'circle'. Known: red, green, blue,"
        in capsys.readouterr().err
    )
    assert run(["evaluate", folder]) == 2
    assert "data.name=stripes: shapes-geneval is measured on shapes only." in capsys.readouterr().err
