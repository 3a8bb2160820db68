"""The parts of ``benchmarks.gpu``: what one CUDA device does beside other libraries. Each also runs on a CPU."""
