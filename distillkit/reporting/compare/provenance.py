"""What differs between compared runs besides their metrics: recipes, versions, hashes, protocols, costs."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from .compared_run import ComparedRun

SHORT_HASH = 12  # digits of a hash that are shown to people


def describe_run(run: ComparedRun) -> dict[str, Any]:
    """A run's recipe, status, teacher, size and cost: the `about` table of a comparison."""
    report = run.report
    teacher, training, speed = report["teacher"] or {}, report["training"], report["speed"]
    calls = [teacher[key] for key in ("asked", "cached") if key in teacher]
    seconds = [value for value in speed["seconds"].values() if value is not None]
    return {
        "recipe": report["recipe"],
        "status": report["status"],
        "teacher": teacher.get("model") or teacher.get("provider"),
        "parameters": (report["student"].get("parameters") or {}).get("unique"),
        "steps": training.get("steps"),
        "training_tokens": training.get("tokens"),
        "teacher_calls": sum(calls) if calls else None if teacher else 0,
        "usd": teacher.get("usd") if teacher else 0.0,
        "seconds": round(sum(seconds), 1) if seconds else None,
        "tokens_per_second": speed["training_tokens_per_second"],
    }


def recipe_differences(runs: Sequence[ComparedRun]) -> list[dict[str, Any]]:
    """The keys of the resolved recipes whose values differ.

    Keys that differ only because some recipes lack their whole table, such as a teacher's, come last: there are many.
    """
    keys = dict.fromkeys(key for run in runs for key in run.recipe)
    values = {key: {run.name: run.recipe.get(key) for run in runs} for key in keys if key != "name"}
    rows = [{"key": key, "values": by_run} for key, by_run in values.items() if not all_equal(by_run)]
    return sorted(rows, key=lambda row: _differs_only_by_table(runs, row["key"], row["values"]))


def _differs_only_by_table(runs: Sequence[ComparedRun], key: str, values: Mapping[str, Any]) -> bool:
    """Whether a key is the same in all recipes that have its table, and some recipe lacks the table."""
    table = f"{key.rpartition('.')[0]}."
    having = [run.name for run in runs if any(other.startswith(table) for other in run.recipe)]
    return len(having) < len(runs) and all_equal({name: values[name] for name in having})


def all_equal(values: Mapping[str, Any]) -> bool:
    """Whether all runs have the same value."""
    return len({json.dumps(value, sort_keys=True) for value in values.values()}) < 2


def provenance_rows(runs: Sequence[ComparedRun]) -> list[dict[str, Any]]:
    """Versions, devices, hashes and protocols: one row per fact. Hashes are complete, for machines to compare."""
    known = {run.name: dict(_facts(run)) for run in runs}
    names = dict.fromkeys(name for facts in known.values() for name in facts)
    return [{"fact": name, "values": {run: facts.get(name) for run, facts in known.items()}} for name in names]


def _facts(run: ComparedRun) -> Iterator[tuple[str, Any]]:
    report = run.report
    yield "started", report["started"]
    yield "device", report["device"]
    yield "data", report["data"].get("source")
    yield "data hash", run.fingerprint("data")
    yield "tokenizer", report["tokenizer"].get("kind")
    yield "tokenizer hash", run.fingerprint("tokenizer")
    yield "weights hash", report["training"].get("weights_sha256")
    for name, version in report["versions"].items():
        yield f"{name} version", version
    for plugin in report["plugins"]:
        if isinstance(plugin, Mapping) and plugin.get("name") not in report["versions"]:
            yield f"plugin {plugin.get('name')}", plugin.get("version")
    for judge, protocol in report["judges_protocol"].items():
        yield f"protocol of {judge}", protocol.get("hash")


# Protocols --------------------------------------------------------------------------------------------------


def protocol_differences(runs: Sequence[ComparedRun]) -> list[str]:
    """One line for each judge whose protocol differs between runs, with the facts that differ."""
    return [difference for judge in _judges(runs) if (difference := _protocol_difference(runs, judge))]


def protocol_note(baseline: ComparedRun, other: ComparedRun, judge: str) -> str:
    """The note on metrics of two runs whose protocols differ, or ""."""
    ours, theirs = baseline.protocol(judge), other.protocol(judge)
    if ours is None or theirs is None or ours.get("hash") == theirs.get("hash"):
        return ""
    return "judged under different protocols"


def unknown_protocol_notes(runs: Sequence[ComparedRun]) -> list[str]:
    """One note for each judge whose protocol was recorded by some runs only."""
    notes = []
    for judge in _judges(runs):
        unrecorded = [run.name for run in runs if judge in run.report["judges"] and run.protocol(judge) is None]
        if unrecorded:
            notes.append(
                f"The protocol of {judge} was not recorded for {_shorten_names(unrecorded)}; it may be a different one."
            )
    return notes


def _judges(runs: Sequence[ComparedRun]) -> list[str]:
    """Judges whose protocol at least one run recorded."""
    return list(dict.fromkeys(judge for run in runs for judge in run.report["judges_protocol"]))


def _protocol_difference(runs: Sequence[ComparedRun], judge: str) -> str:
    """How the protocols of one judge differ, or "". Runs without metrics of this judge do not count."""
    graded = [run for run in runs if run.report["judges"].get(judge)]
    known = {run.name: protocol for run in graded if (protocol := run.protocol(judge)) is not None}
    by_hash: dict[Any, list[str]] = {}
    for name, protocol in known.items():
        by_hash.setdefault(protocol.get("hash"), []).append(name)
    if len(by_hash) < 2:
        return ""
    facts = {_shorten_names(names): known[names[0]].get("facts") or {} for names in by_hash.values()}
    keys = dict.fromkeys(key for by_key in facts.values() for key in by_key)
    values = {key: {names: by_key.get(key) for names, by_key in facts.items()} for key in keys}
    differing = [f"{key} ({_format_values(by_names)})" for key, by_names in values.items() if not all_equal(by_names)]
    return f"{judge}: {', '.join(differing) or 'different protocols of ' + ' and '.join(facts)}"


def _format_values(values: Mapping[str, Any]) -> str:
    return "; ".join(f"{names}: {_shorten(value)}" for names, value in values.items())


def _shorten(value: Any) -> str:
    """A value on one line of at most 40 characters; prompts are long."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    text = " ".join(text.split())
    return text if len(text) <= 40 else f"{text[:37]}..."


def _shorten_names(names: Sequence[str]) -> str:
    return " and ".join(names) if len(names) < 3 else f"{names[0]} and {len(names) - 1} more"
