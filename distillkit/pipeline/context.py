"""The parts that a recipe asks for, each built when it is first needed.

Here the rooms meet: documents become tokens, tokens become prompts, answers become rows to train on. Decides nothing
about the order of a run (`pipeline`) and counts nothing (`plan`).
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields
from functools import cached_property, partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from ..core.console import Console
from ..core.errors import DataError, DistillkitError, UsageError
from ..core.records import Answer, Price, Request
from ..core.run_folder import cache_folder
from ..data.batches import Batches
from ..data.corpus import Corpus, held_out, pack_texts, prepare, prepared
from ..data.shards import Stream
from ..plugins.interfaces import Judge, Mixer, Source, Student, Teacher, Tracker
from ..plugins.manager import Plugins
from ..recipe.recipe import JudgeTable, Recipe, must_begin
from ..recipe.schema import TeacherTable
from ..teachers.answers.disk import DiskAnswerStore
from ..teachers.asking import prompts
from ..teachers.asking.label import LabelResult, answer_keys, known_answers, label
from ..teachers.asking.policy import RequestPolicy
from .soft_targets import ANSWERS, STEP, Softness

if TYPE_CHECKING:
    import mlx.nn as nn

    from ..data.tokenizer import Tokenizer

CONTINUE = (
    "Continue the story from exactly where it stops, in the same style. Reply with the continuation only: "
    "do not repeat the beginning, and add no title and no comment."
)


class Context:
    """A recipe, and what it is made of."""

    def __init__(
        self, recipe: Recipe, plugins: Plugins, console: Console | None = None, manner: Mapping[str, Any] | None = None
    ) -> None:
        self.recipe, self.plugins, self.console = recipe, plugins, console or Console()
        self.manner = dict(manner or {})  # of asking, beside the recipe's: batch, wait, shard, retry_refused

    def _build(self, role: str, name: str, options: Mapping[str, Any], table: str) -> Any:
        recipe = self.recipe
        return self.plugins.build(role, name, options, file=recipe.file, table=table, folder=recipe.folder)

    def check(self) -> None:
        """Refuse what the recipe names and is not there, before anything is made: packages, students, teachers."""
        self._check_text()
        if self.recipe.begins_with_recipe:
            must_begin(self.recipe)
        elif self.recipe.student.from_:
            from ..student.trained import locate

            locate(self.recipe.student.from_)
        table = self.recipe.teacher
        if self.teacher is not None and table is not None:
            self.teacher.identity()
            self.soft.check()
            if self.reads_in_steps and not self.teacher.reads:
                raise UsageError(
                    f"teacher.on_policy: the teacher {table.provider!r} reads no text of others ({self.recipe.file})",
                    'Leave it out, or take one that reads: provider = "compatible" with api = "plain".',
                )
            if table.system and not self.teacher.chats:
                raise UsageError(
                    f"teacher.system: the teacher {table.provider!r} does not chat ({self.recipe.file})",
                    "Leave it out, or ask a teacher that replies to messages.",
                )
            self.check_rows()

    def check_rows(self) -> None:
        """Refuse a share of a step's rows that comes to no row: what the teacher gives would be paid for in vain."""
        table, rows = self.recipe.teacher, self.recipe.train.rows
        if table is None:
            return
        for key, share in {"share": table.share, "on_policy": table.on_policy}.items():
            if share and not round(share * rows):
                raise UsageError(
                    f"teacher.{key} = {share} of {rows} rows a step is none ({self.recipe.file})",
                    "Raise it, or train.batch_size, or leave it out.",
                )

    def _check_text(self) -> None:
        """Refuse a source or tokenizer whose package is missing; a corpus that lies in the cache needs no source."""
        from ..data.tokenizer import check

        check(self.recipe.values()["tokenizer"])
        try:
            self.source.check()
        except DataError:
            if not self._prepared:
                raise

    @cached_property
    def source(self) -> Source:
        """Where documents come from."""
        table = self.recipe.data
        return cast(Source, self._build("sources", table.source, table.options, "data"))

    @cached_property
    def student(self) -> Student:
        """The architecture that is trained."""
        table = self.recipe.student
        return cast(Student, self._build("students", table.arch, table.options, "student"))

    @cached_property
    def teacher(self) -> Teacher | None:
        """Who answers, if anybody does."""
        table = self.recipe.teacher
        if table is None:
            return None
        return cast(Teacher, self._build("teachers", table.provider, table.options, "teacher"))

    @cached_property
    def mixer(self) -> Mixer:
        """What turns logits and targets into a loss."""
        table = self.recipe.mixer
        mixer = cast(Mixer, self._build("mixers", table.name, table.options, "mixer"))
        mixer.steps = self.recipe.train.steps
        return mixer

    def judges(self) -> Iterator[tuple[JudgeTable, Judge]]:
        """Those who grade, in the order of the recipe."""
        for i, table in enumerate(self.recipe.judge):
            yield table, cast(Judge, self._build("judges", table.name, table.options, f"judge.{i}"))

    def teacher_of(self, table: JudgeTable, judge: Judge) -> tuple[Teacher, TeacherTable] | None:
        """Whom a judge asks, and how: what its table says, over what the judge itself would like."""
        liked = dict(judge.default_teacher or {})
        said = table.teacher.model_dump(exclude_unset=True) if table.teacher else {}
        if not said and not liked:
            return None
        if said and said["provider"] != liked.get("provider"):
            liked = {}
        whole = TeacherTable.model_validate({**liked, **said})
        teacher = self._build("teachers", whole.provider, whole.options, f"judge.{judge.name}.teacher")
        return cast(Teacher, teacher), whole

    def cannot_be_asked(self, judging: bool = True) -> Iterator[UsageError]:
        """Why those who may be asked cannot be, as far as nobody needs to be asked for that: keys that are missing."""
        checks: list[Callable[[], None]] = [self._teacher_ready]
        checks += [partial(self.judge_ready, table, judge) for table, judge in self.judges() if judging]
        for ready in checks:
            try:
                ready()
            except UsageError as error:
                yield error

    def _teacher_ready(self) -> None:
        table = self.recipe.teacher
        if self.teacher is not None and table and (table.prompts or table.prompts_file or self.reads_in_steps):
            self.teacher.check([])

    def judge_ready(self, table: JudgeTable, judge: Judge) -> None:
        """Refuse a judge whose teacher cannot be asked, and say whose it is."""
        found = self.teacher_of(table, judge)
        try:
            if found is not None:
                found[0].check([])
        except UsageError as error:
            instead = """Or do without that judge: --set 'judge=[{name="perplexity"}]'"""
            told = f"{error.message}, whom the judge {judge.name!r} asks"
            raise UsageError(told, f"{error.hint} {instead}") from error

    def trackers(self) -> list[Tracker]:
        """Those who are told of every step."""
        tables = enumerate(self.recipe.tracker)
        return [cast(Tracker, self._build("trackers", t.name, t.options, f"tracker.{i}")) for i, t in tables]

    @cached_property
    def corpus(self) -> Corpus:
        """The documents as tokens, from the cache or packed now."""
        tables = self.recipe.values()
        return prepare(self.source, tokenizer=tables["tokenizer"], options=tables["data"], console=self.console)

    @property
    def at_hand(self) -> bool:
        """Whether the corpus can be had without fetching anything."""
        return "corpus" in vars(self) or self._at_hand

    @cached_property
    def _at_hand(self) -> bool:
        return self.source.here or self._prepared

    @cached_property
    def _prepared(self) -> bool:
        """Whether the corpus lies in the cache."""
        tables = self.recipe.values()
        return prepared(self.source, tokenizer=tables["tokenizer"], options=tables["data"])

    @property
    def vocab_size(self) -> int:
        """How many tokens the student knows, corpus or no corpus."""
        from ..data.tokenizer import size_of

        return size_of(self.recipe.values()["tokenizer"])

    @property
    def tokenizer(self) -> Tokenizer:
        """What the student reads and writes with; no text is fetched for one that needs none."""
        from ..data.tokenizer import build, is_trained

        table = self.recipe.values()["tokenizer"]
        return self.corpus.tokenizer if self.at_hand or is_trained(table) else build(**table)

    @cached_property
    def network(self) -> nn.Module:
        """The student's network, its weights not yet set."""
        from ..student import Trained  # noqa: F401 - loads the fast BLAS first

        return _network(self.student.name, self.student.build(self.vocab_size))

    def requests(self, unread: bool = False) -> list[Request]:
        """What the teacher is asked: documents to go on from, draws from a template, or the lines of a file.

        With `unread`, stand-ins of the same length take the place of documents: for a plan that fetches nothing.
        """
        table = self.recipe.teacher
        if table is None:
            return []
        stand_ins = (("train", "word " * table.prompt_tokens) for _ in range(table.prompts))
        found = stand_ins if unread and not (table.template or table.prompts_file) else self._prompts(table)
        return [
            Request(
                id=f"{kind}:{i}#{repeat}",
                **self._said(kind, prompt),
                max_tokens=table.max_tokens,
                temperature=table.temperature,
                top_p=table.top_p,
                stop=tuple(table.stop),
                seed=_seed(self.recipe.seed, i),
                top_logprobs=table.top_logprobs,
                repeat=repeat,
            )
            for i, (kind, prompt) in enumerate(found)
            for repeat in range(table.repeats)
        ]

    def _prompts(self, table: TeacherTable) -> Iterator[tuple[str, prompts.Prompt]]:
        """Each prompt, and what kind it is of."""
        if table.template:
            yield from (
                ("template", text) for text in prompts.sample_prompts(table.template, table.prompts, self.recipe.seed)
            )
        elif table.prompts_file:
            yield from (("file", prompt) for prompt in prompts.read_prompts(Path(table.prompts_file), table.prompts))
        else:
            texts = islice(self.corpus.train_text(), table.prompts) if table.prompts else ()
            yield from (("train", self._begun(text, table.prompt_tokens)) for text in texts)

    def _begun(self, text: str, tokens: int) -> str:
        """The beginning of a document: for a teacher that chats, up to the end of a word."""
        begun = self.beginning(text, tokens)
        if self._chats and text[len(begun) : len(begun) + 1].isalnum():
            begun = re.sub(r"\s*\w+$", "", begun) or begun
        return begun

    def _said(self, kind: str, prompt: prompts.Prompt) -> dict[str, Any]:
        """A prompt as a request has it: to go on from, or as what a user says to a teacher that chats."""
        table = cast(TeacherTable, self.recipe.teacher)
        system = CONTINUE if table.system is None and kind == "train" else table.system
        first = ({"role": "system", "content": system},) if system else ()
        if not isinstance(prompt, str):
            return {"messages": prompt if prompt[0]["role"] == "system" else (*first, *prompt)}
        return {"messages": (*first, {"role": "user", "content": prompt})} if self._chats else {"prompt": prompt}

    @property
    def _chats(self) -> bool:
        return self.teacher is not None and self.teacher.chats

    def request_policy(self, table: TeacherTable, **more: Any) -> RequestPolicy:
        """How a teacher is asked: by the recipe, and by what this command was told."""
        same = {field.name for field in fields(RequestPolicy)} & set(TeacherTable.model_fields) - {"price"}
        price = Price(table.price.input, table.price.output) if table.price else None
        return RequestPolicy(**{name: getattr(table, name) for name in same}, price=price, **{**self.manner, **more})

    def beginning(self, text: str, tokens: int) -> str:
        """The first tokens of a text, cut where a character ends."""
        return self.tokenizer.decode(self.tokenizer.encode(text)[:tokens]).rstrip("\ufffd")

    def cache(self) -> DiskAnswerStore:
        """Where answers are kept."""
        return DiskAnswerStore(cache_folder() / "teachers")

    def ask(
        self,
        teacher: Teacher,
        requests: list[Request],
        policy: RequestPolicy,
        done: LabelResult | None = None,
        console: Console | None = None,
    ) -> LabelResult:
        """Answers to all requests, one by one or in batches."""
        from ..teachers.asking import batch_state
        from ..teachers.asking.batch_api import label_in_batches

        console = console or self.console
        with self.cache() as cache:
            if policy.batch:
                return label_in_batches(
                    teacher, requests, cache, self._batches, policy=policy, console=console, done=done
                )
            check = partial(batch_state.refuse_batched, self._batches, cache)
            return label(teacher, requests, cache, policy=policy, console=console, done=done, check=check)

    def refuse_twice(self) -> None:
        """Refuse beforehand to ask one by one for what is in a batch: it would be paid for twice."""
        from ..teachers.asking import batch_state

        if self.teacher is None or self.manner.get("batch") or not batch_state.load_all(self._batches):
            return
        with self.cache() as cache:
            keys = answer_keys(self.teacher, self.requests(), self.manner.get("shard"))
            batch_state.refuse_batched(self._batches, cache, keys)

    def sent_off(self, teacher: Teacher, requests: list[Request], policy: RequestPolicy) -> int:
        """How many of the requests are in a batch whose answers are still to come, and need not be paid for again."""
        from ..teachers.asking import batch_state

        found = batch_state.keys_in_batches(self._batches, answer_keys(teacher, requests), batch_state.SUBMITTED_STATES)
        with self.cache() as cache:
            return len(found.keys() - known_answers(cache, found, policy).keys())

    def came_since(self, teacher: Teacher, requests: list[Request], moment: float) -> list[Answer]:
        """The answers to requests that came into the cache since a moment, but for those that are to be counted yet."""
        from ..teachers.asking import batch_state

        keys = set(answer_keys(teacher, requests)) - batch_state.unbilled_keys(self._batches)
        with self.cache() as cache:
            return list(cache.get_many(cache.since(keys, moment)).values())

    def at_least(self, teacher: Teacher, answers: list[Answer], spent: Mapping[str, float]) -> dict[str, float]:
        """What was spent on a teacher, when at least these answers were paid for beside what was spent before."""
        price = self.request_policy(cast(TeacherTable, self.recipe.teacher)).price_of(teacher)
        bills = [answer.usage for answer in answers if answer.usage]
        least = {
            "usd": sum(price.of(bill) for bill in bills) if price else 0.0,
            "requests": len(answers),
            "tokens": sum(bill.prompt_tokens + bill.completion_tokens for bill in bills),
        }
        return {of: spent.get(of, 0) + count for of, count in least.items()}

    @property
    def _batches(self) -> Path:
        """Where it stands what was sent off in batches."""
        return cache_folder() / "batches"

    def pack(self, labelled: LabelResult, answers: Path) -> dict[str, Any]:
        """Answers as rows to train on, with their soft targets if a mixer wants some; and those that are held out.

        Returns what there is to record of it.
        """
        table = self.recipe.teacher
        if table is None:
            return {}
        kept_out = self.held_out_answers(labelled)
        told = [(request, answer) for request, _, answer in labelled.answered if answer.text]
        learnt = [pair for pair in told if pair[0].id not in kept_out]
        apart = [pair for pair in told if pair[0].id in kept_out]
        facts: dict[str, Any] = {"held_out": len(apart)} if apart else {}
        stream = self._packed(learnt, answers / PACKED)
        if stream and self.soft.source == ANSWERS:
            store = self.soft.align(stream, [answer for _, answer in learnt])
            facts["soft"] = self.soft.facts([store])
        self._packed(apart, answers / HELD_OUT)
        return facts

    def _packed(self, told: list[tuple[Request, Answer]], folder: Path) -> Stream | None:
        """Answers as rows; None, and no folder, when there is nothing to learn from them."""
        table = cast(TeacherTable, self.recipe.teacher)
        if not told:
            shutil.rmtree(folder, ignore_errors=True)
            return None
        pairs = [(*_learnt(request, answer.text), answer.finish == "stop") for request, answer in told]
        return pack_texts(pairs, self.tokenizer, folder, table.learn_prompts)

    def held_out_answers(self, labelled: LabelResult) -> set[str]:
        """The requests whose answers are kept from training, by the hash of what was asked: never by its place."""
        share = self.recipe.teacher.held_out if self.recipe.teacher else 0.0
        return {request.id for request, _, _ in labelled.answered if held_out(_asked(request), share)}

    def streams(self, answers: Path) -> list[Stream]:
        """The corpus, and the teacher's answers if there are any and they are read."""
        table = self.recipe.teacher
        read = (answers / PACKED).is_dir() and (table is None or table.share != 0)
        return [self.corpus.train, *([_of_answers(answers / PACKED)] if read else [])]

    def held_out_stream(self, answers: Path) -> Stream | None:
        """The answers that are kept from training, if there are any."""
        return _of_answers(answers / HELD_OUT) if (answers / HELD_OUT).is_dir() else None

    def batches(self, answers: Path) -> Batches:
        """What the student reads: the corpus and the teacher's answers, and soft targets where they are stored."""
        train, streams, table = self.recipe.train, self.streams(answers), self.recipe.teacher
        return Batches(
            streams,
            self.student.context,
            train.rows,
            self.recipe.seed,
            soft=self.soft.open(streams),
            share=table.share if table else None,
        )

    @cached_property
    def soft(self) -> Softness:
        """Where soft targets come from."""
        return Softness(self)

    @property
    def teaches_online(self) -> bool:
        """Whether the teacher's logits are part of every training step."""
        return self.soft.source == STEP

    @property
    def reads_in_steps(self) -> bool:
        """Whether the teacher is asked in every step what it thinks of what the student has just written."""
        table = self.recipe.teacher
        return table is not None and table.on_policy is not None and self.soft.source == ANSWERS

    def logits_teacher(self) -> Teacher | None:
        """The teacher whose logits join the training step; its tokens must be the student's."""
        return self.soft.teacher if self.teaches_online else None


