"""OpenVINO GenAI: its continuous batching pipeline with prefix caching, computing in bf16.

Its cache of prefixes cannot be emptied; the driver never sends the same prompt twice.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import openvino as ov
import openvino_genai as genai
from loop import Adapter, Outputs, Shot, serve

FOLDERS = {"bf16": "openvino-fp16", "int8": "openvino-int8"}
BLOCK = 32
"""Tokens of a cache block on CPUs."""


class OpenVino(Adapter):
    def load(self, model: str, threads: int, precision: str, kv_tokens: int) -> str:
        scheduler = genai.SchedulerConfig()
        scheduler.num_kv_blocks = kv_tokens // BLOCK
        scheduler.enable_prefix_caching = True
        scheduler.max_num_seqs = 32
        folder = Path(model) / FOLDERS[precision]
        properties = {"INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": "bf16"}
        self.pipeline = genai.ContinuousBatchingPipeline(str(folder), scheduler, "CPU", properties)
        return f"{ov.__version__.partition('-')[0]}, {folder.name}"

    def run(self, shot: Shot) -> Outputs:
        prompts = [ov.Tensor(np.array([ids], np.int64)) for ids in shot["prompts"]]
        found = self.pipeline.generate(prompts, [_config(shot, i) for i in range(len(prompts))])
        return [list(ids) for request in found for ids in request.m_generation_ids]


def _config(shot: Shot, index: int) -> genai.GenerationConfig:
    config = genai.GenerationConfig()
    config.max_new_tokens = config.min_new_tokens = shot["max_new"]
    config.ignore_eos = True
    if shot["temperature"]:
        config.do_sample, config.temperature, config.num_return_sequences = True, shot["temperature"], shot["n"]
    if shot["schemas"]:
        config.structured_output_config = genai.StructuredOutputConfig(json_schema=json.dumps(shot["schemas"][index]))
    return config


if __name__ == "__main__":
    serve(OpenVino())
