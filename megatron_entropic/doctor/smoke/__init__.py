"""`megatron-entropic doctor --gpu-smoke`: the first command on a machine with a GPU. Each part runs in a process of its own.

table.py lists the parts, one file each; runner.py starts them and ends what they leave; child.py is a part's process; page.py prints.
"""
