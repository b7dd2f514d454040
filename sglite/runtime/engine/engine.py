"""The in-process engine, in the shape of SGLang's offline engine: load a model, generate, shut down.

    with Engine("Qwen/Qwen3-0.6B") as engine:
        engine.generate("The capital of France is", {"temperature": 0, "max_new_tokens": 8})["text"]

The step loop runs on a thread. Tokenising and presenting text happen in the calling thread and on the loop's way out.
"""

from __future__ import annotations

import functools
import itertools
import logging
import uuid
import weakref
from collections.abc import Callable, Mapping
from collections.abc import Sequence as Items
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from sglite.runtime.config import EngineArgs
from sglite.runtime.engine.admission import (
    check_constraint,
    check_options,
    ending_ids,
    logprob_options,
    pick,
)
from sglite.runtime.engine.batch import AsyncBatchStream, Batch, BatchStream
from sglite.runtime.engine.client import EngineThread
from sglite.runtime.engine.core import CoreConfig, EngineCore
from sglite.runtime.engine.generation import EngineError, Generation, RequestRefused
from sglite.runtime.engine.presenter import Presenter
from sglite.runtime.engine.sequence import Sequence
from sglite.runtime.engine.step_plan import SchedulerLimits
from sglite.runtime.protocol import GenerateRequest, ProgramRef
from sglite.runtime.sample.params import InvalidParameter, parse_sampling_params, validate
from sglite.runtime.text.chat_template import ChatTemplate
from sglite.runtime.text.tokenizer import Tokenizer, load_tokenizer
from sglite.runtime.text.turns import TemplateError

if TYPE_CHECKING:
    from sglite.constrained.compiler import ConstraintCompiler

__all__ = ["Engine", "EngineError", "RequestRefused"]

BUNDLED_MODEL = "sglite-demo"


