"""Where the figures of a comparison come from: what differs between the recipes, versions, hashes, protocols, costs.

Knows the sides of a comparison, and nothing of their grades.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ..compare.compared_run import Side

SHORT = 12  # letters of a hash that a person compares


def about(side: Side) -> dict[str, Any]:
    """What a run is and what it took, in the figures that quality is weighed against."""
    report = side.report
    teacher, training, speed = report["teacher"] or {}, report["training"], report["speed"]
    asked = [teacher[key] for key in ("asked", "cached") if key in teacher]
    seconds = [value for value in speed["seconds"].values() if value is not None]
    return {
        "recipe": report["recipe"],
        "status": report["status"],
        "teacher": teacher.get("model") or teacher.get("provider"),
        "parameters": (report["student"].get("parameters") or {}).get("unique"),
        "steps": training.get("steps"),
        "training_tokens": training.get("tokens"),
        "teacher_calls": sum(asked) if asked else None if teacher else 0,
        "usd": teacher.get("usd") if teacher else 0.0,
        "seconds": round(sum(seconds), 1) if seconds else None,
        "tokens_per_second": speed["training_tokens_per_second"],
    }


def recipes(found: Sequence[Side]) -> list[dict[str, Any]]:
    """The keys of the resolved recipes that are not the same in all of them.

    Those that differ only since some recipes have no such table, a teacher's say, come last: they are many.
    """
    keys = dict.fromkeys(key for side in found for key in side.recipe)
    values = {key: {side.name: side.recipe.get(key) for side in found} for key in keys if key != "name"}
    rows = [{"key": key, "values": own} for key, own in values.items() if not same(own)]
    return sorted(rows, key=lambda row: _for_want_of_a_table(found, row["key"], row["values"]))


def _for_want_of_a_table(found: Sequence[Side], key: str, values: Mapping[str, Any]) -> bool:
    """Whether a key is the same in all recipes that have its table."""
    table = f"{key.rpartition('.')[0]}."
    having = [side.name for side in found if any(own.startswith(table) for own in side.recipe)]
    return len(having) < len(found) and same({name: values[name] for name in having})


def same(values: Mapping[str, Any]) -> bool:
    """Whether all runs have one value."""
    return len({json.dumps(value, sort_keys=True) for value in values.values()}) < 2


def facts(found: Sequence[Side]) -> list[dict[str, Any]]:
    """What the runs were made with, a row a fact; hashes are whole, so that machines can compare them."""
    known = {side.name: dict(_facts(side)) for side in found}
    names = dict.fromkeys(name for facts in known.values() for name in facts)
    return [{"fact": name, "values": {run: own.get(name) for run, own in known.items()}} for name in names]


def _facts(side: Side) -> Iterator[tuple[str, Any]]:
    report = side.report
    yield "started", report["started"]
    yield "device", report["device"]
    yield "data", report["data"].get("source")
    yield "data hash", side.fingerprint("data")
    yield "tokenizer", report["tokenizer"].get("kind")
    yield "tokenizer hash", side.fingerprint("tokenizer")
    yield "weights hash", report["training"].get("weights_sha256")
    for name, version in report["versions"].items():
        yield f"{name} version", version
    for plugin in report["plugins"]:
        if isinstance(plugin, Mapping) and plugin.get("name") not in report["versions"]:
            yield f"plugin {plugin.get('name')}", plugin.get("version")
    for judge, protocol in report["judges_protocol"].items():
        yield f"protocol of {judge}", protocol.get("hash")


# Protocols --------------------------------------------------------------------------------------------------


def protocols_apart(found: Sequence[Side]) -> list[str]:
    """Judges that judged in unequal ways, each with the facts that differ; nothing where all are equal."""
    return [told for judge in _judges(found) if (told := _apart(found, judge))]


def in_another_way(first: Side, other: Side, judge: str) -> str:
    """The note on a figure of two runs that were not judged in the same way, or nothing."""
    ours, theirs = first.protocol(judge), other.protocol(judge)
    if ours is None or theirs is None or ours.get("hash") == theirs.get("hash"):
        return ""
    return "not judged in the same way"


def protocols_unknown(found: Sequence[Side]) -> list[str]:
    """Judges whose way of judging some runs recorded and some did not."""
    notes = []
    for judge in _judges(found):
        silent = [side.name for side in found if judge in side.report["judges"] and side.protocol(judge) is None]
        if silent:
            notes.append(f"Nobody recorded how {judge} judged {_few(silent)}: it may have been in another way.")
    return notes


def _judges(found: Sequence[Side]) -> list[str]:
    """Judges whose protocol some run recorded."""
    return list(dict.fromkeys(judge for side in found for judge in side.report["judges_protocol"]))


def _apart(found: Sequence[Side], judge: str) -> str:
    """One judge's unequal protocols in words, or nothing. Where it gave no figures, there is nothing to compare."""
    graded = [side for side in found if side.report["judges"].get(judge)]
    known = {side.name: protocol for side in graded if (protocol := side.protocol(judge)) is not None}
    by_hash: dict[Any, list[str]] = {}
    for name, protocol in known.items():
        by_hash.setdefault(protocol.get("hash"), []).append(name)
    if len(by_hash) < 2:
        return ""
    facts = {_few(names): known[names[0]].get("facts") or {} for names in by_hash.values()}
    keys = dict.fromkeys(key for own in facts.values() for key in own)
    differing = {key: {names: own.get(key) for names, own in facts.items()} for key in keys}
    told = [f"{key} ({_each(values)})" for key, values in differing.items() if not same(values)]
    return f"{judge}: {', '.join(told) or 'unequal protocols of ' + ' and '.join(facts)}"


def _each(values: Mapping[str, Any]) -> str:
    return "; ".join(f"{names}: {_brief(value)}" for names, value in values.items())


def _brief(value: Any) -> str:
    """A fact in at most a few words: prompts are long."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    text = " ".join(text.split())
    return text if len(text) <= 40 else f"{text[:37]}..."


def _few(names: Sequence[str]) -> str:
    return " and ".join(names) if len(names) < 3 else f"{names[0]} and {len(names) - 1} more"
