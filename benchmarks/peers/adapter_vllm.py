"""vLLM for CPUs: the offline ``LLM``, its engine in a process of its own, prefix caching on."""

from __future__ import annotations

import os
from typing import Any

import vllm
from loop import Adapter, Outputs, Refused, Shot, serve
from vllm import LLM, SamplingParams
from vllm.sampling_params import StructuredOutputsParams

BLOCK = 128
"""Tokens of a cache block, vLLM's own choice for CPUs."""


class Vllm(Adapter):
    def load(self, model: str, threads: int, precision: str, kv_tokens: int) -> str:
        if precision != "bf16":
            raise Refused(f"{precision} needs a checkpoint made for it")
        self.llm = LLM(
            model,
            dtype="bfloat16",
            max_model_len=4096,
            max_num_seqs=32,
            block_size=BLOCK,
            num_gpu_blocks_override=kv_tokens // BLOCK,
            enable_prefix_caching=True,
            disable_log_stats=True,
            structured_outputs_config={"backend": "xgrammar", "disable_any_whitespace": True},
        )
        return f"{vllm.__version__}, {'with' if 'tcmalloc' in os.environ.get('LD_PRELOAD', '') else 'without'} tcmalloc"

    def run(self, shot: Shot) -> Outputs:
        prompts: Any = [{"prompt_token_ids": ids} for ids in shot["prompts"]]
        params = [_params(shot, i) for i in range(len(prompts))]
        found = self.llm.generate(prompts, params, use_tqdm=False)
        return [list(output.token_ids) for request in found for output in request.outputs]

    def reset(self) -> None:
        self.llm.reset_prefix_cache()


def _params(shot: Shot, index: int) -> SamplingParams:
    schemas = shot["schemas"]
    structured = StructuredOutputsParams(json=schemas[index]) if schemas else None
    return SamplingParams(
        n=shot["n"],
        max_tokens=shot["max_new"],
        temperature=shot["temperature"],
        ignore_eos=True,
        structured_outputs=structured,
    )


if __name__ == "__main__":
    serve(Vllm())
