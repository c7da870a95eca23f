"""`megatron-entropic watch RUN...`: runs on the terminal while they train. (What warns during a run is observability/watch.py.)"""
