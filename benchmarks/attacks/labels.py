"""The table of attacks on class labels, and the frontier of noise fields between them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.attacks.label_attack import LabelAttack, top_two
from benchmarks.attacks.label_features import LabelFeatures, label_features
from benchmarks.attacks.records import Records
from benchmarks.attacks.sources import Field, Fresh, Ladder, Sample, Scaled, Source, TenantKeys
from deployments.engines.images.classifier import ImageClassifier
from models.make_calibration_sample import load_classifier
from policies.attacks.answers import (
    accuracy,
    disclosed,
    label_and_score,
    own_label,
    sampled,
    temperature_for,
    tie_broken,
    votes,
    won_back,
)

LEVEL = 0.7
BASELINE_SECRETS = 2
"""Secrets under which the other sources are measured; the ladder is under all."""
PLAIN = Field(0.8, 128)
Head = Callable[[Tensor], Tensor]
Attacks = dict[str, Callable[[], float]]


def measure(root: Path, cache: Path, secrets: int) -> Records:
    """Every attack against every source."""
    engine = load_classifier()
    data, records = label_features(engine, root, cache / "labels"), Records()
    sample, head, installed = installation(engine)
    for number in range(secrets):
        for name, source in _sources(number, sample, installed, number < BASELINE_SECRETS):
            attack = LabelAttack(source, LEVEL, data, head, len(engine.classes))
            records.run(name, {row: partial(_share, attack, run) for row, run in _attacks(attack, name).items()})
        if number < BASELINE_SECRETS:
            records.run("temperature", _temperature(number, data, head, sample))
        records.save(cache / "labels.json")
    return records


def installation(engine: ImageClassifier) -> tuple[Sample, Head, Field]:
    """The bundled sample, the final layer, and the field that an installation gets by default."""
    bundled = engine.calibration_sample(Path(str(engine.spec.calibration)))
    installed = Field(engine.scheme.length_scale, engine.depth, bundled.metric)
    return Sample(bundled.features, engine.clean_logits(bundled.features)), engine.clean_logits, installed


def _share(attack: LabelAttack, run: Callable[[], float]) -> float:
    return attack.share(run())


def _sources(number: int, sample: Sample, installed: Field, baselines: bool) -> Iterator[tuple[str, Source]]:
    if baselines:
        yield "fresh", Fresh(number, sample)
        yield "key per tenant", TenantKeys(number, installed, sample)
        yield "scaled", Scaled(number, installed, sample)
        yield "ladder, plain features", Ladder(number, PLAIN, sample)
    yield "ladder", Ladder(number, installed, sample)


def _attacks(attack: LabelAttack, name: str) -> Attacks:
    """The rows of the table that say something about a source."""
    accounts: Attacks = {"20 accounts, vote": attack.accounts}
    levels: Attacks = {"levels 0.7, 0.6 and 0.5, raw logits, best combination": attack.combined_levels}
    if isinstance(attack.source, TenantKeys):
        return accounts
    if isinstance(attack.source, Scaled):
        return levels
    rows: Attacks = {
        "100 repeats, vote": attack.repeats,
        "100 usual near-duplicates, vote": lambda: attack.vote(attack.judged),
        "100 usual near-duplicates, mean of scores of 2 digits": lambda: attack.mean_score(attack.judged),
        "20 turned, cropped, recoloured, vote": lambda: attack.vote(attack.ask(attack.data.wide)),
        **accounts,
        **levels,
        "levels 0.7, 0.6 and 0.5, a label each, vote": attack.levels_vote,
        "corrector, 6,000 labelled: label": lambda: attack.corrector(own_label),
        "corrector, 6,000 labelled: label + 2 digits": lambda: attack.corrector(label_and_score),
        "corrector, 6,000 labelled: label + 2 digits of levels 0.7, 0.6 and 0.5": attack.levels_corrector,
        "corrector, 6,000 labelled: sweeps of focus (two highest logits)": lambda: attack.corrector(top_two),
        "corrector, 6,000 labelled: 5 labels + 1 digit": lambda: attack.corrector(lambda z: disclosed(z, 5, 1)),
        "corrector, 6,000 labelled: raw logits": lambda: attack.corrector(lambda z: z),
        "both: 20 queries, 600 labelled, pooled: label": attack.both,
        "both: 20 queries, 600 labelled, each corrected: label": attack.both_by_query,
        "both: 20 queries, 600 labelled, pooled: label + 2 digits": lambda: attack.both(2),
        "both: 20 queries, 600 labelled, each corrected: label + 2 digits": lambda: attack.both_by_query(2),
    }
    if isinstance(attack.source, Ladder) and name == "ladder":
        rows["5 refits, vote"] = attack.refits
    return rows


def _temperature(number: int, data: LabelFeatures, head: Head, sample: Sample) -> Attacks:
    """Sampling at the temperature whose single answer agrees as often as the level: what a user would think of."""
    logits, generator = head(data.judged[:, 0]), torch.Generator().manual_seed(number)
    drawn = sampled(logits, temperature_for(sample.logits, LEVEL), 101, generator)
    clean, single = accuracy(logits, data.truth), float((drawn[:, 0] == data.truth).float().mean())
    counts = tie_broken(votes(drawn[:, 1:], logits.shape[1]), drawn[:, 1])
    return {"100 repeats, vote": lambda: won_back(accuracy(counts, data.truth), single, clean)}
