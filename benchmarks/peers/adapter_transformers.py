"""transformers: ``generate`` over a static batch. It keeps nothing between calls and has no structured outputs.

It also judges: a forward pass in float32 over what a peer wrote says which tokens were the first choice.
"""

from __future__ import annotations

import torch
import transformers
from loop import Adapter, Outputs, Refused, Shot, serve


class Transformers(Adapter):
    def load(self, model: str, threads: int, precision: str, kv_tokens: int) -> str:
        if precision not in ("bf16", "float32"):
            raise Refused(f"{precision} is not measured with transformers")
        torch.set_num_threads(threads)
        dtype = torch.bfloat16 if precision == "bf16" else torch.float32
        read = transformers.AutoModelForCausalLM.from_pretrained
        self.model = read(model, dtype=dtype, use_safetensors=True, local_files_only=True).eval()
        return f"{transformers.__version__}, torch {torch.__version__}"

    def run(self, shot: Shot) -> Outputs:
        if shot["schemas"]:
            raise Refused("no structured outputs")
        prompts = torch.tensor(shot["prompts"])
        sampling = {"do_sample": True, "temperature": shot["temperature"], "top_k": 0} if shot["temperature"] else {}
        with torch.inference_mode():
            found = self.model.generate(
                prompts,
                attention_mask=torch.ones_like(prompts),
                max_new_tokens=shot["max_new"],
                num_return_sequences=shot["n"],
                eos_token_id=-1,
                pad_token_id=0,
                **(sampling or {"do_sample": False}),
            )
        return found[:, prompts.shape[1] :].tolist()

    def judge(self, sequences: Outputs, starts: list[int]) -> list[list[float]]:
        below = []
        with torch.inference_mode():
            for ids, start in zip(sequences, starts, strict=True):
                logits = self.model(torch.tensor([ids[:-1]])).logits[0, start - 1 :].float()
                chosen = logits.gather(1, torch.tensor(ids[start:])[:, None])[:, 0]
                below.append((logits.max(-1).values - chosen).tolist())
        return below


if __name__ == "__main__":
    serve(Transformers())
