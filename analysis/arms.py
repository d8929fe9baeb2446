"""This module groups runs into the arms of a comparison, and gives arms and setups their names.

An **arm** is defined by everything about routing and feed-forward width: the runs of one arm differ in their seed
alone. A **setup** is everything else (preset, images, optimizer, ...): only arms of one setup are compared with
each other. A value that was tuned for each arm (`tuned_arms.py`) makes no setup of its own, and neither does the length
of a run that began from another one (`equal_compute.py`). Dense runs are named by
what they are a baseline for. EC-DIT at f_c = 2 spends more FLOPs than a dense model of the same depth, so a comparison
has two baselines: `Dense (same depth)`, whose layers are those of the sparse models, and `Dense (same activated)`,
which is widened to the activated parameters of a sparse model within `ACTIVATED_TOLERANCE`. Where a setup has several
arms of one name, such as baselines of several depths, the label of each also says in what they differ; `baselines.py`
finds the one that an arm is measured from.

The look of arms in figures is defined in `style.py`.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, Literal, cast

import pandas as pd

from analysis.baselines import measured_from
from analysis.comparable import OF_THE_CONDITION
from analysis.equal_compute import EQUAL_COMPUTE, began_from_weights, with_lengths_alike
from analysis.executed_flops import train_flops
from analysis.found_runs import BEGAN_FROM, IMPORTED, WITHOUT_EFFECT
from analysis.tuned_arms import with_tuned_values_alike
from experiments.config.routers import FAMILIES, compared_names, router_family, router_label

ACTIVATED_TOLERANCE = 0.03
"""The relative difference in activated parameters up to which a wider dense model counts as matched."""

Kind = Literal["dense_same_depth", "dense_same_active", "dense_other", "sparse"]
KINDS: tuple[Kind, ...] = ("dense_same_depth", "dense_same_active", "dense_other", "sparse")

PLACEMENT = "model.sparse_layers"
ARM_SETTINGS = ("routing.", "model.ffn_factor", "model.num_layers", PLACEMENT, "train.init_")
GROUP = "routing.group_images"
PARAMETRIZATION = "optim.parametrization"
QUALIFIERS = {
    "routing.num_experts": "{}E",
    "routing.capacity_factor": "f_c {}",
    "routing.eval_capacity_factor": "f_c {} in evaluation",
    "routing.top_k": "top-{}",
    "routing.gating": "{} gates",
    "routing.gate_norm": "gate norm {}",
    "routing.gate_scale": "gate scale {}",
    "routing.expert": "{} experts",
    "routing.expert_bias": "expert bias {}",
    "routing.expert_factor": "experts {} wide",
    "routing.shared_factor": "shared {} wide",
    "routing.balance_loss_weight": "balance loss {}",
    "routing.world": "world {}",
    "model.ffn_factor": "feed-forward {} wide",
    "model.num_layers": "{} layers",
    PLACEMENT: "sparse layers {}",
    BEGAN_FROM: "from {}",
    IMPORTED: "{}",
    "train.init_experts": "{} of experts",
}


@dataclass(frozen=True)
class Arm:
    """The label of an arm, and whether it is sparse or which dense baseline it is."""

    label: str
    kind: Kind


def with_arms(runs: pd.DataFrame) -> pd.DataFrame:
    """Returns `runs` with the columns `setup` (a label), `arm` (a label), `arm_kind` and `variant`.

    `variant` numbers the arms of one router (0, 1, ...) over all setups, with the plain form first, so that one line
    style means one arm in every panel. Setups come in the order of their activated parameters.
    """
    dotted = [name for name in runs.columns if "." in name or name == "seed"]
    arm_columns = [name for name in dotted if name.startswith(ARM_SETTINGS)]
    held = [name for name in dotted if name not in arm_columns and not name.startswith((*WITHOUT_EFFECT, "seed"))]
    labels = _setup_labels(with_lengths_alike(with_tuned_values_alike(runs), held), held)
    named = runs.assign(setup=labels, arm_key=_arm_keys(runs, arm_columns))
    arms = _name_arms(named, arm_columns)
    pairs = list(zip(named["setup"], named["arm_key"], strict=True))
    named["arm"] = [arms[pair].label for pair in pairs]
    named["arm_kind"] = [arms[pair].kind for pair in pairs]
    named["variant"] = _variants(named)
    smallest = named.groupby("setup")["params_active"].transform("min")
    return named.drop(columns="arm_key").iloc[smallest.argsort(kind="stable")].reset_index(drop=True)


def arm_list(table: pd.DataFrame) -> list[tuple[str, str, int]]:
    """Returns the arms in `table` as (label, router, variant), baselines first."""
    arms = list(table.drop_duplicates("arm")[["arm", "routing.name", "variant"]].itertuples(index=False, name=None))
    routers = in_order({router for _, router, _ in arms})
    return sorted(arms, key=lambda arm: (routers.index(arm[1]), arm[2]))


def in_order(routers: Collection[str]) -> list[str]:
    """Returns `routers` in the order of a comparison, by family; those of plugins that are not loaded come last."""
    by_family = {family: place for place, family in enumerate(FAMILIES)}
    compared = (name for name in compared_names() if name in routers)
    known = sorted(compared, key=lambda name: by_family.get(router_family(name) or "fixed", 0))
    return known + sorted(set(routers) - set(known))


def _arm_keys(runs: pd.DataFrame, columns: list[str]) -> list[str]:
    """Returns one text per run; the texts of two runs are equal exactly where all `columns` are.

    A dense run has no sparse layers, so that where they would be makes no arm of its own. A setting that a run does not
    store (NaN) and one that is None are the same.
    """
    rows = runs[columns].astype(object).to_dict("records")
    rows = [row | {PLACEMENT: None} if row["routing.name"] == "dense" else row for row in rows]
    rows = [{name: value if value == value else None for name, value in row.items()} for row in rows]
    return [json.dumps(row, sort_keys=True, default=str) for row in rows]


def _setup_labels(runs: pd.DataFrame, held: list[str]) -> list[str]:
    """Labels each run with its preset and with whatever else differs between the runs of that preset."""
    labels: dict[Any, str] = {}
    for preset, group in runs.groupby("model.name", sort=False):
        named = [column for column in held if _is_named(column, group[column])]
        parts = [_setting_part(column, group[column]) for column in named if not _follows(column, group, named)]
        texts = [", ".join([str(preset), *(part[i] for part in parts)]) for i in range(len(group))]
        labels |= dict(zip(group.index, texts, strict=True))
    return [labels[run] for run in runs.index]


def _is_named(column: str, values: pd.Series[Any]) -> bool:
    """Says whether a label names this setting, because its values differ, or because sizes are compared with it.

    A comparison of widths says which parametrization it used, unless that is the standard one everywhere.
    """
    texts = set(_texts(values))
    return len(texts) > 1 or (column == PARAMETRIZATION and texts != {"standard"})


def _follows(column: str, runs: pd.DataFrame, named: list[str]) -> bool:
    """Says whether a named setting has one value with each objective or block, which decide it."""
    leader = "flow.objective" if column.startswith("flow.") else "model.block" if column in OF_THE_CONDITION else column
    if leader == column or leader not in named:
        return False
    texts = pd.Series(_texts(runs[column]), index=runs.index)
    return bool((texts.groupby(runs[leader].map(setting_text)).nunique() == 1).all())


def _setting_part(column: str, values: pd.Series[Any]) -> list[str]:
    if column == "train.images":
        return [f"{value:,} images" for value in values]
    return [f"{column}={text}" for text in _texts(values)]


def _texts(values: pd.Series[Any]) -> list[str]:
    return [setting_text(value) for value in values]


def setting_text(value: object) -> str:
    """Writes a setting as a user types it: 2 and not 2.0, and None where it is missing."""
    if value is None or value != value:
        return "None"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _name_arms(runs: pd.DataFrame, arm_columns: list[str]) -> dict[tuple[str, str], Arm]:
    """Names each (setup, arm_key). No two arms of one setup have the same label."""
    varying = {router: _varying(group, arm_columns) for router, group in runs.groupby("routing.name")}
    experts, sparse = {"routing.num_experts"}, runs[runs["routing.name"] != "dense"]
    several = sparse["routing.num_experts"].nunique() > 1
    varying = {router: columns | experts if several else columns - experts for router, columns in varying.items()}
    spent = train_flops(runs) if (runs["flops_before"] > 0).any() else None
    began = began_from_weights(runs)
    arms: dict[tuple[str, str], Arm] = {}
    for setup, one_of_each in runs.drop_duplicates(["setup", "arm_key"]).groupby("setup", sort=False):
        named: list[Arm] = []
        for _, run in one_of_each.iterrows():
            arm = _dense_arm(run, one_of_each) if run["routing.name"] == "dense" else _sparse_arm(run, varying)
            if run["routing.name"] == "dense" and began[cast("int", run.name)]:  # a baseline begins from scratch
                arm = Arm(f"{arm.label}, from {run[BEGAN_FROM]}", "dense_other")
            named.append(arm)
        named = named if spent is None else _with_compute(named, one_of_each, spent)
        for key, arm in zip(one_of_each["arm_key"], _told_apart(named, one_of_each, arm_columns), strict=True):
            arms[str(setup), key] = arm
    return arms


def _told_apart(arms: list[Arm], runs: pd.DataFrame, columns: list[str]) -> list[Arm]:
    """Returns `arms` with labels that no two of them share; row i of `runs` is a run of arm i.

    The labels of arms that have one label get the settings in which these arms differ. Where even those read the same,
    as two widths that differ only behind the sixth digit, the arms are numbered.
    """
    places: dict[str, list[int]] = {}
    for place, arm in enumerate(arms):
        places.setdefault(arm.label, []).append(place)
    differing = {label: _differing(runs.iloc[alike], columns) for label, alike in places.items() if len(alike) > 1}
    unique: dict[str, Arm] = {}
    for place, arm in enumerate(arms):
        whole, number = arm.label, 1
        if whole in differing:
            whole = ", ".join([whole, *_parts(runs.iloc[place], differing[whole])])
        label = whole
        while label in unique:
            number += 1
            label = f"{whole}, number {number}"
        unique[label] = Arm(label, arm.kind)
    return list(unique.values())


def _differing(runs: pd.DataFrame, columns: list[str]) -> set[str]:
    """Returns the columns in which `runs` differ; where sparse layers would be has no effect on dense models."""
    named = {name for name in columns if len(set(_texts(runs[name]))) > 1}
    return named - {PLACEMENT} if set(runs["routing.name"]) == {"dense"} else named


def _with_compute(arms: list[Arm], runs: pd.DataFrame, spent: pd.Series[float]) -> list[Arm]:
    """Says of each arm that began from another run whether both cost more or less than its baseline (`baselines.py`).

    Row i of `runs` is a run of arm i. A number would differ between sizes, and make an arm of each. Nothing is said
    where a run from scratch costs as much, or where there is no baseline.
    """
    dense = runs[[arm.kind == "dense_same_depth" for arm in arms]]
    from_scratch, named = spent[runs.index[~began_from_weights(runs)]], []
    for arm, (place, run) in zip(arms, runs.iterrows(), strict=True):
        ratios = spent[cast("int", place)] / from_scratch
        if run["flops_before"] > 0 and not ((ratios - 1).abs() <= EQUAL_COMPUTE).any():
            for at in measured_from(dense, run, takes_only=run["routing.name"] == "dense").index[:1]:
                arm = Arm(f"{arm.label}, {'more' if ratios[at] > 1 else 'less'} compute than dense", arm.kind)
        named.append(arm)
    return named


def _varying(runs: pd.DataFrame, columns: list[str]) -> set[str]:
    """Returns the columns in which runs of one setup differ."""
    differing = [column for column in columns if len(set(_texts(runs[column]))) > 1]
    return {
        column
        for column in differing
        if any(len(set(_texts(values))) > 1 for _, values in runs.groupby("setup")[column])
    }


def _sparse_arm(run: pd.Series[Any], varying: dict[Any, set[str]]) -> Arm:
    label, parts = router_label(run["routing.name"]), _parts(run, varying[run["routing.name"]])
    return Arm(f"{label} ({', '.join(parts)})" if parts else label, "sparse")


def _parts(run: pd.Series[Any], names: set[str]) -> list[str]:
    """Returns the settings `names` of a run in the words of a label, those of `QUALIFIERS` first."""
    ordered = [name for name in [*QUALIFIERS, *sorted(names - set(QUALIFIERS))] if name in names and name != GROUP]
    parts = [QUALIFIERS.get(name, name + "={}").format(setting_text(run[name])) for name in ordered]
    return [*parts, group_text(run[GROUP])] if GROUP in names else parts


GROUPS_IN_WORDS = {"batch": "whole batch", "all": "all processes"}


def group_order(group_images: object) -> float:
    """Returns a number by which routing groups are sorted by their size; 0 without groups."""
    if isinstance(group_images, str) and group_images in GROUPS_IN_WORDS:
        return float("inf")
    return float(cast("float", group_images) or 0)


def group_text(group_images: object) -> str:
    """Says `routing.group_images` in words."""
    if isinstance(group_images, str) and group_images in GROUPS_IN_WORDS:
        return GROUPS_IN_WORDS[group_images]
    return "per image" if group_images == 1 else f"groups of {setting_text(group_images)}"


def _dense_arm(run: pd.Series[Any], arms: pd.DataFrame) -> Arm:
    """Names a dense arm by the baseline that it is.

    "Same depth" means the number of layers and feed-forward width of the sparse arms. Without sparse arms the narrowest
    dense arm takes their place.
    """
    sparse = arms[arms["routing.name"] != "dense"]
    like = sparse if len(sparse) else arms.sort_values("params_total").head(1)
    if all(run[name] in set(like[name]) for name in ("model.ffn_factor", "model.num_layers")):
        return Arm("Dense (same depth)", "dense_same_depth")
    # Widths are whole numbers, so a matched model never has exactly the activated parameters of its sparse model.
    gaps = (run["params_active"] / sparse["params_active"] - 1).abs()
    if (gaps <= ACTIVATED_TOLERANCE).any():
        return Arm("Dense (same activated)", "dense_same_active")
    shape = f"feed-forward {run['model.ffn_factor']:g} wide, {run['model.num_layers']} layers"
    return Arm(f"Dense ({shape})", "dense_other")


def _variants(runs: pd.DataFrame) -> list[int]:
    """Returns, for each run, the number of its arm among the arms of its router."""
    order: dict[str, list[tuple[Any, ...]]] = {}
    for _, run in runs.drop_duplicates("arm").iterrows():
        size = group_order(run[GROUP])
        key = (KINDS.index(run["arm_kind"]), run["routing.num_experts"], size, run["arm"])
        order.setdefault(run["routing.name"], []).append(key)
    numbers = {key[-1]: i for keys in order.values() for i, key in enumerate(sorted(keys))}
    return [numbers[arm] for arm in runs["arm"]]
