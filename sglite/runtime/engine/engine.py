"""The in-process engine, in the shape of SGLang's offline engine: load a model, generate, shut down.

    with Engine("Qwen/Qwen3-0.6B") as engine:
        engine.generate("The capital of France is", {"temperature": 0, "max_new_tokens": 8})["text"]

The step loop runs on a thread, or in a process of its own (``launch``). Tokenising and presenting text happen here: in
the calling thread, and where outputs come in.
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
from typing import Any

import msgspec

from sglite.runtime.config import EngineArgs
from sglite.runtime.engine.admission import Admission, Admitted, pick
from sglite.runtime.engine.assemble import InProcess, Launch, Launched, Launching, text_folder
from sglite.runtime.engine.batch import AsyncBatchStream, Batch, BatchStream, prompt_ids
from sglite.runtime.engine.client import EngineClient
from sglite.runtime.engine.generation import EngineError, Generation, RequestRefused
from sglite.runtime.engine.health import Health, Load
from sglite.runtime.engine.presenter import Presenter
from sglite.runtime.engine.sequence import Handle, Sequence, Start
from sglite.runtime.engine.served_weights import ServedWeights, check_format
from sglite.runtime.pooling import Pooling, Undeclared, read_pooling
from sglite.runtime.protocol import (
    EXPERT_TOKENS,
    PAUSE_MODES,
    GenerateRequest,
    PauseMode,
    ProgramRef,
    RequestOutput,
    UpdateWeights,
)
from sglite.runtime.sample.params import SamplingParams
from sglite.runtime.text.chat_template import ChatTemplate
from sglite.runtime.text.tokenizer import Tokenizer, load_tokenizer
from sglite.runtime.text.turns import TemplateError

__all__ = ["Engine", "EngineError", "RequestRefused"]

BUNDLED_MODEL = "sglite-demo"


class Engine:
    """A model, loaded and ready.

    Args:
        model_path: a folder in Hugging Face layout, a GGUF file or a hub name; ``None``: the bundled model.
        launch: who runs the core; on a thread here, unless told otherwise (see ``spawned.Spawned``).
        arguments: see ``EngineArgs``.

    Raises ``ModelError``, ``TokenizerError`` or ``ConfigError`` (all ``ValueError``), in one line, when the model or
    an argument cannot be used.
    """

    def __init__(self, model_path: str | Path | None = None, *, launch: Launch = InProcess, **arguments: Any) -> None:
        self.args = EngineArgs.of({"model_path": None if model_path is None else str(model_path), **arguments})
        if self.args.log_level is not None:
            logging.getLogger("sglite").setLevel(self.args.log_level.upper())
        self.tokenizer: Tokenizer | None = None
        self.chat_template: ChatTemplate | None = None
        self.model_path = self.args.model_path or BUNDLED_MODEL
        self.pooling: Pooling | str = ""
        """How vectors are made of texts; text: why they are not."""
        launching = launch(self.args)
        try:
            launched = self._launch(launching)
        except BaseException:
            launching.cancel()
            raise
        self.client = launched.client
        self.weights = ServedWeights(launched.client, self.model_path, self.args.weight_version)
        self.config = launched.config
        self._weight_bytes = launched.weight_bytes
        self._capacity = min(launched.config.context_length, launched.config.max_total_tokens)
        self._names = itertools.count(1)
        self._handles: set[Handle] = set()
        """Of the sequences that are open."""
        self._admission = Admission(
            self.config.vocab_size, launched.eos_ids, self.tokenizer, launched.compiler, self.config.generates
        )
        self._finalizer = weakref.finalize(self, self.client.close)

    def _launch(self, launching: Launching) -> Launched:
        """Read what is needed of the model for text while, where that can be, it is loaded."""
        folder = self.folder = _find_model(self.args)
        self.pooling = _find_pooling(folder, self.args.is_embedding)
        launching.load(folder)
        if not self.args.skip_tokenizer_init:
            texts = text_folder(self.args, folder)
            self.tokenizer = load_tokenizer(texts)
            self.chat_template = ChatTemplate.load(texts, self.args.chat_template)
        return launching.finish(self.tokenizer)

    @functools.cached_property
    def recommended_sampling(self) -> dict[str, float]:
        """Sampling parameters that the model's makers recommend, by SGLang's names. The engine does not apply them."""
        return _recommended(self.folder)

    @functools.cached_property
    def family(self) -> dict[str, Any]:
        """``model_type`` and ``architectures`` of the checkpoint."""
        from sglite.runtime.model.architectures import family

        return family(self.folder)

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
        self.client.flush_cache().result()
        return True

    def pause(self, mode: PauseMode = "abort") -> None:
        """Compute nothing until ``resume``; requests may come, and wait. Returns when nothing is being computed.

        ``mode``, as in SGLang: ``abort`` ends the open requests, ``retract`` sends them back to the queue so that
        their part of the cache may be flushed, ``in_place`` leaves them as they are.
        """
        if mode not in PAUSE_MODES:
            raise ValueError(f"mode must be one of {', '.join(PAUSE_MODES)}, got {mode!r}")
        self.client.pause(mode).result()

    def resume(self) -> None:
        """Go on after ``pause``."""
        self.client.resume().result()

    def update_weights_from_disk(self, model_path: str, load_format: str | None = None) -> tuple[bool, str, int]:
        """Load other weights of the same model from a local folder; see ``engine.weights``. Waits for open requests.

        As in SGLang: whether it was done (else nothing was changed), a message, how many requests waited meanwhile.
        """
        check_format(load_format, "checkpoints")
        result = self.weights.update(UpdateWeights(folder=str(model_path))).result()
        return result.success, result.message, result.num_paused_requests

    def update_weights_from_tensor(
        self, named_tensors: Items[tuple[str, Any]], load_format: str | None = None, flush_cache: bool = True
    ) -> tuple[bool, str]:
        """Replace single tensors, by their names in a checkpoint: ``[(name, torch.Tensor), ...]``; as from disk."""
        from sglite.runtime.model.reload import pack

        check_format(load_format, "tensors")
        order = UpdateWeights(tensors=pack(named_tensors), flush_cache=flush_cache)
        result = self.weights.update(order).result()
        return result.success, result.message

    def expert_load(self) -> list[list[int]]:
        """How many tokens each expert has had since the engine began: a list a layer with experts, none without."""
        return self.get_weights_by_name(EXPERT_TOKENS, 2**20)

    def get_weights_by_name(self, name: str, truncate_size: int = 100) -> list[Any]:
        """The first ``truncate_size`` rows of a tensor as nested lists. ``ValueError`` for what cannot be read."""
        result = self.weights.read(name, truncate_size).result()
        if not result.success:
            raise ValueError(result.message)
        found: list[Any] = result.values
        return found

    def health(self) -> Health:
        """Whether the engine runs and when it was last heard of; never waits."""
        return self.client.health()

    def load(self) -> Load:
        """The engine's counters as they were last heard of, and how long ago; never waits."""
        return self.client.load()

    @property
    def num_open(self) -> int:
        """Requests that have not ended."""
        return self.client.num_open

    def get_server_info(self) -> dict[str, Any]:
        """Configuration with origins, counters, present load."""
        return {
            "model_path": self.model_path,
            "version": _version(),
            "max_total_num_tokens": self.config.max_total_tokens,
            "context_length": self.config.context_length,
            "weight_bytes": self._weight_bytes,
            "weight_version": self.weights.version.name,
            "weights_path": self.weights.path,
            "config": self.config.describe(),
            "open_sequences": len(self._handles),
            **self.client.statistics().result(),
        }

    def get_program_info(self, program_id: str) -> dict[str, Any] | None:
        """Sums of what the ended requests of a program cost, its forks' common prefixes included; ``None``: unknown."""
        found = self.client.program_info(program_id).result()
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
        handle = Handle(f"{next(self._names)}/{program_id}")
        self._handles.add(handle)
        let_go = functools.partial(_let_go, self.client, self._handles, handle)
        return Sequence(self, handle, program, token_ids, let_go)

    def turn(self, role: str, first: bool) -> tuple[str, str]:
        """Text that opens and closes a turn of ``role``, from the checkpoint's chat template."""
        if self.chat_template is None:
            raise TemplateError(f"{self.model_path} has no chat template, so there are no roles; append plain text")
        return self.chat_template.turn(role, first=first)

    @property
    def default_system(self) -> str | None:
        """System text that the chat template puts in front of a conversation that has none."""
        return None if self.chat_template is None else self.chat_template.default_system

    def submit(self, input_ids: list[int], sampling_params: Mapping[str, Any] | None, **options: Any) -> Generation:
        """Start ``n`` requests for one prompt, whose list is taken over; returns at once. ``options``: of ``admit``."""
        call = self.admit(sampling_params, len(input_ids), **options)
        generation = self.generation(call)
        self.begin([Start(call, input_ids, generation, None, "")])
        return generation

    def admit(self, sampling_params: Mapping[str, Any] | None, num_prompt: int | None, /, **options: Any) -> Admitted:
        """Read and check a call; ``options`` as for ``Admission.admit``.

        Raises ``ValueError`` (``InvalidParameter``, ``RequestRefused``) naming the field.
        """
        return self._admission.admit(sampling_params, num_prompt, **options)

    def compile_ahead(self, call: Admitted) -> None:
        """Compile the constraint of a call that begins later."""
        if call.constraint is not None:
            self.client.compile_ahead(call.constraint)

    def generation(
        self,
        call: Admitted,
        abort: Callable[[str], None] | None = None,
        on_finished: Callable[[Items[Presenter]], None] | None = None,
    ) -> Generation:
        """The handle on the outputs of ``call``, which has yet to begin."""
        presenters = call.presenters(self.tokenizer, self.weights.version)
        return Generation(presenters, abort or self.abort, on_finished=on_finished)

    def begin(self, starts: Items[Start]) -> None:
        """Hand generations to the core, all at once. RuntimeError after ``shutdown``."""
        requests, handlers = [], []
        for call, ids, generation, program, pin in starts:
            made = call.requests(ids, self._capacity, program, pin)
            requests += made
            handlers += [generation.push] * len(made)
        self.client.submit_all(requests, *handlers)

    def hold(self, token_ids: list[int], program: ProgramRef | None, pin: str) -> None:
        """Have a prefix computed, at the cost of ``program``, and pinned; that takes no step where the tree has it."""
        name, nothing = uuid.uuid4().hex, SamplingParams(max_new_tokens=0)
        request = GenerateRequest(request_id=name, token_ids=token_ids, sampling=nothing, program=program, pin=pin)
        self.client.submit(request, _ignore)

    def park(self, pin: str, expected_s: float | None) -> None:
        """What is pinned under names that start with ``pin`` will not be needed for about so many seconds."""
        self.client.park(pin, expected_s)

    def abort(self, request_id: str) -> None:
        """End a request if it is still open. Whoever holds an open generation keeps the engine running by this."""
        self.client.abort(request_id)

    def abort_all(self, message: str = "aborted by the server") -> None:
        """End every open request; they are told ``message``."""
        self.client.abort_all(message)

    def _start(
        self,
        prompt: str | list[str] | None = None,
        sampling_params: Mapping[str, Any] | list[Mapping[str, Any]] | None = None,
        input_ids: list[int] | list[list[int]] | None = None,
        **options: Any,
    ) -> Batch:
        """Submit one request or a batch."""
        rows, many = prompt_ids(self.tokenizer, prompt, input_ids)
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


