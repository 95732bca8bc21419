"""The table of attacks on class labels, and the frontier of noise fields between them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from importlib.util import find_spec
from pathlib import Path

from torch import Tensor

from benchmarks.attacks.encoders import foreign_features
from benchmarks.attacks.label_attack import LabelAttack, top_two
from benchmarks.attacks.label_features import LabelFeatures, cifar_trained, label_features
from benchmarks.attacks.label_students import Encoded, LabelStudents, worth_alone
from benchmarks.attacks.records import Records
from benchmarks.attacks.sources import Clean, Field, Fresh, Ladder, Sample, Scaled, Source, Temperature, TenantKeys
from deployments.engines.images.classifier import ImageClassifier
from models.make_calibration_sample import cifar_held_back, load_classifier
from policies.attacks.answers import disclosed, label_and_score, own_label
from policies.attacks.learners import network, random_features

LEVEL = 0.7
ROWS = ("all", "answers", "students")
LADDER, CLEAN = "ladder", "clean answers"
STUDENTS_OF = (LADDER, "fresh", "temperature", CLEAN)
OWN, FOREIGN = "the model's own encoder", "EfficientNet-lite0"
NAMED = (20, 60)
"""Labels that name an encoder's clusters without any answer."""
BASELINE_SECRETS = 2
"""Secrets under which the other sources are measured; the ladder is under all."""
Head = Callable[[Tensor], Tensor]
Attacks = dict[str, Callable[[], float]]


def measure(root: Path, cache: Path, secrets: int, level: float, rows: str) -> Records:
    """Every attack against every source.

    Args:
        rows: which attacks: "answers", those on answers alone, "students", or "all".
    """
    engine, records = load_classifier(), Records()
    data = label_features(engine, root, cache / "labels")
    sample, head, installed = installation(engine)
    clean = LabelAttack(Clean(), level, data, head, len(engine.classes))
    encoders = (
        label_encoders(data, root, cache / "labels" / "foreign", len(engine.classes)) if rows != "answers" else {}
    )
    alone = worth_alone({name: encoders[name] for name in encoders if name == FOREIGN}, clean)
    for number in range(secrets):
        worth = None
        for name, source in _sources(number, sample, installed, number < BASELINE_SECRETS):
            attack = LabelAttack(source, level, data, head, len(engine.classes), worth if name == CLEAN else None)
            attacks = _attacks(attack) if rows != "students" else {}
            if rows != "answers" and name in STUDENTS_OF:
                attacks |= LabelStudents(attack, encoders, alone).rows(large=number < BASELINE_SECRETS)
            records.add("(accuracy of one answer)", name, attack.single())
            records.run(name, attacks)
            if name == LADDER and encoders and find_spec("sklearn"):
                owned = LabelStudents(attack, encoders, alone)
                for labelled in NAMED:
                    won = owned.clustered(OWN, data.example_truth[:labelled])
                    records.add(f"clusters of {OWN}, each named by {labelled} labels", "labels alone", won)
            worth = attack.single() if name == LADDER else worth
        records.save(cache / f"labels-{rows}-{level}.json")
    return records


def label_encoders(data: LabelFeatures, root: Path, cache: Path, classes: int) -> dict[str, Encoded]:
    """What students stand on: an encoder as good as the model's, and one that was trained on other pictures."""
    known = len(data.thrice)
    encoders = {OWN: Encoded(data.examples[:known], data.trained, data.judged[:, 0], classes)}
    held_back = foreign_features([file for file, _ in cifar_held_back(root)], cache, "held-back")
    trained = foreign_features(cifar_trained(root), cache, "trained")
    if held_back is not None and trained is not None:
        encoders[FOREIGN] = Encoded(held_back[:known], trained, held_back[known:][: len(data.judged)], classes)
    return encoders


def installation(engine: ImageClassifier) -> tuple[Sample, Head, Field]:
    """The bundled sample, the final layer, and the field that an installation gets by default."""
    bundled = engine.calibration_sample(Path(str(engine.spec.calibration)))
    installed = Field(engine.scheme.length_scale, engine.depth, bundled.metric)
    return Sample(bundled.features, engine.clean_logits(bundled.features)), engine.clean_logits, installed


def _sources(number: int, sample: Sample, installed: Field, baselines: bool) -> Iterator[tuple[str, Source]]:
    yield LADDER, Ladder(number, installed, sample)
    if baselines:
        yield "fresh", Fresh(number, sample)
        yield "temperature", Temperature(number, sample)
        yield "key per tenant", TenantKeys(number, installed, sample)
        yield "scaled", Scaled(number, installed, sample)
    if number == 0:
        yield CLEAN, Clean()


def _attacks(attack: LabelAttack) -> Attacks:
    """The rows of the table that say something about a source, each a share of the gap."""
    accounts: Attacks = {"20 accounts, vote": attack.accounts}
    levels: Attacks = {"levels 0.1 and 0.2 lower, raw logits, best combination": attack.combined_levels}
    if isinstance(attack.source, Clean):
        reached: Attacks = {"corrector, 6,000 labelled: label": lambda: attack.corrector(own_label)}
    elif isinstance(attack.source, TenantKeys):
        reached = accounts
    elif isinstance(attack.source, Scaled):
        reached = levels
    else:
        reached = _votes(attack) | accounts | levels | _correctors(attack)
    if isinstance(attack.source, Ladder):
        reached["5 refits, vote"] = attack.refits
    return {row: partial(lambda run: attack.share(run()), run) for row, run in reached.items()}


def _votes(attack: LabelAttack) -> Attacks:
    return {
        "100 repeats, vote": attack.repeats,
        "100 usual near-duplicates, vote": lambda: attack.vote(attack.judged),
        "20 turned, cropped, recoloured, vote": lambda: attack.vote(attack.ask(attack.data.wide)),
        "3 ids (float32, bfloat16, float16), vote": attack.ids,
        "levels 0.1 and 0.2 lower, a label each, vote": attack.levels_vote,
    }


def _correctors(attack: LabelAttack) -> Attacks:
    return {
        "corrector, 6,000 labelled: label": lambda: attack.corrector(own_label),
        "corrector, 3,000 answers of level 1.0: label": lambda: attack.gold(3000),
        "both: 20 queries, 600 labelled, pooled: label": attack.both,
        "both: 20 queries, 600 labelled, each corrected: label": attack.both_by_query,
        "granted lower levels: 3, a label each, corrector": lambda: attack.levels_corrector(own_label, 3),
        "granted lower levels: 11, a label each, corrector": lambda: attack.levels_corrector(own_label, 11),
        "granted lower levels: 26, a label each, corrector": lambda: attack.levels_corrector(own_label, 26),
        "granted focus: sweeps (two highest logits), corrector": lambda: attack.corrector(top_two),
        "granted 2 digits: corrector": lambda: attack.corrector(label_and_score),
        "granted 2 digits: corrector, network": lambda: attack.corrector(label_and_score, network),
        "granted 2 digits: both, pooled": lambda: attack.both(2),
        "granted 2 digits: both, each corrected": lambda: attack.both_by_query(2),
        "granted 5 labels + 1 digit: corrector": lambda: attack.corrector(lambda z: disclosed(z, 5, 1)),
        "granted all logits: corrector": lambda: attack.corrector(lambda z: z),
        "granted all logits: corrector, random features": lambda: attack.corrector(lambda z: z, random_features),
        "granted all logits: corrector, network": lambda: attack.corrector(lambda z: z, network),
    }
