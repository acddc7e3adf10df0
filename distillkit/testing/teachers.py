"""What a teacher owes the host: answers that are kept and found again, one to each request, under a true identity.

Asks as the label stage asks, over a cache on disk. Does not know whether an answer is any good.
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
LITTLE = 1e-3  # by which a log-probability may be above zero, or a sum of probabilities above one


def check_teacher(
    cls: type[Teacher], options: Mapping[str, Any] | None = None, *, repeatable: bool = True
) -> list[str]:
    """Hold a teacher against its promises. `options` are those of a recipe's [teacher] table.

    Say `repeatable=False` of one that answers the same request, with the same seed, in another way each time.
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


def request_of(case: Case, text: str, **more: Any) -> Request:
    """A text as the host would ask it: a message to a teacher that chats, a prompt to others."""
    words: dict[str, Any] = (
        {"messages": ({"role": "user", "content": text},)} if case.build().chats else {"prompt": text}
    )
    return Request(**{"id": "1", "max_tokens": MAX_TOKENS, "seed": 7, **words, **more})


def stories(case: Case, count: int) -> list[Request]:
    """Requests, none like another."""
    texts = [f"{STORY}Then, for the time number {i}," for i in range(count)]
    return [request_of(case, text, id=str(i), seed=i) for i, text in enumerate(texts)]


def ask(case: Case, teacher: Teacher, requests: Sequence[Request], cache: DiskAnswerStore | None = None) -> LabelResult:
    """Ask as the label stage does."""
    if cache is not None:
        return label(teacher, requests, cache, policy=POLICY)
    with DiskAnswerStore(case.empty_folder("cache")) as fresh:
        return label(teacher, requests, fresh, policy=POLICY)


def texts_of(labelled: LabelResult) -> list[str]:
    """What was answered, one text a request."""
    return [reply.text for reply in labelled.replies]


# --------------------------------------------------------------------------------------------- promises


def has_a_json_identity(case: Case) -> None:
    """It is part of the cache's key, so two teachers built alike have the same."""
    one, two = (plain_json(case.build().identity(), "the identity") for _ in range(2))
    remedy = "Make it of what decides the answers, not of times, addresses or the order of a set."
    expect(one == two, f"two teachers built alike call themselves {one!r} and {two!r}", remedy)


def answers_an_ordinary_request(case: Case) -> None:
    """An ordinary request gets an answer."""
    try:
        done = ask(case, case.build(), stories(case, 1))
    except DistillkitError as error:
        raise CheckError(str(error), "An ordinary request must be answered.") from error
    expect(done.answers, "an ordinary request got no answer", "Return Answer(text=...) with some text in it.")


def handles_any_text(case: Case) -> None:
    """Empty, long or not ASCII: it answers, or refuses in words."""
    for what, text in TEXTS.items():
        with allow_refusal(f"asked to go on from {what}"):
            ask(case, case.build(), [request_of(case, text)])


def handles_prompts_and_messages(case: Case) -> None:
    """A conversation or a prompt, whichever it is not made for: it answers, or refuses in words."""
    turns = ({"role": "system", "content": "Be brief."}, {"role": "user", "content": "Tell me of a fox. 🦊"})
    strange = request_of(case, "", messages=turns, prompt=None)
    if case.build().chats:
        strange = request_of(case, "", prompt="One day,", messages=None)
    with allow_refusal("asked by a prompt" if strange.messages is None else "asked by messages"):
        ask(case, case.build(), [strange])


def gives_cacheable_answers(case: Case) -> None:
    """What was paid for once is not asked again, and comes back as it went in."""
    requests = stories(case, 3)
    with DiskAnswerStore(case.empty_folder("cache")) as cache:
        first = ask(case, case.build(), requests, cache)
        second = ask(case, case.build(), requests, cache)
    remedy = "Its identity, or what it makes of its options, changes from one object to the next."
    expect(second.asked == 0, f"{second.asked} of 3 requests were asked a second time", remedy)
    for before, after in zip(first.replies, second.replies, strict=True):
        whole = _same(before, after)
        expect(whole, f"{before!r} came back as {after!r}", "Keep `raw` plain JSON, and tokens bytes and numbers.")


def _same(before: Answer, after: Answer) -> bool:
    plain_json(before.to_json(), "an answer")
    return before.to_json() == after.to_json()


def answers_concurrent_requests(case: Case) -> None:
    """Each request gets its own answer, the one that it would get alone."""
    requests = stories(case, 4)
    done = ask(case, case.build(), requests)
    expect(all(done.found.values()), "some requests got no answer", "Answer every request, or raise an error.")
    if _repeats(case, requests[:1]):
        with DiskAnswerStore(case.empty_folder("cache")) as cache:
            alone = [text for request in requests for text in texts_of(ask(case, case.build(), [request], cache))]
        remedy = "Calls run side by side: keep what belongs to one of them in local names, not on self."
        expect(texts_of(done) == alone, f"asked at once it says {texts_of(done)!r}, alone {alone!r}", remedy)