def _find_model(args: EngineArgs) -> Path:
    """The folder of the model asked for, or of the bundled one."""
    if args.model_path is None:
        return Path(str(resources.files("sglite") / "bundled" / BUNDLED_MODEL))
    from sglite.runtime.model.architectures import read_config
    from sglite.runtime.model.hub import resolve

    folder = resolve(args.model_path, args.revision, args.download_dir, args.offline)
    read_config(folder)  # a folder that is no model is refused before anything is loaded from it
    return folder


def _recommended(folder: Path) -> dict[str, float]:
    from sglite.runtime.model.architectures import read_config
    from sglite.runtime.model.generation import read_generation_defaults

    return read_generation_defaults(folder, read_config(folder)).sampling()


def _find_pooling(folder: Path, asked: bool) -> Pooling | str:
    """What the checkpoint declares; why nothing can be made of it. ``Undeclared``: it was ``asked`` for, in vain."""
    try:
        return read_pooling(folder, asked)
    except Undeclared as error:
        if asked:
            raise
        return str(error)


def _ignore(output: RequestOutput) -> None:
    """For a request whose outputs nobody wants."""


def _let_go(client: EngineClient, handles: set[Handle], handle: Handle) -> None:
    """A sequence is closed, or nobody holds it any more: release its pin. Not a method: it keeps no engine alive."""
    handles.discard(handle)
    if handle.pinned:
        client.unpin(handle.name)


def _version() -> str:
    from sglite.version import __version__

    return __version__
