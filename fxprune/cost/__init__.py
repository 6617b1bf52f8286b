"""Parameters, FLOPs and measured latency, of programs and their parts."""