def works_again_after_close(case: Case) -> None:
    """The same object, on another loop, after `close`."""
    teacher, requests = case.build(), stories(case, 4)
    ask(case, teacher, requests[:2])
    try:
        ask(case, teacher, requests[2:])
    except DistillkitError as error:
        remedy = "Open connections when they are first needed, and drop them in `close`: they belong to one loop."
        raise CheckError(f"after a first sitting: {error}", remedy) from error


def reports_finish_and_usage(case: Case) -> None:
    """Why an answer ended and how many tokens it took."""
    for answer in ask(case, case.build(), stories(case, 3)).answers:
        known = ", ".join(FINISHES)
        expect(answer.finish in FINISHES, f"it finished by {answer.finish!r}", f"Known: {known}.")
        count = answer.usage.completion_tokens if answer.usage else len(answer.tokens)
        remedy = "Pass request.max_tokens on, and count the tokens of the answer alone."
        expect(count <= MAX_TOKENS, f"asked for at most {MAX_TOKENS} tokens, it used {count}", remedy)
        _tokens_are_sound(answer)


def scores_given_text(case: Case) -> None:
    """If it says that it reads: asked for no words, it gives the text back, with what is likely at its tokens."""
    if not case.build().reads:
        return
    request = Request("1", STORY, max_tokens=0, top_logprobs=3)
    for answer in ask(case, case.build(), [request]).answers:
        remedy = "Answer a request with max_tokens = 0 by its prompt, or do not say that it `reads`."
        expect(answer.text == STORY, f"asked for no words, it said {answer.text!r}", remedy)
        expect(any(token.top for token in answer.tokens), "none of the text's tokens names the likeliest", remedy)
        _tokens_are_sound(answer)


def is_repeatable(case: Case) -> None:
    """The same request with the same seed, the same words."""
    remedy = "Draw by request.seed and request.repeat; if it cannot, say check_teacher(..., repeatable=False)."
    expect(_repeats(case, stories(case, 2)), "asked the same again, it said something else", remedy)


def _repeats(case: Case, requests: Sequence[Request]) -> bool:
    return texts_of(ask(case, case.build(), requests)) == texts_of(ask(case, case.build(), requests))


def returns_logprobs(case: Case) -> None:
    """As its signal says: a token for each piece of the text, with the likeliest others."""
    (request,) = stories(case, 1)
    asked = Request(**{**vars(request), "top_logprobs": 3})
    for answer in ask(case, case.build(), [asked]).answers:
        remedy = 'Fill Answer(tokens=(Token(bytes, logprob, top), ...)), or say signal = "text".'
        expect(answer.tokens, "its signal is top_logprobs, and its answer has no tokens", remedy)
        expect(any(token.top for token in answer.tokens), "none of its tokens names the likeliest others", remedy)
        _tokens_are_sound(answer)


def _tokens_are_sound(answer: Answer) -> None:
    if not answer.tokens:
        return
    whole = b"".join(token.bytes for token in answer.tokens)
    spelt = whole.decode("utf-8", "replace").strip()
    expect(spelt == answer.text.strip(), f"its tokens spell {spelt!r}, its text is {answer.text!r}", "Give all bytes.")
    for token in answer.tokens:
        values = [token.logprob, *(value for _, value in token.top)]
        good = all(math.isfinite(value) and value <= LITTLE for value in values)
        expect(good, f"the token {token.bytes!r} has log-probabilities {values}", "They are finite and at most 0.")
        mass = sum(math.exp(value) for _, value in token.top)
        expect(mass <= 1 + LITTLE, f"the alternatives of {token.bytes!r} weigh {mass:.3f}", "They share at most 1.")


def returns_logits(case: Case) -> None:
    """As its signal says: finite, of every token of its tokenizer, and of what stood before alone."""
    import mlx.core as mx

    teacher = case.build()
    words = teacher.tokenizer
    known = words.encode(STORY)
    tokens = mx.array([known[:9], known[1:10]])
    logits = teacher.logits(tokens)
    shape = (2, 9, words.vocab_size)
    fits = logits.ndim == 3 and logits.shape[:2] == shape[:2] and logits.shape[2] >= shape[2]
    expect(fits, f"the logits of tokens (2, 9) are {logits.shape}, expected {shape}", "Return [B, T, V].")
    expect(mx.isfinite(logits).all().item(), "some logits are not finite", "Compute them in float32.")
    later = mx.concatenate([tokens[:, :-1], mx.zeros((2, 1), tokens.dtype)], axis=1)
    remedy = "Logits at a position may see that token and those before it only."
    seen = max_difference(teacher.logits(later)[:, :-1], logits[:, :-1])
    expect(seen < LITTLE, f"another last token changes logits before it by {seen:.3g}", remedy)
    apart = max_difference(teacher.logits(tokens[1:]), logits[1:])
    expect(apart < LITTLE, f"another row of the batch changes logits by {apart:.3g}", "Rows are independent.")
    if hasattr(teacher, "hidden"):
        weight, bias = teacher.head
        made = teacher.hidden(tokens) @ weight.T + (0 if bias is None else bias)
        apart = max_difference(made, logits)
        expect(
            apart < LITTLE, f"its head makes other logits of its hidden states, by {apart:.3g}", "Leave `hidden` out."
        )