PACKED, HELD_OUT = "packed", "held_out"


def _of_answers(folder: Path) -> Stream:
    """The packed answers of a run, once it is sure that they are what was packed."""
    stream = Stream(folder, f"Pack them again, from the cache: distillkit label {folder.parent.parent}")
    stream.verify()
    return stream


def _asked(request: Request) -> str:
    """What was asked, whatever its repeat: answers to one prompt stay together."""
    return request.prompt if request.prompt is not None else json.dumps(request.messages, ensure_ascii=False)


def _learnt(request: Request, text: str) -> tuple[str, str]:
    """What the student reads of an exchange: a beginning and how it goes on, or the answer to an instruction alone."""
    if request.prompt is not None:
        return request.prompt, text
    if not request.id.startswith("train:") or not request.messages:
        return "", text
    begun = request.messages[-1]["content"]
    apart = begun[-1:].isspace() or text[:1].isspace() or text[:1] in ".,;:!?'\")"
    return begun, text if apart else f" {text}"


def _network(name: str, built: Any) -> nn.Module:
    """What a student built, if it is a network."""
    import mlx.nn as nn

    if isinstance(built, nn.Module):
        return built
    told = f"the student {name!r} built a {type(built).__name__} where a module of mlx.nn was due"
    raise DistillkitError(told, "Return it from Student.build.")


def _seed(seed: int, index: int) -> int:
    """A seed for one request, unlike its neighbours'."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{index}".encode()).digest()[:4], "big")
