"""Run by `test_hot_backend` in a process of its own: an engine reads prompts; its pages and log-probabilities as JSON."""

import json
import os
import sys

os.environ |= {
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "HF_HUB_OFFLINE": "1",
}

from spectralquant.integrations.vllm.plugin import register

register()

import torch  # noqa: E402
from vllm import LLM, SamplingParams  # noqa: E402

from spectralquant.integrations.vllm.hot.variable import hot_profile  # noqa: E402


def main(model: str, prompts: str, out: str) -> None:
    """Read each prompt once, then the first again with more behind it (from cached pages)."""
    with open(prompts) as file:
        ids = json.load(file)
    gpu = torch.cuda.is_available()
    coded = {"attention_backend": "CUSTOM"} if gpu and hot_profile() else {}
    llm = LLM(
        model=model,
        skip_tokenizer_init=True,
        dtype="bfloat16",
        enforce_eager=True,
        max_model_len=1024,
        max_num_batched_tokens=256,
        block_size=128,
        max_num_seqs=4,
        enable_prefix_caching=True,
        **coded,
        **({"gpu_memory_utilization": 0.2} if gpu else {}),
    )
    asked = SamplingParams(max_tokens=4, temperature=0, prompt_logprobs=0, detokenize=False)
    read = llm.generate([{"prompt_token_ids": i} for i in ids], asked)
    again = llm.generate(
        [{"prompt_token_ids": ids[0] + [7, 8, 9]}], SamplingParams(max_tokens=4, temperature=0, detokenize=False)
    )
    result = {
        "blocks": llm.llm_engine.vllm_config.cache_config.num_gpu_blocks,
        "logprobs": [[next(iter(d.values())).logprob for d in r.prompt_logprobs[1:]] for r in read],
        "cached": again[0].num_cached_tokens,
        "tokens": [list(r.outputs[0].token_ids) for r in (*read, *again)],
    }
    with open(out, "w") as file:
        json.dump(result, file)


if __name__ == "__main__":
    main(*sys.argv[1:])
