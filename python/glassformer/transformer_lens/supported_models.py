"""The models that TransformerLens 3.9.0 knows by name, and their other names."""

# Under each organisation (-: none) its models, each followed by its aliases; =: its own name in small letters. The
# Pythia models follow by rule.
_TABLE = """
01-ai/
  Yi-34B = Yi-34B
  Yi-34B-Chat = Yi-34B-Chat
  Yi-6B = Yi-6B
  Yi-6B-Chat = Yi-6B-Chat
ai-forever/
  mGPT mGPT
allenai/
  OLMo-1B-hf olmo-1b
  OLMo-2-0425-1B olmo-2-1b
  OLMo-2-1124-7B olmo-2-7b
  Olmo-3-1025-7B =
  Olmo-3-1125-32B =
  Olmo-3-32B-Think =
  Olmo-3-7B-Instruct =
  Olmo-3-7B-Think =
  Olmo-3.1-32B-Instruct =
  Olmo-3.1-32B-Think =
  OLMo-7B-hf olmo-7b
  OLMoE-1B-7B-0924 olmoe
ArthurConmy/
  redwood_attn_2l =
Baidicoot/
  Othello-GPT-Transformer-Lens othello-gpt
bigcode/
  santacoder =
bigscience/
  bloom-1b1 =
  bloom-1b7 =
  bloom-3b =
  bloom-560m =
  bloom-7b1 =
codellama/
  CodeLlama-7b-hf CodeLlamallama-2-7b
  CodeLlama-7b-Instruct-hf CodeLlama-7b-instruct
  CodeLlama-7b-Python-hf CodeLlama-7b-python
-/
  distilgpt2 distillgpt2 distill-gpt2 distil-gpt2 gpt2-xs
  gpt2 gpt2-small
  gpt2-large
  gpt2-medium
  gpt2-xl
  llama-13b-hf llama-13b
  llama-30b-hf llama-30b
  llama-65b-hf llama-65b
  llama-7b-hf llama-7b
EleutherAI/
  gpt-j-6B gpt-j-6B gpt-j gptj
  gpt-neo-1.3B gpt-neo-1.3B gpt-neo-medium neo-medium
  gpt-neo-125M gpt-neo-125M gpt-neo-small neo-small neo
  gpt-neo-2.7B gpt-neo-2.7B gpt-neo-large neo-large
  gpt-neox-20b = gpt-neox neox
facebook/
  hubert-base-ls960 =
  opt-1.3b = opt-medium
  opt-125m = opt-small opt
  opt-13b = opt-xxl
  opt-2.7b = opt-large
  opt-30b = opt-xxxl
  opt-6.7b = opt-xl
  opt-66b = opt-xxxxl
  wav2vec2-base = w2v2-base
  wav2vec2-large = w2v2-large
google-bert/
  bert-base-cased =
  bert-base-uncased =
  bert-large-cased =
  bert-large-uncased =
google-t5/
  t5-base =
  t5-large =
  t5-small =
google/
  gemma-2-27b =
  gemma-2-27b-it =
  gemma-2-2b =
  gemma-2-2b-it =
  gemma-2-9b =
  gemma-2-9b-it =
  gemma-2b =
  gemma-2b-it =
  gemma-3-12b-it =
  gemma-3-12b-pt =
  gemma-3-1b-it =
  gemma-3-1b-pt =
  gemma-3-270m =
  gemma-3-270m-it =
  gemma-3-27b-it =
  gemma-3-27b-pt =
  gemma-3-4b-it =
  gemma-3-4b-pt =
  gemma-7b =
  gemma-7b-it =
  medgemma-27b-it =
  medgemma-27b-text-it =
  medgemma-4b-it =
  medgemma-4b-pt =
meta-llama/
  Llama-2-13b-chat-hf Llama-2-13b-chat
  Llama-2-13b-hf Llama-2-13b
  Llama-2-70b-chat-hf Llama-2-70b-chat meta-llama-2-70b-chat-hf
  Llama-2-7b-chat-hf Llama-2-7b-chat
  Llama-2-7b-hf Llama-2-7b
  Llama-3.1-70B
  Llama-3.1-70B-Instruct
  Llama-3.1-8B
  Llama-3.1-8B-Instruct
  Llama-3.2-1B
  Llama-3.2-1B-Instruct
  Llama-3.2-3B
  Llama-3.2-3B-Instruct
  Llama-3.3-70B-Instruct
  Meta-Llama-3-70B
  Meta-Llama-3-70B-Instruct
  Meta-Llama-3-8B
  Meta-Llama-3-8B-Instruct
microsoft/
  phi-1 =
  phi-1_5 =
  phi-2 =
  Phi-3-mini-4k-instruct phi-3
  phi-4 =
mistralai/
  Mistral-7B-Instruct-v0.1 mistral-7b-instruct
  Mistral-7B-v0.1 mistral-7b
  Mistral-Nemo-Base-2407 =
  Mistral-Small-24B-Base-2501
  Mixtral-8x7B-Instruct-v0.1 mixtral-instruct mixtral-8x7b-instruct
  Mixtral-8x7B-v0.1 mixtral mixtral-8x7b
NeelNanda/
  Attn-Only-2L512W-Shortformer-6B-big-lr attn-only-2l-demo attn-only-2l-shortformer-6b-big-lr \
    attn-only-2l-induction-demo attn-only-demo
  Attn_Only_1L512W_C4_Code attn-only-1l attn-only-1l-new attn-only-1l-c4-code
  Attn_Only_2L512W_C4_Code attn-only-2l attn-only-2l-new attn-only-2l-c4-code
  Attn_Only_3L512W_C4_Code attn-only-3l attn-only-3l-new attn-only-3l-c4-code
  Attn_Only_4L512W_C4_Code attn-only-4l attn-only-4l-new attn-only-4l-c4-code
  GELU_1L512W_C4_Code gelu-1l gelu-1l-new gelu-1l-c4-code
  GELU_2L512W_C4_Code gelu-2l gelu-2l-new gelu-2l-c4-code
  GELU_3L512W_C4_Code gelu-3l gelu-3l-new gelu-3l-c4-code
  GELU_4L512W_C4_Code gelu-4l gelu-4l-new gelu-4l-c4-code
  SoLU_10L1280W_C4_Code solu-10l solu-10l-new solu-10l-c4-code
  SoLU_10L_v22_old solu-10l-pile solu-10l-old
  SoLU_12L1536W_C4_Code solu-12l solu-12l-new solu-12l-c4-code
  SoLU_12L_v23_old solu-12l-pile solu-12l-old
  SoLU_1L512W_C4_Code solu-1l solu-1l-new solu-1l-c4-code
  SoLU_1L512W_Wiki_Finetune solu-1l-wiki solu-1l-wiki-finetune solu-1l-finetune
  SoLU_1L_v9_old solu-1l-pile solu-1l-old
  SoLU_2L512W_C4_Code solu-2l solu-2l-new solu-2l-c4-code
  SoLU_2L_v10_old solu-2l-pile solu-2l-old
  SoLU_3L512W_C4_Code solu-3l solu-3l-new solu-3l-c4-code
  SoLU_4L512W_C4_Code solu-4l solu-4l-new solu-4l-c4-code
  SoLU_4L512W_Wiki_Finetune solu-4l-wiki solu-4l-wiki-finetune solu-4l-finetune
  SoLU_4L_v11_old solu-4l-pile solu-4l-old
  SoLU_6L768W_C4_Code solu-6l solu-6l-new solu-6l-c4-code
  SoLU_6L_v13_old solu-6l-pile solu-6l-old
  SoLU_8L1024W_C4_Code solu-8l solu-8l-new solu-8l-c4-code
  SoLU_8L_v21_old solu-8l-pile solu-8l-old
openai/
  gpt-oss-20b = gpt-oss
Qwen/
  Qwen-14B =
  Qwen-14B-Chat =
  Qwen-1_8B qwen-1.8b
  Qwen-1_8B-Chat qwen-1.8b-chat
  Qwen-7B =
  Qwen-7B-Chat =
  Qwen1.5-0.5B =
  Qwen1.5-0.5B-Chat =
  Qwen1.5-1.8B =
  Qwen1.5-1.8B-Chat =
  Qwen1.5-14B =
  Qwen1.5-14B-Chat =
  Qwen1.5-4B =
  Qwen1.5-4B-Chat =
  Qwen1.5-7B =
  Qwen1.5-7B-Chat =
  Qwen2-0.5B =
  Qwen2-0.5B-Instruct =
  Qwen2-1.5B =
  Qwen2-1.5B-Instruct =
  Qwen2-7B =
  Qwen2-7B-Instruct =
  Qwen2.5-0.5B =
  Qwen2.5-0.5B-Instruct =
  Qwen2.5-1.5B =
  Qwen2.5-1.5B-Instruct =
  Qwen2.5-14B =
  Qwen2.5-14B-Instruct =
  Qwen2.5-32B =
  Qwen2.5-32B-Instruct =
  Qwen2.5-3B =
  Qwen2.5-3B-Instruct =
  Qwen2.5-72B =
  Qwen2.5-72B-Instruct =
  Qwen2.5-7B =
  Qwen2.5-7B-Instruct =
  Qwen3-0.6B =
  Qwen3-0.6B-Base =
  Qwen3-1.7B =
  Qwen3-14B =
  Qwen3-4B =
  Qwen3-8B =
  QwQ-32B-Preview qwen-32b-preview
roneneldan/
  TinyStories-1Layer-21M tiny-stories-1L-21M
  TinyStories-1M tiny-stories-1M
  TinyStories-28M tiny-stories-28M
  TinyStories-2Layers-33M tiny-stories-2L-33M
  TinyStories-33M tiny-stories-33M
  TinyStories-3M tiny-stories-3M
  TinyStories-8M tiny-stories-8M
  TinyStories-Instruct-1M tiny-stories-instruct-1M
  TinyStories-Instruct-28M tiny-stories-instruct-28M
  TinyStories-Instruct-2Layers-33M tiny-stories-instruct-2L-33M
  TinyStories-Instruct-33M tiny-stories-instruct-33M
  TinyStories-Instruct-3M tiny-stories-instruct-3M
  TinyStories-Instruct-8M tiny-stories-instruct-8M
  TinyStories-Instuct-1Layer-21M tiny-stories-instruct-1L-21M
stabilityai/
  stablelm-base-alpha-3b = stablelm-base-3b
  stablelm-base-alpha-7b = stablelm-base-7b
  stablelm-tuned-alpha-3b = stablelm-tuned-3b
  stablelm-tuned-alpha-7b = stablelm-tuned-7b
stanford-crfm/
  alias-gpt2-small-x21 stanford-gpt2-small-a = gpt2-mistral-small-a gpt2-stanford-small-a
  arwen-gpt2-medium-x21 stanford-gpt2-medium-a = gpt2-medium-small-a gpt2-stanford-medium-a
  battlestar-gpt2-small-x49 stanford-gpt2-small-b = gpt2-mistral-small-b gpt2-mistral-small-b
  beren-gpt2-medium-x49 stanford-gpt2-medium-b = gpt2-medium-small-b gpt2-stanford-medium-b
  caprica-gpt2-small-x81 stanford-gpt2-small-c = gpt2-mistral-small-c gpt2-stanford-small-c
  celebrimbor-gpt2-medium-x81 stanford-gpt2-medium-c = gpt2-medium-small-c gpt2-medium-small-c
  darkmatter-gpt2-small-x343 stanford-gpt2-small-d = gpt2-mistral-small-d gpt2-mistral-small-d
  durin-gpt2-medium-x343 stanford-gpt2-medium-d = gpt2-medium-small-d gpt2-stanford-medium-d
  eowyn-gpt2-medium-x777 stanford-gpt2-medium-e = gpt2-medium-small-e gpt2-stanford-medium-e
  expanse-gpt2-small-x777 stanford-gpt2-small-e = gpt2-mistral-small-e gpt2-mistral-small-e
swiss-ai/
  Apertus-8B-2509 apertus-8b apertus
  Apertus-8B-Instruct-2509 apertus-8b-instruct apertus-instruct
"""

