"""Makes the numbers and tables of blocks-and-objectives.md from blocks-runs.csv."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations

import pandas as pd
from exported_runs import differences, exported

from analysis.power import seeds_needed
from analysis.seed_intervals import Interval, difference

RUNS = "blocks-runs.csv"
ROUTERS = {"dense": "dense", "token_choice": "token choice", "expert_choice": "expert choice"}
BLOCKS = {"pixart": "PixArt", "dit": "DiT", "mmdit": "MM-DiT"}
OBJECTIVES = {"rectified_flow": "rectified flow", "ddpm": "DDPM"}


def blocks() -> pd.DataFrame:
    """Returns the runs of `blocks_and_objectives`; a run leaves out what is at its default."""
    runs = exported(RUNS).copy()
    runs["model.block"] = runs["model.block"].fillna("pixart")
    runs["flow.objective"] = runs["flow.objective"].fillna("rectified_flow")
    return runs.assign(velocity_error=runs["evals.velocity_error"].fillna(runs["evals.val_loss"]))


def by_seed(runs: pd.DataFrame, column: str) -> dict[int, float]:
    """Returns a value for each seed."""
    return dict(zip(runs["seed"], runs[column], strict=True))


def table() -> Iterator[str]:
    """Yields mean and standard deviation of every arm in both measures."""
    yield "| block | objective | router | learning rate | own loss | velocity error |"
    yield "|---|---|---|--:|--:|--:|"
    for (objective, block), setup in blocks().groupby(["flow.objective", "model.block"], sort=False):
        for router, label in ROUTERS.items():
            arm = setup[setup["routing.name"] == router]
            own, error = (
                f"{arm[name].mean():.4f} ± {arm[name].std():.4f}" for name in ("evals.val_loss", "velocity_error")
            )
            rate = f"{arm['optim.learning_rate'].iloc[0]:g}"
            yield f"| {BLOCKS[str(block)]} | {OBJECTIVES[str(objective)]} | {label} | {rate} | {own} | {error} |"


def _gaps(measure: str) -> dict[tuple[str, str], dict[tuple[str, str], Interval]]:
    """Returns the difference of every two routers in every setup, over the seeds that they share."""
    found = {}
    for (objective, block), setup in blocks().groupby(["flow.objective", "model.block"], sort=False):
        of_router = {router: by_seed(setup[setup["routing.name"] == router], measure) for router in ROUTERS}
        pairs = combinations(ROUTERS, 2)
        found[str(objective), str(block)] = {(a, b): difference(of_router[b], of_router[a]) for a, b in pairs}
    return found


def differences_table() -> Iterator[str]:
    """Yields the differences of every setup in the loss that was trained on."""
    pairs = [f"{ROUTERS[b]} - {ROUTERS[a]}" for a, b in combinations(ROUTERS, 2)]
    yield f"| block | objective | {' | '.join(pairs)} |"
    yield "|---|---|" + "--:|" * 3
    for (objective, block), gaps in _gaps("evals.val_loss").items():
        cells = [f"{gap.mean:+z.4f} ({gap.low:+z.4f} to {gap.high:+z.4f})" for gap in gaps.values()]
        yield f"| {BLOCKS[block]} | {OBJECTIVES[objective]} | {' | '.join(cells)} |"


def values() -> Iterator[tuple[str, str]]:
    """Yields the name and the text of every number."""
    runs = blocks()
    setups = runs.groupby(["flow.objective", "model.block"])
    flops = runs.groupby(["model.block", "routing.name"])["flops_per_image"].first().groupby("model.block")
    yield "blocks.flops-within", f"{100 * (flops.max() / flops.min() - 1).max():.1f}%"
    shares = []
    for measure in ("evals.val_loss", "velocity_error"):
        for _, setup in setups:
            means = setup.groupby("routing.name")[measure].mean()
            shares += [100 * (1 - means[router] / means["dense"]) for router in ("token_choice", "expert_choice")]
    yield "blocks.below-dense", f"{min(shares):.0f}% to {max(shares):.0f}%"
    own = _gaps("evals.val_loss")
    from_dense = [gap for gaps in own.values() for (one, _), gap in gaps.items() if one == "dense"]
    yield "blocks.outside", str(sum(gap.is_below_zero or gap.is_above_zero for gap in from_dense))
    yield "blocks.compared", str(len(from_dense))
    routed = {objective: [] for objective in OBJECTIVES}
    for (objective, _), gaps in own.items():
        routed[objective].append(gaps["token_choice", "expert_choice"].mean)
    flow, ddpm = routed["rectified_flow"], routed["ddpm"]
    yield "blocks.token-ahead", f"{min(flow):.3f} to {max(flow):.3f}"
    yield "blocks.expert-ahead", " and ".join(dict.fromkeys(f"{-gap:.3f}" for gap in ddpm if gap < 0))
    yield "blocks.expert-ahead-in", ("none", "one", "two", "three")[sum(gap < 0 for gap in ddpm)]
    found = differences(RUNS)
    yield "blocks.tested", str(len(found))
    yield "blocks.supported", "none" if not any(each.verdict in ("lower", "higher") for each in found) else "some"
    near = [each for each in found if each.reference.startswith("Dense (") and each.verdict == "not after correction"]
    seeds = [seeds_needed(each.gap) or 0 for each in near]
    yield "blocks.seeds", f"{min(seeds)} to {max(seeds)}"
    parameters = runs[runs["routing.name"] == "dense"].groupby("model.block")["params_total"].first()
    yield "blocks.mmdit-parameters", f"{parameters['mmdit'] / parameters['pixart']:.1f}"
    yield "blocks.classes", f"{runs['data.num_classes'].max():.0f}"


TABLES = {"blocks": table, "blocks-differences": differences_table}
