"""sglite, through ``sglite.Engine`` in process."""

from __future__ import annotations

import json
from typing import Any

from loop import Adapter, Outputs, Shot, serve

from sglite import Engine, __version__


class Sglite(Adapter):
    def load(self, model: str, threads: int, precision: str, kv_tokens: int) -> str:
        quantized = {} if precision == "bf16" else {"quantization": precision}
        self.engine = Engine(model, num_threads=threads, max_total_tokens=kv_tokens, show_progress=False, **quantized)
        return f"{__version__}, {self.engine.config.kernels}"

    def run(self, shot: Shot) -> Outputs:
        self.results: list[dict[str, Any]] = self.engine.generate(
            input_ids=shot["prompts"], sampling_params=[_params(shot, i) for i in range(len(shot["prompts"]))]
        )
        return [result["output_ids"] for result in self.results]

    def reset(self) -> None:
        self.engine.flush_cache()

    def counters(self) -> dict[str, float]:
        metas = [result["meta_info"] for result in self.results]
        passes = sum(meta["forward_passes"] for meta in metas) / len(metas)
        return {"passes": passes, "mask_ms": sum(meta["mask_ms"] for meta in metas)}


def _params(shot: Shot, index: int) -> dict[str, Any]:
    params = {"max_new_tokens": shot["max_new"], "temperature": shot["temperature"], "ignore_eos": True}
    if shot["n"] > 1:
        params["n"] = shot["n"]
    if shot["schemas"]:
        params["json_schema"] = json.dumps(shot["schemas"][index])
    return params


if __name__ == "__main__":
    serve(Sglite())