class Engine:
    """A model, loaded and ready.

    Args:
        model_path: a folder in Hugging Face layout or a hub name; ``None``: the bundled model.
        arguments: see ``EngineArgs``.

    Raises ``ModelError``, ``TokenizerError`` or ``ConfigError`` (all ``ValueError``), in one line, when the model or
    an argument cannot be used.
    """

    def __init__(self, model_path: str | Path | None = None, **arguments: Any) -> None:
        from sglite.runtime.executor.build import build

        self.args = EngineArgs.of({"model_path": None if model_path is None else str(model_path), **arguments})
        if self.args.log_level is not None:
            logging.getLogger("sglite").setLevel(self.args.log_level.upper())
        folder = _find_model(self.args)
        self.tokenizer: Tokenizer | None = None
        self.chat_template: ChatTemplate | None = None
        if not self.args.skip_tokenizer_init:
            text_folder = Path(self.args.tokenizer_path) if self.args.tokenizer_path is not None else folder
            self.tokenizer = load_tokenizer(text_folder)
            self.chat_template = ChatTemplate.load(text_folder)
        built = build(self.args, folder)
        self.config = built.config
        self.model_path = self.args.model_path or BUNDLED_MODEL
        eos = built.eos_ids if self.tokenizer is None else (*built.eos_ids, *self.tokenizer.eos_token_ids)
        self._eos_ids = tuple(dict.fromkeys(i for i in eos if i < built.config.vocab_size))
        self._token_bytes: list[bytes | None] | None = None
        if self.tokenizer is not None:
            self._token_bytes = list(self.tokenizer.token_bytes()[: self.config.vocab_size])
        self._weight_bytes = built.weight_bytes
        self._capacity = min(built.config.context_length, built.config.max_total_tokens)
        self._names = itertools.count(1)
        self._compiler = self._make_compiler()
        self._thread = EngineThread(lambda wake: self._make_core(built.executor, wake))
        self._finalizer = weakref.finalize(self, self._thread.close)

    def _make_core(self, executor: Any, wake: Callable[[], None]) -> EngineCore:
        config = CoreConfig(
            num_pages=self.config.num_pages,
            page_size=self.config.page_size,
            max_context=self.config.context_length,
            vocab_size=self.config.vocab_size,
            eos_ids=self._eos_ids,
            limits=SchedulerLimits(
                max_step_tokens=self.config.max_step_tokens,
                max_running=self.config.max_running,
                chunk_size=self.config.chunk_size,
            ),
            policy=self.args.schedule_policy,
            radix_cache=not self.args.disable_radix_cache,
            overlap=self.config.overlap,
            jump_forward=self.config.jump_forward,
            seed=self.args.random_seed,
            max_waiting=self.args.max_queued_requests,
        )
        return EngineCore(executor, config, self._token_bytes, self._compiler, wake)

    def _make_compiler(self) -> ConstraintCompiler | None:
        """``None`` where no constrained text could ever end, or nothing is known of text at all."""
        if self.tokenizer is None or self._token_bytes is None or not self._eos_ids:
            return None
        from sglite.constrained.compiler import ConstraintCompiler
        from sglite.constrained.vocab import Vocabulary

        tokenizer, size = self.tokenizer, self.config.vocab_size
        named = ((tokenizer.token_text(i), i) for i in tokenizer.special_token_ids if i < size)
        specials = {text: i for text, i in named if text}
        encode = functools.partial(tokenizer.encode, parse_special=False)
        vocabulary = Vocabulary(self._token_bytes, self._eos_ids, encode, size, specials)
        return ConstraintCompiler(
            vocabulary, deadline_s=self.args.grammar_timeout_s, engine=self.config.grammar_backend
        )

    # --- SGLang's offline API ---------------------------------------------------------------------------------

    def generate(
        self,
        prompt: str | list[str] | None = None,
        sampling_params: Mapping[str, Any] | list[Mapping[str, Any]] | None = None,
        input_ids: list[int] | list[list[int]] | None = None,
        return_logprob: bool | list[bool] = False,
        logprob_start_len: int | list[int] | None = None,
        top_logprobs_num: int | list[int] | None = None,
        token_ids_logprob: list[int] | list[list[int]] | None = None,
        stream: bool = False,
        **options: Any,
    ) -> Any:
        """Generate from one prompt or a batch, given as text or as ids.

        ``sampling_params``: a dict, or one a prompt; see ``SamplingParams``. Returns
        ``{"text", "output_ids", "meta_info"}``, a list of them for a batch or ``n > 1``; with ``stream`` an iterator
        of such dicts with cumulative contents, and ``index`` for a batch. ``options``: ``rid``, ``priority``,
        ``return_text_in_logprobs``, ``cache_salt``, ``extra_key``, ``timeout_s``, ``queue_timeout_s``,
        ``constraint_after``, ``reasoning_budget``.

        Raises ``ValueError`` (``InvalidParameter``, ``RequestRefused``) naming the field for what cannot be run and
        ``EngineError`` for what failed.
        """
        generation = self._start(
            prompt, sampling_params, input_ids,
            return_logprob=return_logprob, logprob_start_len=logprob_start_len,
            top_logprobs_num=top_logprobs_num, token_ids_logprob=token_ids_logprob, **options,
        )  # fmt: skip
        if stream:
            return BatchStream(generation)
        try:
            return generation.result()
        except BaseException:
            generation.abort()
            raise

    async def async_generate(self, *args: Any, stream: bool = False, **fields: Any) -> Any:
        """``generate`` for an event loop: awaits the result, or returns an async iterator with ``stream``."""
        generation = self._start(*args, **fields)
        if stream:
            return AsyncBatchStream(generation)
        try:
            return await generation.wait()
        except BaseException:
            generation.abort()
            raise

    def flush_cache(self) -> bool:
        """Forget every cached prefix that no request in flight uses."""
        self._thread.call(lambda core: core.flush_cache()).result()
        return True

    def get_server_info(self) -> dict[str, Any]:
        """Configuration with origins, counters, present load."""
        return {
            "model_path": self.model_path,
            "version": _version(),
            "max_total_num_tokens": self.config.max_total_tokens,
            "context_length": self.config.context_length,
            "weight_bytes": self._weight_bytes,
            "config": self.config.describe(),
            **self._thread.call(lambda core: core.statistics()).result(),
        }

    def get_program_info(self, program_id: str) -> dict[str, Any] | None:
        """Sums of what the ended requests of a program cost, its forks' common prefixes included; ``None``: unknown."""
        found = self._thread.call(lambda core: core.programs.get(program_id)).result()
        return None if found is None else msgspec.structs.asdict(found)

    def shutdown(self) -> None:
        """Abort what is open and stop the threads; safe to call twice."""
        self._finalizer()

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()

    # --- programs ---------------------------------------------------------------------------------------------

    def open_sequence(self, program_id: str = "", token_ids: Items[int] = ()) -> Sequence:
        """An append-only sequence of a program; see ``Sequence``. Never blocks."""
        program = ProgramRef(program_id=program_id) if program_id else None
        return Sequence(self, f"{program_id}/{next(self._names)}/", program, token_ids)

    def unpin(self, prefix: str) -> None:
        """Release pins by the beginning of their names."""
        try:
            self._thread.call(lambda core: core.unpin(prefix))
        except RuntimeError:
            return  # shut down: there is nothing pinned any more

    def turn(self, role: str, first: bool) -> tuple[str, str]:
        """Text that opens and closes a turn of ``role``, from the checkpoint's chat template."""
        if self.chat_template is None:
            raise TemplateError(f"{self.model_path} has no chat template, so there are no roles; append plain text")
        return self.chat_template.turn(role, first=first)

    @property
    def default_system(self) -> str | None:
        """System text that the chat template puts in front of a conversation that has none."""
        return None if self.chat_template is None else self.chat_template.default_system

    def submit(
        self,
        input_ids: list[int],
        sampling_params: Mapping[str, Any] | None = None,
        *,
        return_logprob: bool = False,
        logprob_start_len: int | None = None,
        top_logprobs_num: int | None = None,
        token_ids_logprob: list[int] | None = None,
        return_text_in_logprobs: bool = False,
        rid: str | None = None,
        priority: int = 0,
        cache_salt: str | None = None,
        extra_key: str | None = None,
        timeout_s: float | None = None,
        queue_timeout_s: float | None = None,
        constraint_after: str | list[int] | None = None,
        reasoning_budget: int | None = None,
        pin: str = "",
        program: ProgramRef | None = None,
        on_finished: Callable[[Items[Presenter]], None] | None = None,
    ) -> Generation:
        """Start ``n`` requests for one prompt; returns at once. The building block of everything above."""
        given = dict(sampling_params or {})
        sampling, constraint = parse_sampling_params(given)
        validate(sampling, self.config.vocab_size, self._eos_ids)
        if not given.keys() & {"max_new_tokens", "max_tokens"} and sampling.max_new_tokens is not None:
            room = max(1, self._capacity - len(input_ids))  # the default bends to the context, a wish does not
            sampling = msgspec.structs.replace(sampling, max_new_tokens=min(sampling.max_new_tokens, room))
        check_options(rid, priority, cache_salt, extra_key, timeout_s, queue_timeout_s)
        after = ending_ids(constraint_after, reasoning_budget, constraint, self.tokenizer, self.config.vocab_size)
        check_constraint(constraint, sampling, self._compiler)
        rid = rid or uuid.uuid4().hex
        ids = [rid] if sampling.n == 1 else [f"{rid}-{i}" for i in range(sampling.n)]
        layout, options = logprob_options(
            len(input_ids), return_logprob, logprob_start_len, top_logprobs_num, token_ids_logprob,
            return_text_in_logprobs, self.config.vocab_size,
        )  # fmt: skip
        presenters = [Presenter(request_id, sampling, self.tokenizer, layout) for request_id in ids]
        generation = Generation(presenters, self._abort, on_finished=on_finished)
        for index, request_id in enumerate(ids):
            seed = None if sampling.seed is None else (sampling.seed + index) % 2**64
            request = GenerateRequest(
                request_id=request_id,
                token_ids=list(input_ids),
                sampling=msgspec.structs.replace(sampling, seed=seed, n=1),
                constraint=constraint,
                constraint_after=after,
                reasoning_budget=reasoning_budget,
                logprobs=options,
                priority=priority,
                namespace="\x00".join(filter(None, (cache_salt, extra_key))),
                program=program,
                pin=pin if index == 0 else "",
                timeout_s=timeout_s,
                queue_timeout_s=queue_timeout_s,
            )
            self._thread.submit(request, generation.push)
        return generation

    def _abort(self, request_id: str) -> None:
        """A method of the engine, not of its thread: whoever holds a generation keeps the engine running."""
        try:
            self._thread.abort(request_id)
        except RuntimeError:
            return  # shut down: everything has ended

    def _start(
        self,
        prompt: str | list[str] | None = None,
        sampling_params: Mapping[str, Any] | list[Mapping[str, Any]] | None = None,
        input_ids: list[int] | list[list[int]] | None = None,
        **options: Any,
    ) -> Batch:
        """Submit one request or a batch."""
        rows, many = self._prompt_ids(prompt, input_ids)
        batch = Batch(many)
        try:
            for index, row in enumerate(rows):
                fields = {name: pick(value, index, len(rows), name, many) for name, value in options.items()}
                sampling = pick(sampling_params, index, len(rows), "sampling_params", many)
                given = {name: value for name, value in fields.items() if value is not None}
                batch.generations.append(self.submit(row, sampling, **given))
        except BaseException:
            batch.abort()
            raise
        return batch

    def _prompt_ids(
        self, prompt: str | list[str] | None, input_ids: list[int] | list[list[int]] | None
    ) -> tuple[list[list[int]], bool]:
        """Prompts as ids, and whether they came as a batch."""
        if (prompt is None) == (input_ids is None):
            raise InvalidParameter("prompt", prompt, "give either prompt or input_ids, and not both")
        if input_ids is not None:
            many = bool(input_ids) and isinstance(input_ids[0], (list, tuple))
            rows: list[Any] = input_ids if many else [input_ids]
            for row in rows:
                if not isinstance(row, (list, tuple)) or any(type(token) is not int for token in row):
                    message = "input_ids must be a list of token ids, or a list of such lists"
                    raise InvalidParameter("input_ids", row, message)
            return [list(row) for row in rows], many
        if self.tokenizer is None:
            raise InvalidParameter("prompt", prompt, "skip_tokenizer_init=True leaves only input_ids; give those")
        texts = [prompt] if isinstance(prompt, str) else list(prompt or [])
        for index, text in enumerate(texts):
            if not isinstance(text, str):
                raise InvalidParameter("prompt", text, f"prompt[{index}] must be text, got {type(text).__name__}")
            if not text:
                raise InvalidParameter("prompt", text, "prompt is empty: give at least one character")
        return [self.tokenizer.encode(text, add_bos=True) for text in texts], not isinstance(prompt, str)


def _find_model(args: EngineArgs) -> Path:
    """The folder of the model asked for, or of the bundled one."""
    if args.model_path is None:
        return Path(str(resources.files("sglite") / "bundled" / BUNDLED_MODEL))
    from sglite.runtime.model.config import read_config
    from sglite.runtime.model.hub import resolve

    folder = resolve(args.model_path, args.revision, args.download_dir, args.offline)
    read_config(folder)  # a folder that is no model is refused before anything is loaded from it
    return folder


def _version() -> str:
    from sglite.version import __version__

    return __version__
