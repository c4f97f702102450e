"""The demo: a small real model made into a Mixture-of-Experts, and prompts for it.

SmolLM2-135M-Instruct is "sparsely upcycled" (Komatsuzaki et al., arXiv 2212.05055): every
feed-forward block becomes several experts that begin as copies of it. Slightly different copies
and a router that spreads rows evenly make a checkpoint in standard Mixtral format that is ten
times larger, still speaks English, and in which it matters which expert a row goes to.
"""