# The sizes by which Pythia models are known, and by which they were before.
_PYTHIA = {
    "14m": [],
    "31m": [],
    "70m": ["19m"],
    "160m": ["125m"],
    "410m": ["350m"],
    "1b": ["800m"],
    "1.4b": ["1.3b"],
    "2.8b": ["2.7b"],
    "6.9b": ["6.7b"],
    "12b": ["13b"],
}


def _pythia() -> dict[str, list[str]]:
    found = {}
    for size, before in _PYTHIA.items():
        kinds = ["", "-v0", "-deduped", "-deduped-v0"] if before else [""]
        for kind in kinds + (["-seed1", "-seed2", "-seed3"] if size == "160m" else []):
            short = [f"pythia{kind}"] if size == "70m" and "deduped" not in kind else []
            former = [f"{owner}pythia-{other}{kind}" for other in before for owner in ("EleutherAI/", "")]
            found[f"EleutherAI/pythia-{size}{kind}"] = [f"pythia-{size}{kind}", *short, *former]
    return found


def _listed() -> dict[str, list[str]]:
    found, owner = {}, ""
    for line in _TABLE.strip().splitlines():
        if not line.startswith(" "):
            owner = "" if line == "-/" else line
            continue
        name, *aliases = line.split()
        found[owner + name] = [name.lower() if alias == "=" else alias for alias in aliases]
    return found


_ALL = _listed() | _pythia()
OFFICIAL_MODEL_NAMES: list[str] = sorted(_ALL, key=str.lower)
MODEL_ALIASES: dict[str, list[str]] = {name: _ALL[name] for name in OFFICIAL_MODEL_NAMES if _ALL[name]}
DEFAULT_MODEL_ALIASES: list[str] = [(_ALL[name] or [name])[0] for name in OFFICIAL_MODEL_NAMES]
