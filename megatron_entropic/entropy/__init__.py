"""Token statistics under tensor parallelism: log-prob, entropy and clamped entropy, exact and differentiable.

shard.py             which vocabulary columns and which rows this rank works on; the collectives over the tensor ranks
records.py           what the torch path and the kernels hand each other: moments, per-token scalars, thresholds, sortable keys
thread_pool.py       blocks of rows distributed over threads
selection.py         the K largest logits of a row over all tensor ranks, exactly (radix select)
row_math.py          the formulas: moments of one rank's columns, the gradient of the logits
moments.py           how the moments of pieces and ranks combine, and what they say
checks.py            arguments and rows that are errors
token_statistics.py  the operation on logits
device_path.py       kernels on a GPU, plain torch elsewhere
triton/              the Triton kernels: moments, gradient, selection, and what they share
linear.py            the operation on hidden states and the output weight; the logits never exist as a whole
linear_head.py       its computation, tile by tile; gradient_accumulation.py: how the tiles' matrix products become gradients
sequence_chunks.py   hidden states from and to the tensor ranks, chunk by chunk under sequence parallelism
"""

from megatron_entropic.entropy.linear import linear_token_log_probs, linear_token_statistics
from megatron_entropic.entropy.token_statistics import TokenStatistics, token_log_probs, token_statistics

__all__ = ["TokenStatistics", "linear_token_log_probs", "linear_token_statistics", "token_log_probs", "token_statistics"]
