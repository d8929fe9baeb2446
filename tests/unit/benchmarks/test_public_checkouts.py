"""Checkouts of public code: what is imported of them, what stays, and the lines for those that do not fit."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from experiments.benchmarks.public_checkouts import Checkout, import_from
from experiments.benchmarks.public_networks import NETWORKS, PUBLIC_NETWORKS, PublicNetwork, matching_config
from experiments.errors import EcditError

MOE = PUBLIC_NETWORKS["dit-moe"]
MICRO = PUBLIC_NETWORKS["micro-diffusion"]
VARIANTS = [
    pytest.param(network, number, id=variant.label)
    for network in NETWORKS
    for number, variant in enumerate(network.variants)
]


def write(folder: Path, **files: str) -> Path:
    """A folder with these modules, and all others that a checkout of DiT-MoE is recognised by."""
    (folder / "diffusion").mkdir(parents=True)
    (folder / "diffusion" / "__init__.py").touch()
    (folder / "diffusion" / "rectified_flow.py").touch()
    (folder / "models.py").touch()
    for name, text in files.items():
        (folder / f"{name}.py").write_text(text)
    return folder


def test_two_checkouts_with_modules_of_one_name_do_not_mix(tmp_path: Path) -> None:
    first, second = (write(tmp_path / name, models=f"NAME = {name!r}") for name in ("first", "second"))
    path = list(sys.path)
    assert [import_from(folder, ("models",))[0].NAME for folder in (first, second)] == ["first", "second"]
    assert "models" not in sys.modules
    assert sys.path == path


def test_an_unused_package_is_replaced_while_its_names_are_imported(tmp_path: Path) -> None:
    code = "import json\nfrom surely_absent.base import Base\nclass Model(Base):\n    pass\n"
    real = sys.modules["json"]
    unused = ("json", "surely_absent", "surely_absent.base")
    (models,) = import_from(write(tmp_path / "checkout", models=code), ("models",), unused)
    assert list(models.Model().parameters()) == []
    assert models.json is not real
    assert sys.modules["json"] is real
    assert not {"surely_absent", "surely_absent.base"} & set(sys.modules)


def test_a_missing_package_is_one_line_with_its_name(tmp_path: Path) -> None:
    checkout = Checkout(MOE, write(tmp_path / "checkout", models="from surely_absent.layers import Attention"))
    with pytest.raises(EcditError) as raised:
        checkout.modules("models")
    assert str(raised.value) == (
        "feizc/DiT-MoE imports 'surely_absent', which is not installed here. Install it beside ecdit: pip install "
        "surely_absent."
    )


@pytest.mark.parametrize(
    ("name", "code", "said"),
    [
        ("models", "raise RuntimeError('operator does not exist')", "RuntimeError: operator does not exist"),
        ("models", "import diffusion.elsewhere", "ModuleNotFoundError: No module named 'diffusion.elsewhere'"),
    ],
)
def test_code_that_fails_is_one_line_with_the_tested_commit(name: str, code: str, said: str, tmp_path: Path) -> None:
    folder = write(tmp_path / "checkout", **{name: code})
    with pytest.raises(EcditError) as raised:
        Checkout(MOE, folder).modules("models", "diffusion.rectified_flow")
    assert str(raised.value) == (
        f"The code in {folder} failed: {said}. "
        "ecdit was tested with feizc/DiT-MoE at bd34bbb, which can be checked out."
    )


def test_a_folder_that_is_no_checkout_is_refused_with_what_it_lacks(tmp_path: Path) -> None:
    with pytest.raises(EcditError, match=r"absent is no folder\. .* git clone https://github.com/feizc/DiT-MoE\.$"):
        Checkout(MOE, tmp_path / "absent")
    with pytest.raises(EcditError, match=r"is no checkout of Sony.* it has no micro_diffusion/models/dit\.py"):
        Checkout(MICRO, write(tmp_path / "other"))


@pytest.mark.parametrize(("network", "number"), VARIANTS)
def test_our_network_has_the_shapes_that_a_public_one_can_have(network: PublicNetwork, number: int) -> None:
    variant = network.variants[number]
    sizes = ("model.width=96", "model.num_layers=4", "model.num_heads=3", "routing.num_experts=4")
    config = matching_config(network, variant, sizes)
    assert (config.model.width, config.model.num_kv_heads, config.routing.num_experts) == (96, 3, 4)
    assert config.data.channels == 4
    blocks = config.sparse_layer_indices
    assert blocks == ((1,) if variant.has_dense_end else (1, 3) if len(blocks) < 4 else (0, 1, 2, 3))
    with pytest.raises(EcditError, match=rf"^train\.accumulation=2 does not fit --beside {network.name}: "):
        matching_config(network, variant, ("train.accumulation=2",))


def test_a_network_without_a_block_of_experts_is_refused() -> None:
    with pytest.raises(EcditError, match=r"model\.num_layers=2 leaves micro-diffusion no block with experts"):
        matching_config(MICRO, MICRO.variants[0], ("model.num_layers=2",))


def test_another_router_is_refused() -> None:
    with pytest.raises(EcditError) as raised:
        matching_config(MOE, MOE.variants[0], ("routing=switch",))
    assert str(raised.value) == (
        "routing.name=switch does not fit --beside dit-moe: feizc/DiT-MoE has shared_expert there. "
        "Leave out routing.name."
    )


def test_a_setting_that_is_stored_only_where_it_is_used_is_refused_too() -> None:
    network = PUBLIC_NETWORKS["diffmoe"]
    with pytest.raises(EcditError) as raised:
        matching_config(network, network.variants[0], ("routing.expert_bias=False",))
    assert str(raised.value) == (
        "routing.expert_bias=False does not fit --beside diffmoe: KwaiVGI/DiffMoE has True there. "
        "Leave out routing.expert_bias."
    )
