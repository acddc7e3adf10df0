"""Checks of teachers: one answer for each request, cacheable under the teacher's identity.

Requests are sent as in the label stage, through an answer store on disk. Does not judge the quality of answers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from ..core.errors import DistillkitError
from ..core.records import Answer, Request
from ..plugins.interfaces import Teacher
from ..teachers.answers.disk import DiskAnswerStore
from ..teachers.asking.label import LabelResult, label
from ..teachers.asking.policy import RequestPolicy
from .fixtures import STORY, TEXTS
from .framework import Case, CheckError, allow_refusal, expect, max_difference, plain_json, run_checks

MAX_TOKENS = 24
FINISHES = ("stop", "length", "content_filter")
POLICY = RequestPolicy(concurrency=6, attempts=2)
TOLERANCE = 1e-3  # for log-probabilities above 0, sums of probabilities above 1, and differences of logits


def check_teacher(
    cls: type[Teacher], options: Mapping[str, Any] | None = None, *, repeatable: bool = True
) -> list[str]:
    """Check a teacher. `options` are those of a recipe's [teacher] table.

    Pass `repeatable=False` if the teacher may answer the same request with the same seed differently.
    """
    checks = [
        has_a_json_identity,
        answers_an_ordinary_request,
        handles_any_text,
        handles_prompts_and_messages,
        gives_cacheable_answers,
        answers_concurrent_requests,
        works_again_after_close,
        reports_finish_and_usage,
        scores_given_text,
    ]
    if repeatable:
        checks.append(is_repeatable)
    if getattr(cls, "signal", "") == "top_logprobs":
        checks.append(returns_logprobs)
    if getattr(cls, "signal", "") == "logits":
        checks.append(returns_logits)
    return run_checks("teachers", cls, options, checks)


# ----------------------------------------------------------------------------------------------- asking


def make_request(case: Case, text: str, **fields: Any) -> Request:
    """A request with a text as the host would send it: a message if the teacher chats, else a prompt."""
    content: dict[str, Any] = (
        {"messages": ({"role": "user", "content": text},)} if case.build().chats else {"prompt": text}
    )
    return Request(**{"id": "1", "max_tokens": MAX_TOKENS, "seed": 7, **content, **fields})


def story_requests(case: Case, count: int) -> list[Request]:
    """Ordinary requests, all different."""
    texts = [f"{STORY}Then, for the time number {i}," for i in range(count)]
    return [make_request(case, text, id=str(i), seed=i) for i, text in enumerate(texts)]


def ask(case: Case, teacher: Teacher, requests: Sequence[Request], store: DiskAnswerStore | None = None) -> LabelResult:
    """Send requests as the label stage does, with a new answer store unless one is given."""
    if store is not None:
        return label(teacher, requests, store, policy=POLICY)
    with DiskAnswerStore(case.empty_folder("cache")) as new_store:
        return label(teacher, requests, new_store, policy=POLICY)


def answer_texts(result: LabelResult) -> list[str]:
    """The text of the answer to each request."""
    return [reply.text for reply in result.replies]


# ----------------------------------------------------------------------------------------------- checks


def has_a_json_identity(case: Case) -> None:
    """Teachers with the same options have the same identity, which is part of the cache key."""
    one, two = (plain_json(case.build().identity(), "the identity") for _ in range(2))
    remedy = "Derive it from what determines the answers, not from times, addresses or the order of a set."
    expect(one == two, f"two teachers with the same options have the identities {one!r} and {two!r}", remedy)


def answers_an_ordinary_request(case: Case) -> None:
    """It answers an ordinary request."""
    try:
        done = ask(case, case.build(), story_requests(case, 1))
    except DistillkitError as error:
        raise CheckError(str(error), "An ordinary request must be answered.") from error
    expect(done.answers, "an ordinary request got no answer", "Return Answer(text=...) with some text in it.")


def handles_any_text(case: Case) -> None:
    """It answers empty, long and non-ASCII prompts, or refuses them with a DistillkitError."""
    for description, text in TEXTS.items():
        with allow_refusal(f"asked to continue {description}"):
            ask(case, case.build(), [make_request(case, text)])


def handles_prompts_and_messages(case: Case) -> None:
    """It answers or refuses the kind of request that it is not made for: messages, or a prompt."""
    messages = ({"role": "system", "content": "Be brief."}, {"role": "user", "content": "Tell me of a fox. 🦊"})
    request = make_request(case, "", messages=messages, prompt=None)
    if case.build().chats:
        request = make_request(case, "", prompt="One day,", messages=None)
    with allow_refusal("asked with a prompt" if request.messages is None else "asked with messages"):
        ask(case, case.build(), [request])


def gives_cacheable_answers(case: Case) -> None:
    """A stored answer is found by another instance, and is unchanged when read back."""
    requests = story_requests(case, 3)
    with DiskAnswerStore(case.empty_folder("cache")) as store:
        first = ask(case, case.build(), requests, store)
        second = ask(case, case.build(), requests, store)
    remedy = "Its identity differs between instances with the same options."
    expect(second.asked == 0, f"{second.asked} of 3 requests were sent a second time", remedy)
    for before, after in zip(first.replies, second.replies, strict=True):
        same = _is_same(before, after)
        expect(same, f"{before!r} came back as {after!r}", "Keep `raw` plain JSON, and tokens bytes and numbers.")


def _is_same(before: Answer, after: Answer) -> bool:
    plain_json(before.to_json(), "an answer")
    return before.to_json() == after.to_json()


def answers_concurrent_requests(case: Case) -> None:
    """Each of several concurrent requests gets the same answer as when it is sent alone."""
    requests = story_requests(case, 4)
    together = ask(case, case.build(), requests)
    expect(all(together.by_key.values()), "some requests got no answer", "Answer every request, or raise an error.")
    if _repeats(case, requests[:1]):
        with DiskAnswerStore(case.empty_folder("cache")) as store:
            alone = [text for request in requests for text in answer_texts(ask(case, case.build(), [request], store))]
        texts = answer_texts(together)
        remedy = "Calls run concurrently: keep the state of a call in local variables, not on self."
        expect(texts == alone, f"asked concurrently it answers {texts!r}, one by one {alone!r}", remedy)


def works_again_after_close(case: Case) -> None:
    """The same instance can be used after `close`, on another event loop."""
    teacher, requests = case.build(), story_requests(case, 4)
    ask(case, teacher, requests[:2])
    try:
        ask(case, teacher, requests[2:])
    except DistillkitError as error:
        remedy = "Open connections when first needed and close them in `close`: they belong to one event loop."
        raise CheckError(f"when used again after close: {error}", remedy) from error


def reports_finish_and_usage(case: Case) -> None:
    """Answers have a known `finish`, respect `max_tokens`, and have tokens that match their text."""
    for answer in ask(case, case.build(), story_requests(case, 3)).answers:
        known = ", ".join(FINISHES)
        expect(answer.finish in FINISHES, f"its answer has finish = {answer.finish!r}", f"Known: {known}.")
        count = answer.usage.completion_tokens if answer.usage else len(answer.tokens)
        remedy = "Pass on request.max_tokens, and count only the tokens of the answer."
        expect(count <= MAX_TOKENS, f"asked for at most {MAX_TOKENS} tokens, it used {count}", remedy)
        _check_tokens(answer)


def scores_given_text(case: Case) -> None:
    """If `reads` is true, a request with max_tokens = 0 returns the prompt with likely tokens at each position."""
    if not case.build().reads:
        return
    request = Request("1", STORY, max_tokens=0, top_logprobs=3)
    for answer in ask(case, case.build(), [request]).answers:
        remedy = "Answer a request with max_tokens = 0 with its prompt, or set `reads` to False."
        expect(answer.text == STORY, f"asked for max_tokens = 0, it answered {answer.text!r}", remedy)
        expect(any(token.top for token in answer.tokens), "no token of the text lists likely alternatives", remedy)
        _check_tokens(answer)


def is_repeatable(case: Case) -> None:
    """The same request with the same seed gets the same answer."""
    remedy = "Sample with request.seed and request.repeat. If it cannot, call check_teacher(..., repeatable=False)."
    expect(_repeats(case, story_requests(case, 2)), "the same request got another answer", remedy)


def _repeats(case: Case, requests: Sequence[Request]) -> bool:
    return answer_texts(ask(case, case.build(), requests)) == answer_texts(ask(case, case.build(), requests))


def returns_logprobs(case: Case) -> None:
    """If its signal is top_logprobs, answers have tokens that spell the text and list likely alternatives."""
    (request,) = story_requests(case, 1)
    with_logprobs = Request(**{**vars(request), "top_logprobs": 3})
    for answer in ask(case, case.build(), [with_logprobs]).answers:
        remedy = 'Return Answer(tokens=(Token(bytes, logprob, top), ...)), or set signal = "text".'
        expect(answer.tokens, "its signal is top_logprobs, but its answer has no tokens", remedy)
        expect(any(token.top for token in answer.tokens), "no token lists likely alternatives", remedy)
        _check_tokens(answer)


def _check_tokens(answer: Answer) -> None:
    if not answer.tokens:
        return
    spelled = b"".join(token.bytes for token in answer.tokens).decode("utf-8", "replace").strip()
    same = spelled == answer.text.strip()
    expect(same, f"its tokens spell {spelled!r}, its text is {answer.text!r}", "Return the bytes of all tokens.")
    for token in answer.tokens:
        values = [token.logprob, *(value for _, value in token.top)]
        are_valid = all(math.isfinite(value) and value <= TOLERANCE for value in values)
        expect(
            are_valid, f"the token {token.bytes!r} has log-probabilities {values}", "They must be finite and at most 0."
        )
        mass = sum(math.exp(value) for _, value in token.top)
        expect(
            mass <= 1 + TOLERANCE,
            f"the probabilities at {token.bytes!r} sum to {mass:.3f}",
            "Their sum must be at most 1.",
        )


def returns_logits(case: Case) -> None:
    """If its signal is logits, they are finite, cover its vocabulary, are causal and independent across rows."""
    import mlx.core as mx

    teacher = case.build()
    tokenizer = teacher.tokenizer
    encoded = tokenizer.encode(STORY)
    tokens = mx.array([encoded[:9], encoded[1:10]])
    logits = teacher.logits(tokens)
    shape = (2, 9, tokenizer.vocab_size)
    fits = logits.ndim == 3 and logits.shape[:2] == shape[:2] and logits.shape[2] >= shape[2]
    expect(fits, f"logits for tokens (2, 9) have shape {logits.shape}, expected {shape}", "Return [B, T, V].")
    expect(mx.isfinite(logits).all().item(), "some logits are not finite", "Compute them in float32.")
    changed = mx.concatenate([tokens[:, :-1], mx.zeros((2, 1), tokens.dtype)], axis=1)
    remedy = "Logits at a position may depend only on that token and earlier ones."
    difference = max_difference(teacher.logits(changed)[:, :-1], logits[:, :-1])
    expect(difference < TOLERANCE, f"changing the last token changes earlier logits by {difference:.3g}", remedy)
    difference = max_difference(teacher.logits(tokens[1:]), logits[1:])
    remedy = "Rows of a batch must be independent."
    expect(difference < TOLERANCE, f"removing a row of the batch changes other rows by {difference:.3g}", remedy)
    if hasattr(teacher, "hidden"):
        weight, bias = teacher.head
        from_hidden = teacher.hidden(tokens) @ weight.T + (0 if bias is None else bias)
        difference = max_difference(from_hidden, logits)
        found = f"head applied to hidden states differs from logits by {difference:.3g}"
        expect(difference < TOLERANCE, found, "Remove `hidden`.")
