"""Defines the rows of `routing_maps.jsonl`, which `ecdit evaluate` writes."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from experiments.records.measurement_settings import MeasurementSettings
from experiments.records.record_types import Count, Number, OptionalNumber, Record, Weights


class RoutingMapRow(Record):
    """A row of `routing_maps.jsonl`, which says what one routed layer does to which tokens, at one time or over all.

    With `source` `scenes` they are tokens of true images noised to `time`, where the tokens of objects are known; with
    `samples` those of the conditional branch along the sampler's path. Shares are of token-to-expert assignments.

    Legend: E experts, T tokens of an image.
    """

    images_seen: Count
    weights: Weights
    source: Literal["scenes", "samples"]
    settings: MeasurementSettings = Field(
        default_factory=dict, description="how images were made; guidance for samples"
    )
    num_images: Count
    layer: Count
    time: OptionalNumber = Field(None, description="t; None: over all times that were measured")
    load: list[Number] = Field(description="[E] share of the assignments by expert; sums to 1")
    entropy: Number = Field(description="of a token's affinities over experts, mean, divided by log E: 0 to 1")
    dropped_share: Number = Field(description="share of tokens that no expert processed")
    experts_per_token: list[Number] = Field(description="share of tokens processed by 0, 1, 2, ... experts")
    object_experts: OptionalNumber = Field(None, description="mean experts per token on objects")
    background_experts: OptionalNumber = Field(None, description="mean experts per token elsewhere")
    divergence: OptionalNumber = Field(
        None, description="1 - 2 |C and U| / (|C| + |U|) over (token, expert) pairs of both guidance branches"
    )
    experts_by_position: list[Number] | None = Field(None, description="[T] mean experts per token at each position")
    load_by_position: list[list[Number]] | None = Field(None, description="[E][T] share of position's assignments")
    load_by_class: dict[str, dict[str, list[Number]]] | None = Field(
        None, description="attribute of the class -> its value -> [E] share of assignments; at few times, and over all"
    )
    load_entropy: list[Number] | None = Field(
        None, description="[1 + G] entropy of load, divided by log E; of all images, then without each of G groups"
    )
    position_information: list[Number] | None = Field(
        None, description="[1 + G] mutual information of expert and position, divided by log E; as load_entropy"
    )
    time_information: list[Number] | None = Field(None, description="[1 + G] the same of expert and time")
    class_information: dict[str, list[Number]] | None = Field(
        None, description="attribute -> [1 + G] the same of expert and class, minus that of exchanged classes"
    )
    load_by_kind: dict[str, list[Number]] | None = Field(None, description="caption kind -> [E] share of assignments")
