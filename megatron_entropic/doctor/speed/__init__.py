"""Token statistics and their competitors, measured: cases, inputs, clocks. Needs torch alone, and Triton on a GPU."""
