"""llama.cpp through its batch interface, as its server drives it: all rows in one batch, one cache that rows share.

What a user would have to arrange is arranged: a prefix that all prompts share, and a prompt with several outputs, are
computed once and handed to the other rows. Greedy tokens are an arg-max of numpy's, the rest are llama.cpp's samplers.
"""

from __future__ import annotations

import ctypes
import json
from pathlib import Path

import llama_cpp as lib
import numpy as np
from llama_cpp.llama_grammar import json_schema_to_gbnf
from loop import Adapter, Outputs, Shot, serve

FILES = {"bf16": "bf16.gguf", "int8": "q8_0.gguf"}
MAX_ROWS = 16
BATCH = 2048
CANDIDATE = np.dtype([("id", np.int32), ("logit", np.float32), ("p", np.float32)])
SHORTEST_PREFIX = 64

Token = tuple[int, int, int, bool]
"""Id, position, row, whether logits are wanted."""


class LlamaCpp(Adapter):
    def load(self, model: str, threads: int, precision: str, kv_tokens: int) -> str:
        lib.llama_backend_init()
        path = Path(model) / FILES[precision]
        self.model = lib.llama_model_load_from_file(str(path).encode(), lib.llama_model_default_params())
        if not self.model:
            raise RuntimeError(f"llama.cpp does not load {path.name}")
        params = lib.llama_context_default_params()
        params.n_ctx, params.n_batch, params.n_seq_max = kv_tokens, BATCH, MAX_ROWS
        params.n_threads = params.n_threads_batch = threads
        params.kv_unified, params.no_perf = True, True
        self.context = lib.llama_init_from_model(self.model, params)
        self.memory = lib.llama_get_memory(self.context)
        self.vocab = lib.llama_model_get_vocab(self.model)
        self.size = lib.llama_vocab_n_tokens(self.vocab)
        self.batch = lib.llama_batch_init(BATCH, 0, 1)
        self.grammars: dict[str, bytes] = {}
        return f"{lib.__version__}, {path.name}, {_features()}"

    def reset(self) -> None:
        lib.llama_memory_clear(self.memory, False)

    def run(self, shot: Shot) -> Outputs:
        prompts = [ids for ids in shot["prompts"] for _ in range(shot["n"])]
        samplers = [self._sampler(shot, i // shot["n"]) for i in range(len(prompts))]
        logits = self._prefill(prompts)
        outputs: Outputs = [[] for _ in prompts]
        for step in range(shot["max_new"]):
            for output, sampler, row in zip(outputs, samplers, logits, strict=True):
                output.append(sampler.next(row))
            if step + 1 < shot["max_new"]:
                logits = self._decode([(out[-1], len(prompts[i]) + step, i, True) for i, out in enumerate(outputs)])
        return outputs

    def _sampler(self, shot: Shot, index: int) -> Sampler:
        grammar = None
        if shot["schemas"]:
            text = json.dumps(shot["schemas"][index])
            if text not in self.grammars:
                self.grammars[text] = json_schema_to_gbnf(text).encode()
            grammar = lib.llama_sampler_init_grammar(self.vocab, self.grammars[text], b"root")
        draw = lib.llama_sampler_init_dist(index) if shot["temperature"] else None
        return Sampler(self.size, grammar, draw)

    def _prefill(self, prompts: Outputs) -> list[np.ndarray]:
        """Logits after each prompt; what all share is computed in the first row."""
        shared = _common(prompts) if len(prompts) > 1 else 0
        if shared == len(prompts[0]):
            row = self._decode([(t, i, 0, i + 1 == shared) for i, t in enumerate(prompts[0])])[0]
            self._hand_on(len(prompts))
            return [row] * len(prompts)
        if shared < SHORTEST_PREFIX:
            shared = 0
        else:
            self._decode([(prompts[0][i], i, 0, False) for i in range(shared)])
            self._hand_on(len(prompts))
        return self._decode(
            [(ids[i], i, r, i + 1 == len(ids)) for r, ids in enumerate(prompts) for i in range(shared, len(ids))]
        )

    def _hand_on(self, rows: int) -> None:
        for row in range(1, rows):
            lib.llama_memory_seq_cp(self.memory, 0, row, -1, -1)

    def _decode(self, tokens: list[Token]) -> list[np.ndarray]:
        """Compute ``tokens``; logits where they are wanted, in order."""
        found: list[np.ndarray] = []
        for start in range(0, len(tokens), BATCH):
            part, batch = tokens[start : start + BATCH], self.batch
            for i, (token, position, row, wanted) in enumerate(part):
                batch.token[i], batch.pos[i] = token, position
                batch.n_seq_id[i], batch.seq_id[i][0], batch.logits[i] = 1, row, wanted
            batch.n_tokens = len(part)
            if lib.llama_decode(self.context, batch):
                raise RuntimeError(f"llama_decode failed with {len(part)} tokens")
            found += [self._logits(i).copy() for i, token in enumerate(part) if token[3]]
        return found

    def _logits(self, index: int) -> np.ndarray:
        return np.ctypeslib.as_array(lib.llama_get_logits_ith(self.context, index), shape=(self.size,))


class Sampler:
    """Of one row."""

    def __init__(self, size: int, grammar: object, draw: object) -> None:
        self.grammar = grammar
        self.draw = draw
        self.candidates = np.empty(size, CANDIDATE) if grammar or draw else None

    def __del__(self) -> None:
        for sampler in (self.grammar, self.draw):
            if sampler:
                lib.llama_sampler_free(sampler)

    def next(self, logits: np.ndarray) -> int:
        """The next token. As llama.cpp's server does, the grammar is asked about the first choice before all."""
        if self.draw:
            return int(self._apply(self.draw, self._all(logits))[1])
        token = int(logits.argmax())
        if self.grammar:
            single = np.array([(token, logits[token], 0.0)], CANDIDATE)
            if not np.isfinite(self._apply(self.grammar, single)[0]["logit"][0]):
                left = self._apply(self.grammar, self._all(logits))[0]
                token = int(left["id"][left["logit"].argmax()])
            lib.llama_sampler_accept(self.grammar, token)
        return token

    def _all(self, logits: np.ndarray) -> np.ndarray:
        assert self.candidates is not None
        self.candidates["id"] = np.arange(len(logits), dtype=np.int32)
        self.candidates["logit"] = logits
        return self.candidates

    def _apply(self, sampler: object, candidates: np.ndarray) -> tuple[np.ndarray, int]:
        """Candidates as a sampler leaves them, in place, and the id of the one it selects."""
        pointer = candidates.ctypes.data_as(lib.llama_token_data_p)
        array = lib.llama_token_data_array(pointer, len(candidates), -1, False)
        lib.llama_sampler_apply(sampler, ctypes.byref(array))
        left = candidates[: array.size]
        return left, int(left["id"][array.selected])


def _common(prompts: Outputs) -> int:
    """Length of the prefix that all prompts share."""
    shortest = min(len(ids) for ids in prompts)
    same = (len({ids[i] for ids in prompts}) == 1 for i in range(shortest))
    return next((i for i, one in enumerate(same) if not one), shortest)


def _features() -> str:
    told = lib.llama_print_system_info().decode()
    return " ".join(
        name for name in ("AVX2", "AVX512", "AVX512_VNNI", "AVX512_BF16", "AMX_INT8") if f"{name} = 1" in told
    )


if __name__ == "__main__":
    serve(LlamaCpp())
