"""The routers of this project, a row each: what a paper's router sets on the axes of `routing_settings.py`.

Every row has its paper's defaults; where a paper leaves a value open the value is that of EC-DIT, f_c = 2 with 8
experts. `group_images="batch"` is the field's habit for token choice (DeepSpeed and GShard count capacity over the
local batch); expert choice defaults to one image, so that no image changes another. The weight of a loss is that of
one layer, as the papers add the losses of their layers. First weights, placement of the routed layers and optimizer
are those of the backbone for all routers, so that a comparison compares routing.
"""

from __future__ import annotations

from experiments.config.router_row import Fixed, RouterRow

ONE_EXPERT = Fixed(1, "does not fit {name}, which sends a token to one expert.")
DEEPSPEED_GATES = Fixed("softmax", "does not work with {name}: DeepSpeed's gates take the softmax themselves.")
WITHOUT_SCORES = {
    "gating": Fixed(None, "does not fit {name}, which has no scores: every gate is 1."),
    "gate_norm": Fixed("none", "does not fit {name}, which has no scores: every gate is 1."),
    "balance_loss_weight": Fixed(0.0, "does not fit {name}, whose choice does not learn."),
}
"""The settings of routers that fix their choice without logits of their own."""
SOFT_WEIGHTS = Fixed(None, "does not fit {name}: its weights are softmaxes over tokens and over slots.")

