"""The chat client over real SDKs and sockets: probing of endpoints, parameters, prices."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from distillkit_plugins.compatible import Compatible
from distillkit_plugins.groq import Groq
from distillkit_plugins.openai import OpenAI

from distillkit.core.errors import TeacherError, UsageError
from distillkit.core.records import Answer, Price
from distillkit.plugins.interfaces import Teacher
from distillkit.teachers.answers.disk import DiskAnswerStore, answer_key
from distillkit.teachers.asking.label import label
from distillkit.teachers.asking.scheduler import probe_key_fields
from support.chat_provider import PROBE, Act, Call, Provider, error, serving
from support.provider_faults import KEY, fast, requests, teacher


@pytest.fixture
def provider() -> Iterator[Provider]:
    with serving() as served:
        yield served


# -------------------------------------------------------------------------------------------------- what it can


def test_what_an_endpoint_refuses_is_found_out_once_and_remembered(provider: Provider, cache: DiskAnswerStore) -> None:
    def picky(call: Call) -> Act | None:
        for name in ("max_tokens", "seed", "top_p"):
            if name in call.body:
                return error(400, f"Unsupported parameter: '{name}'", "unsupported_parameter", name)
        return None

    provider.rule = picky
    assert len(label(teacher(provider.url), requests(seed=3), cache, policy=fast()).answers) == 6
    assert sum(call.prompt == PROBE for call in provider.calls) == 4
    assert all("max_completion_tokens" in call.body for call in provider.calls if call.prompt != PROBE)
    provider.forget()
    label(teacher(provider.url), requests(9, seed=3), cache, policy=fast())
    assert sorted(call.prompt for call in provider.calls) == ["prompt 6", "prompt 7", "prompt 8"]


def openai(url: str, **options: Any) -> OpenAI:
    return OpenAI(OpenAI.Options(model="m", base_url=url, **options))


def without(*names: str) -> Callable[[Call], Act | None]:
    """A rule by which calls are refused that have one of these parameters."""

    def rule(call: Call) -> Act | None:
        found = next((name for name in names if name in call.body), None)
        return error(400, f"Unrecognized request argument supplied: {found}") if found else None

    return rule


@pytest.fixture
def _key_of_openai(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
@pytest.mark.parametrize("plugin", [teacher, openai])
@pytest.mark.usefixtures("_key_of_openai")
def test_a_limit_whose_name_is_refused_is_sent_under_the_other(
    provider: Provider, cache: DiskAnswerStore, name: str, plugin: Callable[[str], Teacher]
) -> None:
    provider.rule = without(name)
    label(plugin(provider.url), requests(3, max_tokens=9), cache, policy=fast())
    other = {"max_tokens", "max_completion_tokens"} - {name}
    asked = [call.body for call in provider.calls if call.prompt != PROBE]
    assert [{key: body[key] for key in body if key.startswith("max_")} for body in asked] == [
        dict.fromkeys(other, 9)
    ] * 3


@pytest.mark.usefixtures("_key_of_openai")
def test_plain_completions_are_asked_with_the_limit_that_they_know(provider: Provider, cache: DiskAnswerStore) -> None:
    label(openai(provider.url, api="plain"), requests(2, max_tokens=9), cache, policy=fast())
    assert [call.body.get("max_tokens") for call in provider.calls] == [9] * 3
    assert not any("max_completion_tokens" in call.body for call in provider.calls)


@pytest.mark.usefixtures("_key_of_openai")
@pytest.mark.parametrize("plugin", [teacher, openai])
def test_an_endpoint_that_takes_no_limit_is_not_asked_without_one(
    provider: Provider, cache: DiskAnswerStore, plugin: Callable[[str], Teacher]
) -> None:
    provider.rule = without("max_tokens", "max_completion_tokens")
    with pytest.raises(TeacherError, match="Unrecognized request argument supplied: max_"):
        label(plugin(provider.url), requests(2), cache, policy=fast())
    assert (provider.prompts, len(provider.calls)) == ([], 2)


@pytest.mark.usefixtures("_key_of_openai")
def test_a_finding_of_before_that_leaves_out_the_limit_is_not_believed(
    provider: Provider, cache: DiskAnswerStore
) -> None:
    (request,) = requests(1, max_tokens=9)
    old = f"parameters {json.dumps([request.temperature, request.top_p, False, False, 0])}"
    facts = {"refused": ["max_completion_tokens"], "max_tokens": "max_completion_tokens", "top_logprobs": 0}
    what = probe_key_fields(openai(provider.url), old)
    cache.put(answer_key(what), what, Answer("", raw={"found": facts}))
    provider.rule = without("max_completion_tokens")
    label(openai(provider.url), [request], cache, policy=fast())
    assert provider.calls[-1].body["max_tokens"] == 9


def test_what_a_recipe_needs_and_the_teacher_lacks_is_refused_before_anything_is_spent(
    provider: Provider, cache: DiskAnswerStore
) -> None:
    provider.rule = lambda call: (
        error(400, "Invalid value for 'top_logprobs': must be at most 5.", param="top_logprobs")
        if call.body.get("top_logprobs", 0) > 5
        else error(400, "Unsupported value: 'temperature'", param="temperature")
        if call.body.get("temperature", 1.0) != 1.0
        else None
    )
    with pytest.raises(UsageError, match="returns 5 log-probabilities per token, not 20") as refused:
        label(teacher(provider.url), requests(top_logprobs=20), cache, policy=fast())
    assert refused.value.hint.startswith("Set teacher.top_logprobs = 5.")
    with pytest.raises(UsageError, match="does not accept temperature"):
        label(teacher(provider.url), requests(temperature=0.5), cache, policy=fast())
    assert provider.prompts == []
    assert len(label(teacher(provider.url), requests(top_logprobs=5), cache, policy=fast()).answers) == 6


def test_an_endpoint_without_logprobs_is_refused(provider: Provider, cache: DiskAnswerStore) -> None:
    """As LM Studio does: it takes the parameter and gives null."""
    provider.rule = lambda call: Act(change=lambda body: body["choices"][0].update(logprobs=None))
    with pytest.raises(UsageError, match="returns no log-probabilities"):
        label(teacher(provider.url), requests(top_logprobs=3), cache, policy=fast())
    assert provider.prompts == []


@pytest.mark.parametrize("asked", [0, 3])
@pytest.mark.parametrize("extra", [{"logprobs": True}, {"top_logprobs": 5}], ids=["logprobs", "top_logprobs"])
def test_log_probabilities_that_extra_asks_for_and_the_endpoint_refuses_end_the_probe(
    provider: Provider, cache: DiskAnswerStore, extra: dict[str, Any], asked: int
) -> None:
    (name,) = extra

    def strict(call: Call) -> Act | None:
        if len(provider.calls) > 20:  # enough: the stage ends
            return error(401, "go away")
        found = next((key for key in ("logprobs", "top_logprobs") if key in call.body), None)
        return error(400, f"Unsupported parameter: '{found}'", param=found) if found else None

    provider.rule = strict
    asking = teacher(provider.url, extra=extra)
    with pytest.raises(UsageError, match=f"does not accept {name}") as refused:
        label(asking, requests(top_logprobs=asked), cache, policy=fast())
    assert refused.value.hint.startswith(f"Leave out teacher.extra.{name}.")
    assert len(provider.calls) <= 3
    assert provider.prompts == []


SPENT = "Could not finish the message because max_tokens or model output limit was reached. Please try again."


def thinking(needed: int) -> Callable[[Call], Act | None]:
    """A rule by which a model says nothing before it has thought for so many tokens."""

    def rule(call: Call) -> Act | None:
        limits = (call.body[name] for name in ("max_tokens", "max_completion_tokens") if name in call.body)
        return error(400, SPENT) if next(limits) < needed else None

    return rule


@pytest.mark.usefixtures("_key_of_openai")
@pytest.mark.parametrize("plugin", [teacher, openai])
def test_a_model_that_thinks_longer_than_the_probe_lets_it_has_taken_all_that_was_asked(
    provider: Provider, cache: DiskAnswerStore, plugin: Callable[[str], Teacher]
) -> None:
    provider.rule = thinking(100)
    like = {"max_tokens": 200, "top_logprobs": 3, "schema": {"type": "object"}}
    assert len(label(plugin(provider.url), requests(3, **like), cache, policy=fast()).answers) == 3
    assert [call.prompt for call in provider.calls].count(PROBE) == 2  # its parameters and the schema
    asked = [call.body for call in provider.calls if call.prompt != PROBE]
    assert all(body["top_logprobs"] == 3 and "response_format" in body for body in asked)


def test_a_limit_that_is_used_up_by_thinking_is_said_with_its_name(provider: Provider, cache: DiskAnswerStore) -> None:
    provider.rule = thinking(100)
    with pytest.raises(TeacherError, match="output limit was reached") as told:
        label(teacher(provider.url), requests(3, max_tokens=50), cache, policy=fast())
    assert "Raise teacher.max_tokens" in told.value.hint


def test_a_schema_is_probed(provider: Provider) -> None:
    async def takes() -> bool:
        asked = teacher(provider.url)
        try:
            return bool(await asked.probe("json_schema", requests(1)[0]))
        finally:
            await asked.close()

    assert asyncio.run(takes())
    provider.rule = lambda call: error(400, "no response_format") if "response_format" in call.body else None
    assert not asyncio.run(takes())


# -------------------------------------------------------------------------------------------------- the plugins


def test_groq_is_asked_over_its_own_sdk(
    provider: Provider, cache: DiskAnswerStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GROQ_API_KEY", KEY)
    groq = Groq(Groq.Options(base_url=f"{provider.url.removesuffix('/v1')}/openai/v1"))
    done = label(groq, requests(3, seed=1), cache, policy=fast())
    call = provider.calls[-1]
    assert len(done.answers) == 3
    assert call.path == "/openai/v1/chat/completions"
    assert call.headers["authorization"] == f"Bearer {KEY}"
    assert (call.body["model"], call.body["reasoning_effort"]) == ("openai/gpt-oss-20b", "low")
    assert "max_completion_tokens" in call.body
    assert "Groq" in call.headers["user-agent"]
    with pytest.raises(UsageError, match="returns no log-probabilities"):
        label(groq, requests(3, top_logprobs=2), cache, policy=fast())


def test_plain_completions_are_asked_for_plainly(provider: Provider, cache: DiskAnswerStore) -> None:
    done = label(teacher(provider.url, api="plain"), requests(2, stop=(".",)), cache, policy=fast())
    assert done.answers[1].text == "to prompt 1"
    assert provider.calls[-1].path == "/v1/completions"
    assert provider.calls[-1].body["stop"] == ["."]


@pytest.mark.parametrize("url", ["127.0.0.1:80", "ftp://here/v1", "http://me:secret@here/v1"])
def test_an_address_that_is_none_or_holds_a_password_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match="address"):
        Compatible.Options(model="m", base_url=url)


def test_the_price_is_the_recipes_or_the_plugins_or_unknown() -> None:
    assert Groq().price() == Price(0.075, 0.30)
    assert OpenAI(OpenAI.Options(model="gpt-9")).price() is None
    assert teacher("http://127.0.0.1:1/v1").price() == Price(0.0, 0.0)
    assert teacher("https://somewhere.example/v1").price() is None


def test_the_sdks_are_loaded_only_to_ask() -> None:
    code = (
        "import sys, distillkit_plugins.groq, distillkit_plugins.openai, distillkit_plugins.compatible as c\n"
        "c.Compatible(c.Compatible.Options(model='m', base_url='http://127.0.0.1/v1')).identity()\n"
        "print(sorted({'openai', 'groq', 'httpx', 'mlx'} & set(sys.modules)))"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout == "[]\n"
