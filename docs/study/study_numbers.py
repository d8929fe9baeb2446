"""Makes the numbers and tables of README.md in this folder, and those that the README of the project takes from it.

They come from runs.csv by the project's own analysis, from laws.csv and comparison.md, which `study_files.py` writes,
and from inference-time-width-72.csv.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pandas as pd
from exported_runs import ABSENT, printed_table

from analysis.claims import SAME_T, PairedDifference, claims, holds, values_by_seed
from analysis.seed_intervals import Interval, difference

FOLDER = Path(__file__).parent
KINDS = {"Dense (same depth)": "dense_same_depth", "Dense (same activated)": "dense_same_active"}
GROUP_IMAGES = 8.0
"""Images of a routing group, in every routed run of the study."""
SAME_IN_ALL = {"model.num_layers": 4, "model.sparse_layers": "alternate"}
"""The settings that name arms and are the same in all runs of the study."""
WIDTHS = (32, 48, 72)
LONGEST = "nano, model.width={}, 9,600 images"
ROUTERS = {"expert": "Expert choice", "token": "Token choice", "switch": "Switch"}
SHOWN_ARMS = {
    "dense, same depth": "Dense (same depth)",
    "dense, same activated as f_c = 2": "Dense (same activated)",
    "token choice, 8 experts, f_c = 1": "Token choice (8E, f_c 1)",
    "switch, 8 experts, f_c = 1": "Switch (8E, f_c 1)",
    "**expert choice, 8 experts, f_c = 1**": "Expert choice (8E, f_c 1)",
    "token choice, 8 experts, f_c = 2": "Token choice (8E, f_c 2)",
    "**expert choice, 8 experts, f_c = 2**": "Expert choice (8E, f_c 2)",
    "token choice, 16 experts, f_c = 2": "Token choice (16E, f_c 2)",
    "**expert choice, 16 experts, f_c = 2**": "Expert choice (16E, f_c 2)",
}


@cache
def study_table() -> pd.DataFrame:
    """Returns runs.csv as a run table: what it lacks follows from the names of the arms or is the same in all runs."""
    table = pd.read_csv(FOLDER / "runs.csv").assign(**ABSENT, **SAME_IN_ALL)
    table["arm_kind"] = table["arm"].map(KINDS).fillna("sparse")
    table["routing.group_images"] = table["routing.name"].map(lambda name: None if name == "dense" else GROUP_IMAGES)
    table["model.width"] = table["setup"].str.extract(r"width=(\d+)").astype(int)
    table["train.images"] = table["images_seen"]
    table["model.ffn_factor"] = table["arm_kind"].map({"dense_same_active": 6.0}).fillna(4.0)
    table["train_flops_per_image"] = table["train_flops"] / table["images_seen"]
    arms = table.drop_duplicates("arm").sort_values(
        ["routing.num_experts", "arm_kind", "arm"], ascending=[True, False, True]
    )
    variants = arms.set_index("arm").groupby("routing.name").cumcount()
    return table.assign(variant=table["arm"].map(variants))


@cache
def tested() -> list[PairedDifference]:
    """Returns every difference that is tested among the runs."""
    return claims(study_table())


def losses() -> Iterator[str]:
    """Yields the table of the final losses of some arms at every width."""
    yield "| | width 32 | width 48 | width 72 |"
    yield "|---|--:|--:|--:|"
    table = study_table()
    for label, arm in SHOWN_ARMS.items():
        cells = []
        for width in WIDTHS:
            loss = table[(table["setup"] == LONGEST.format(width)) & (table["arm"] == arm)]["val_loss"]
            cells.append(f"{loss.mean():.4f} ± {loss.std():.4f}" if len(loss) else "")
        yield f"| {label} | {' | '.join(cells)} |"


def values() -> Iterator[tuple[str, str]]:
    """Yields the name and the text of every number."""
    table = study_table()
    yield "study.runs", str(len(table))
    yield "study.tflop", f"{table['train_flops'].sum() / 1e12:.1f}"
    yield "study.hours", f"{table['train_seconds'].sum() / 3600:.2f}"
    yield "study.fewest-parameters", f"{table['params_total'].min() / 1e3:.0f}K"
    yield "study.most-parameters", f"{table['params_total'].max() / 1e6:.1f}M"
    for part in (_corrections, _experts_against_dense, _expert_against_token, _capacity, _twice_the_experts):
        yield from part(table)
    yield from _level(table)
    yield from _laws()
    yield from _sampling_time()


def _corrections(_table: pd.DataFrame) -> Iterator[tuple[str, str]]:
    found = tested()
    strict = [claim for claim in found if holds(claim.p_holm)]
    yield "study.tested", str(len(found))
    yield "study.outside", str(sum(claim.gap.is_below_zero or claim.gap.is_above_zero for claim in found))
    yield "study.supported", str(sum(claim.verdict in ("lower", "higher") for claim in found))
    yield "study.holm", str(len(strict))
    of_width_32 = [each for each in strict if each.setup == LONGEST.format(32)]
    yield "study.holm-32", _in_words(sum(each.reference == "Dense (same activated)" for each in of_width_32))


def _experts_against_dense(_table: pd.DataFrame) -> Iterator[tuple[str, str]]:
    for width in WIDTHS:
        for kind, reference in (("depth", "Dense (same depth)"), ("activated", "Dense (same activated)")):
            found = [each for each in tested() if (each.setup, each.reference) == (LONGEST.format(width), reference)]
            yield f"study.below-{kind}-{width}", str(sum(each.verdict == "lower" for each in found))
            if kind == "depth":
                yield f"study.against-depth-{width}", str(len(found))
    above = sum(each.verdict == "higher" and each.reference != SAME_T for each in tested())
    yield "study.above", str(above)


def _expert_against_token(table: pd.DataFrame) -> Iterator[tuple[str, str]]:
    found = {}
    for claim in tested():
        if claim.reference.startswith("Token choice") and claim.setup.endswith("9,600 images"):
            experts, f_c = re.findall(r"\((\d+)E, f_c (\d)\)", claim.arm)[0]
            found[int(re.findall(r"width=(\d+)", claim.setup)[0]), int(experts), int(f_c)] = claim
    for (width, experts, f_c), claim in found.items():
        if f_c == 1:
            yield f"study.ahead-{width}-{experts}e-f1", f"{-claim.gap.mean:z.4f}"
    yield "study.gap-48-16e-f2", f"{found[48, 16, 2].gap.mean:z.4f}"
    at_one = [claim for (_, _, f_c), claim in found.items() if f_c == 1]
    taken_back = [claim.p_benjamini_hochberg or 0 for claim in at_one if claim.verdict == "not after correction"]
    yield "study.taken-back-p", f"{min(taken_back):.3f} to {max(taken_back):.3f}"
    yield "study.compared-f1", _in_words(len(at_one))
    yield "study.ahead-f1", _in_words(sum(claim.gap.mean < 0 for claim in at_one))
    yield "study.supported-f1", _in_words(sum(claim.verdict == "lower" for claim in at_one))
    at_two = [claim for (_, _, f_c), claim in found.items() if f_c == 2]
    yield "study.compared-f2", _in_words(len(at_two))
    yield "study.outside-f2", _in_words(sum(claim.gap.is_below_zero or claim.gap.is_above_zero for claim in at_two))
    yield "study.supported-f2", _in_words(sum(claim.verdict in ("lower", "higher") for claim in at_two))
    tight = table[(table["routing.capacity_factor"] == 1) & table["setup"].str.endswith("9,600 images")]
    for name in ("expert", "token"):
        ours = tight[tight["arm"].str.startswith(ROUTERS[name])]
        shares = 100 * ours.groupby(["setup", "arm"])["dropped_share"].mean()
        decimals = 0 if name == "expert" else 1
        yield f"study.dropped-{name}", f"{shares.min():.{decimals}f} to {shares.max():.{decimals}f}%"
    printed = printed_table("comparison.md")["Dropped at one t %"]
    is_tight = printed.index.str.contains(r"9,600 images: Token choice \(\d+E, f_c 1\)")
    same_t = printed[is_tight].astype(float)
    yield "study.dropped-token-same-t", f"{same_t.min():.1f} to {same_t.max():.1f}%"


def _change(table: pd.DataFrame, width: int, arm: str, other: str) -> Interval | None:
    runs = table[table["setup"] == LONGEST.format(width)]
    ours, theirs = (values_by_seed(runs, each, "val_loss") for each in (arm, other))
    return difference(ours, theirs) if ours and theirs else None


def _capacity(table: pd.DataFrame) -> Iterator[tuple[str, str]]:
    """Yields what f_c = 2 costs and buys against f_c = 1."""
    flops = table.groupby(["setup", "arm"])["flops_per_image"].first()
    more = []
    for name in ("expert", "token"):
        gains = []
        for width in WIDTHS:
            for experts in (8, 16):
                two, one = (f"{ROUTERS[name]} ({experts}E, f_c {f_c})" for f_c in (2, 1))
                if gap := _change(table, width, two, one):
                    gains.append(-gap.mean)
                    more.append(100 * (flops[LONGEST.format(width), two] / flops[LONGEST.format(width), one] - 1))
        yield f"study.f2-buys-{name}", f"{min(gains):z.4f} to {max(gains):z.4f}"
    yield "study.f2-costs", f"{min(more):.1f} to {max(more):.1f}%"


def _twice_the_experts(table: pd.DataFrame) -> Iterator[tuple[str, str]]:
    """Yields what 16 experts change against 8: the largest changes, and how many exceed the spread over seeds."""
    beyond = []
    supported = 0
    for router in ROUTERS.values():
        for width in WIDTHS:
            for f_c in (1, 2):
                names = [f"{router} ({experts}E, f_c {f_c})" for experts in (16, 8)]
                gap = _change(table, width, *names)
                if gap is None:
                    continue
                supported += gap.is_below_zero or gap.is_above_zero
                if (router, width) == (ROUTERS["expert"], 48):
                    yield f"study.twice-f{f_c}", f"{gap.mean:z.4f}, {gap.low:z.4f} to {gap.high:z.4f}"
                    continue
                runs = table[table["setup"] == LONGEST.format(width)].groupby("arm")["val_loss"].std()
                if abs(gap.mean) > runs[names].max():
                    beyond.append(gap)
    yield "study.twice-supported", "no" if not supported else str(supported)
    yield "study.twice-beyond", _in_words(len(beyond))


def _level(table: pd.DataFrame) -> Iterator[tuple[str, str]]:
    """Yields how 8 experts of expert choice stand against 16 of token choice with the same capacity factor or another.

    The verdicts of the paper's claim are corrected for claims on curves too, which are not committed.
    """
    gaps = []
    for _, runs in table.groupby("setup"):
        for ours in runs.loc[runs["arm"].str.startswith("Expert choice (8E"), "arm"].unique():
            for theirs in runs.loc[runs["arm"].str.startswith("Token choice (16E"), "arm"].unique():
                gaps.append(difference(*(values_by_seed(runs, arm, "val_loss") for arm in (ours, theirs))))
    better, worse = sum(gap.is_below_zero for gap in gaps), sum(gap.is_above_zero for gap in gaps)
    yield "study.level-tested", str(len(gaps))
    yield "study.level-better", str(better)
    yield "study.level-worse", str(worse)
    yield "study.level-open", str(len(gaps) - better - worse)


def _laws() -> Iterator[tuple[str, str]]:
    rows = pd.read_csv(FOLDER / "laws.csv")
    plain = rows[rows["law"].str.startswith("power law")]
    for name, (_, row) in zip(("dense", "expert"), plain.iterrows(), strict=True):
        value, low, high = re.findall(r"\ba = ([\d.]+) \(([\d.]+) to ([\d.]+)\)", row["parameters"])[0]
        yield f"laws.a-{name}", f"{float(value):.2f} ({float(low):.2f} to {float(high):.2f})"
        error, least, most = _signed_errors(row["largest_runs"])
        yield f"laws.off-{name}", f"{abs(error):.0f}%"
        yield f"laws.prediction-{name}", f"{least:.0f}% to {most:.0f}%"
        mean, worst = re.findall(r"mean error of ([\d.]+)%, the worst with \+?(-?[\d.]+)%", row["sizes_left_out"])[0]
        yield f"laws.sizes-off-{name}", f"{float(mean):.0f}%"
        yield f"laws.smallest-off-{name}", f"{float(worst):.0f}%"
    routed = rows[rows["law"] == "routed"]
    errors = [_signed_errors(text) for text in routed["largest_runs"] if text.startswith("Fitted to")]
    yield "laws.routed", _in_words(len(routed))
    yield "laws.predicted", _in_words(len(errors))
    yield "laws.too-low", f"{min(-error for error, _, _ in errors):.0f} to {max(-error for error, _, _ in errors):.0f}%"
    yield "laws.within", _in_words(sum(low <= 0 <= high for _, low, high in errors))


def _signed_errors(text: str) -> tuple[float, float, float]:
    """Returns the mean error with sign, in percent, and its interval."""
    mean, low, high = re.findall(r"mean with sign ([+-][\d.]+)% \(([+-][\d.]+)% to ([+-][\d.]+)%\)", text)[0]
    return float(mean), float(low), float(high)


def _sampling_time() -> Iterator[tuple[str, str]]:
    table = pd.read_csv(FOLDER / "inference-time-width-72.csv").set_index("arm")
    time, flops = (100 * table[f"overhead_{name}"] for name in ("inference_seconds_per_image", "flops_per_image"))
    for f_c, decimals in ((1, 1), (2, 0)):
        arm = f"Expert choice (8E, f_c {f_c})"
        yield f"time.expert-f{f_c}", f"{time[arm]:.0f}%"
        yield f"time.expert-flops-f{f_c}", f"{flops[arm]:.{decimals}f}%"
    yield "time.token-f1", f"{time['Token choice (8E, f_c 1)']:.0f}%"
    at_two = [time[f"Token choice ({experts}E, f_c 2)"] for experts in (8, 16)]
    yield "time.token-f2", f"{min(at_two):.0f}% to {max(at_two):.0f}%"


def _in_words(number: int) -> str:
    words = ("none", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
    return words[number] if number < len(words) else str(number)


TABLES = {"study-losses": losses}