ROWS: tuple[RouterRow, ...] = (
    RouterRow(
        "dense", label="Dense", implementation=None, color="#000000",
        num_experts=0, capacity_factor=None, group_images=None, gating=None, expert=None, family="dense",
        has_logits=False,
    ),
    RouterRow(
        "expert_choice", label="Expert choice", color="#D55E00",
        implementation="experiments.routing.expert_choice:ExpertChoiceRouter", has_global_scope=True,
        source="EC-DIT, arXiv 2410.02098, equations 5 to 8",
    ),
    RouterRow(
        "token_choice", label="Token choice", color="#0072B2",
        implementation="experiments.routing.token_choice:TokenChoiceRouter",
        source="GShard, arXiv 2006.16668",
        top_k=2, group_images="batch", balance_loss_weight=0.01, needs_capacity=False,
        has_unit_gates=True,
        fixed={"gating": DEEPSPEED_GATES},
    ),
    RouterRow(
        "switch", label="Switch", color="#56B4E9",
        implementation="experiments.routing.token_choice:TokenChoiceRouter",
        source="Switch Transformer, arXiv 2101.03961",
        capacity_factor=1.0, top_k=1, group_images="batch", balance_loss_weight=0.01, needs_capacity=False,
        fixed={"gating": DEEPSPEED_GATES, "top_k": ONE_EXPERT},
    ),
    RouterRow(
        "shared_expert", label="Shared experts", color="#009E73",
        implementation="experiments.routing.top_k:TopKRouter",
        source="DiT-MoE, arXiv 2407.11633",
        capacity_factor=None, top_k=2, group_images="batch", expert="swiglu", shared_factor=2.0,
        balance_loss_weight=0.005, needs_capacity=False,
    ),
    RouterRow(
        "st_moe", label="ST-MoE", implementation="experiments.routing.token_choice:TokenChoiceRouter",
        source="ST-MoE, arXiv 2202.08906, sections 3 and 5.1",
        capacity_factor=1.25, top_k=2, group_images="batch", balance_loss_weight=0.01, needs_capacity=False,
        has_unit_gates=True,
        settings={"eval_capacity_factor": 2.0, "z_loss_weight": 0.001}, fixed={"gating": DEEPSPEED_GATES},
    ),
    RouterRow(
        "loss_free", label="Loss-free bias", implementation="experiments.routing.top_k:TopKRouter",
        source="loss-free balancing, arXiv 2408.15664, algorithm 1",
        capacity_factor=None, top_k=2, group_images="batch", gating="sigmoid", needs_capacity=False,
        settings={"bias_update_rate": 0.001},
    ),
    RouterRow(
        "dsmoe", label="DSMoE", implementation="experiments.routing.top_k:TopKRouter",
        source="DSMoE, arXiv 2512.01252, after DeepSeek-V3, arXiv 2412.19437",
        # The widths are those of the public configs with 16 experts, S to L: 768 of 384. The public code never updates
        # the bias; the rate is DeepSeek-V3's.
        num_experts=16, capacity_factor=None, top_k=2, group_images="batch", gating="sigmoid", expert="swiglu",
        shared_factor=2.0, needs_capacity=False,
        settings={"expert_factor": 2.0, "bias_update_rate": 0.001, "gate_norm": "token", "gate_scale": 2.0},
    ),
    RouterRow(
        "promoe", label="ProMoE", implementation="experiments.routing.top_k:TopKRouter",
        source="ProMoE, arXiv 2510.24711, section 3",
        num_experts=12, capacity_factor=None, top_k=1, group_images="batch", gating="identity", shared_factor=2.0,
        needs_capacity=False,
        settings={
            "form": "cosine", "expert_factor": 2.0, "expert_bias": True, "contrastive_loss_weight": 1.0,
            "unconditional_expert": True,
        },
    ),
    RouterRow(
        "promoe_ec", label="ProMoE, experts choose",
        implementation="experiments.routing.expert_choice:ExpertChoiceRouter", has_global_scope=True,
        source="ProMoE, arXiv 2510.24711, its expert-choice variant",
        num_experts=12, capacity_factor=1.0, gating="identity", shared_factor=2.0,
        settings={
            "form": "cosine", "expert_factor": 2.0, "expert_bias": True, "contrastive_loss_weight": 1.0,
            "unconditional_expert": True,
        },
    ),
    RouterRow(
        "diffmoe", label="DiffMoE",
        has_global_scope=True, implementation="experiments.routing.expert_choice:ExpertChoiceRouter",
        source="DiffMoE, arXiv 2503.14487, section 3",
        capacity_factor=1.0, group_images="batch",
        settings={"eval_decision": "predictor", "predictor_loss_weight": 1.0},
    ),
    RouterRow(
        "nucleus", label="Nucleus",
        has_global_scope=True, implementation="experiments.routing.expert_choice:ExpertChoiceRouter",
        # Its public code rounds C up; here experts that choose have C rounded down, so that f_c bounds the compute.
        source="Nucleus-Image, arXiv 2604.12163", expert="swiglu", shared_factor=4.0,
        settings={"input": "plain_time", "gate_norm": "token", "gate_scale": 2.5},
    ),
    RouterRow(
        "ec_noise_capacity", label="Capacity by noise",
        implementation="experiments.routing.expert_choice:ExpertChoiceRouter", has_global_scope=True,
        source="EC-DLM, arXiv 2604.01622, for language; untested in public for images",
        # Its public runs choose by logits and take the softmax over the experts that took the token.
        settings={"capacity_schedule": "low_noise", "gate_norm": "token", "z_loss_weight": 0.001},
    ),
    RouterRow(
        "moma", label="MoMa",
        has_global_scope=True, implementation="experiments.routing.expert_choice:ExpertChoiceRouter",
        source="MoMa, arXiv 2407.21770, section 2.2; experts of text with model.block=mmdit",
        capacity_factor=1.0, group_images="batch", gating="sigmoid",
    ),
    RouterRow(
        "expert_race", label="Expert Race",
        has_global_scope=True, implementation="experiments.routing.expert_race:ExpertRaceRouter",
        source="Expert Race, arXiv 2503.16057, sections 3 and 4", family="pairs",
        group_images="all", gating="identity",
        settings={"form": "mlp", "eval_decision": "threshold", "similarity_loss_weight": 0.0001},
    ),
    RouterRow(
        "expert_threshold", label="Expert threshold",
        implementation="experiments.routing.expert_threshold:ExpertThresholdRouter",
        source="expert threshold routing, arXiv 2603.11535, section 4.1", family="thresholds",
        # The paper's thresholds begin to decide after a fifth of training, and here with the full learning rate.
        num_experts=16, capacity_factor=1.0, group_images="batch", gating="sigmoid", shared_factor=2.0,
        settings={"expert_factor": 2.0, "threshold_decay": 0.999, "threshold_warmup_images": 3200},
        fixed={
            "group_images": Fixed("batch", "does not fit {name}, whose thresholds are those of all tokens."),
            "eval_capacity_factor": Fixed("same", "does not fit {name}: its thresholds decide outside training too."),
        },
    ),
    RouterRow(
        "segmoe", label="SegMoE", implementation="experiments.routing.segmoe:SegMoERouter",
        source="SegMoE, github.com/segmind/segmoe; no paper, its code takes one expert by default and two here",
        capacity_factor=None, top_k=2, group_images="batch", needs_capacity=False,
        has_unit_gates=True, trained=False, family="fixed",
        fixed={
            "capacity_factor": Fixed(None, "does not fit {name}, whose experts serve every token."),
            "gating": Fixed("softmax", "does not fit {name}: its gates are the softmax over the chosen experts."),
        },
    ),
    RouterRow(
        "timestep_experts", label="Experts by noise level",
        implementation="experiments.routing.fixed_choice:TimestepRouter",
        source="eDiff-I, arXiv 2211.01324, section 4; an expert for each interval of t", family="fixed",
        num_experts=3, capacity_factor=None, top_k=1, gating=None, needs_capacity=False, has_unit_gates=True,
        has_logits=False, fixed={"top_k": ONE_EXPERT, **WITHOUT_SCORES},
    ),
    RouterRow(
        "hash", label="By position", implementation="experiments.routing.fixed_choice:HashRouter",
        source="hash layers, arXiv 2106.04426, with the position in place of the token; a control", family="fixed",
        capacity_factor=None, top_k=1, gating=None, needs_capacity=False, has_unit_gates=True, has_logits=False,
        fixed={"top_k": ONE_EXPERT, **WITHOUT_SCORES},
    ),
    RouterRow(
        "random", label="Random", implementation="experiments.routing.fixed_choice:RandomRouter",
        source="a control that any learned router must beat", family="fixed",
        capacity_factor=None, top_k=1, gating=None, needs_capacity=False, has_unit_gates=True, has_logits=False,
        fixed={"top_k": ONE_EXPERT, **WITHOUT_SCORES},
    ),
    RouterRow(
        "soft_moe", label="Soft MoE", implementation="experiments.routing.soft_moe:SoftRouter",
        source="Soft MoE, arXiv 2308.00951, algorithm 1 and section 2.3", family="soft",
        capacity_factor=1.0, gating=None, has_logits=False,
        fixed={
            "gating": SOFT_WEIGHTS, "gate_norm": SOFT_WEIGHTS._replace(value="none"),
            "gate_scale": SOFT_WEIGHTS._replace(value=1.0),
            "balance_loss_weight": Fixed(0.0, "does not fit {name}, in which every token reaches every expert."),
            "group_images": Fixed(1, "does not fit {name}, which mixes the tokens of one image with each other."),
            "eval_capacity_factor": Fixed(
                "same", "does not fit {name}: its slots are weights, and equally many outside training.",
            ),
        },
    ),
    RouterRow(
        "switch_dit", label="Switch-DiT", implementation="experiments.routing.switch_dit:SwitchDiTRouter",
        source="Switch-DiT, arXiv 2403.09176, section 3", family="blocks",
        num_experts=3, capacity_factor=None, top_k=2, expert=None, needs_capacity=False,
        settings={"input": "time", "prior_loss_weight": 1.0, "eval_capacity_factor": None},
        fixed={
            "gating": Fixed("softmax", "does not fit {name}, whose prior over noise levels is of probabilities."),
            "gate_norm": Fixed("none", "does not fit {name}: its gates scale a change of the block's input."),
            "gate_scale": Fixed(1.0, "does not fit {name}: its gates scale a change of the block's input."),
            "input": Fixed("time", "does not fit {name}, in which the noise level alone chooses."),
            "balance_loss_weight": Fixed(0.0, "does not fit {name}; its loss is that of the prior."),
            "capacity_factor": Fixed(None, "does not fit {name}: all tokens of an image go to the same experts."),
            "eval_capacity_factor": Fixed(None, "does not fit {name}, which has no capacity."),
            "group_images": Fixed(1, "does not fit {name}, in which no tokens compete."),
            **dict.fromkeys(("expert", "expert_factor", "shared_factor"), Fixed(
                None, "does not fit {name}: its experts are matrices, and its feed-forwards are dense.",
            )),
        },
    ),
)  # fmt: skip
