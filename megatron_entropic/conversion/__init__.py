"""Checkpoints rewritten block by block, without Megatron, a GPU or the memory for the model: Hugging Face <-> distributed.

pickles.py          what may be unpickled from a checkpoint, and nothing else
distributed.py      reading and writing Megatron's `torch_dist` files, any rows of any parameter
keys.py             where a table row is in such a checkpoint, and how a layout cuts it
output.py           files that are written in parallel, resumed after a kill, checksummed, and appear whole
importing.py        Hugging Face directory -> distributed checkpoint
exporting.py        distributed checkpoint -> Hugging Face directory
"""
